//! Where an agent may be asked to send news of a task (specification §4.3, §13.2).
//!
//! Whoever names a webhook makes the agent send a request of its own, from where it stands: to the
//! address of a cloud's metadata, to a service that trusts its network. So only public places pass,
//! in one spelling each; everything else needs the upstream's owner.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use aegis_core::address::is_public;
use http::Uri;

use crate::mcp::uri;

/// The longest webhook. Bytes.
const MAX_BYTES: usize = 2048;
/// Names that lead into somebody's own network, with everything below them.
const LOCAL_NAMES: [&str; 7] =
    ["localhost", "local", "localdomain", "internal", "intranet", "svc", "home.arpa"];

/// Why a webhook is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WebhookError {
    /// Not a canonical http or https URL.
    #[error("a webhook must be an http:// or https:// URL in canonical form, without credentials")]
    Url,
    /// A host that readers take differently.
    #[error("the webhook's host must be a name in lower case or an address in its usual form")]
    Host,
}

/// A webhook's place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Webhook {
    /// The URL in canonical form.
    pub url: String,
    /// The host, without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
}

impl Webhook {
    /// Reads a URL.
    ///
    /// # Errors
    /// When it is not one that every reader takes for the same place.
    pub fn parse(text: &str) -> Result<Self, WebhookError> {
        if text.len() > MAX_BYTES || !text.is_ascii() {
            return Err(WebhookError::Url);
        }
        let url = uri::canonical(text).map_err(|_| WebhookError::Url)?.into_owned();
        let parsed: Uri = url.parse().map_err(|_| WebhookError::Url)?;
        let default = match parsed.scheme_str() {
            Some("https") => 443,
            Some("http") => 80,
            _ => return Err(WebhookError::Url),
        };
        let authority = parsed.authority().ok_or(WebhookError::Url)?;
        if authority.as_str().contains(['@', '%']) || text.contains('#') {
            return Err(WebhookError::Url);
        }
        let port = authority.port_u16().unwrap_or(default);
        let plain = authority.as_str().ends_with(authority.host());
        if port == 0 || (authority.port_u16().is_none() && !plain) {
            return Err(WebhookError::Url);
        }
        let host = authority.host();
        let host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
            Some(address) => {
                address.parse::<Ipv6Addr>().map_err(|_| WebhookError::Host)?.to_string()
            }
            None => name(host)?,
        };
        Ok(Self { url, host, port })
    }

    /// Its address, if the host is one.
    #[must_use]
    pub fn address(&self) -> Option<IpAddr> {
        self.host.parse().ok()
    }

    /// Whether it leads to a public place, as far as its text tells: names are not resolved.
    #[must_use]
    pub fn is_public(&self) -> bool {
        match self.address() {
            Some(address) => is_public(address),
            None => {
                let below = |local: &str| {
                    self.host == local
                        || self.host.strip_suffix(local).is_some_and(|rest| rest.ends_with('.'))
                };
                self.host.contains('.') && !LOCAL_NAMES.iter().any(|local| below(local))
            }
        }
    }
}

/// A DNS name or an IPv4 address. `0x7f.1` and `2130706433` are addresses to some readers.
fn name(host: &str) -> Result<String, WebhookError> {
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
    };
    if host.is_empty() || host.len() > 253 || !host.split('.').all(label) {
        return Err(WebhookError::Host);
    }
    let last = host.rsplit('.').next().unwrap_or_default();
    let number = last.bytes().all(|b| b.is_ascii_digit())
        || last.strip_prefix("0x").is_some_and(|hex| hex.bytes().all(|b| b.is_ascii_hexdigit()));
    if number {
        return host.parse::<Ipv4Addr>().map(|v4| v4.to_string()).map_err(|_| WebhookError::Host);
    }
    Ok(host.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_public_places_are_public() {
        for url in [
            "https://hooks.example.com/a2a?task=1",
            "http://93.184.216.34/",
            "https://[2606:2800:220:1::1]:8443/x",
        ] {
            assert!(Webhook::parse(url).unwrap().is_public(), "{url}");
        }
        for url in [
            "http://127.0.0.1/",
            "http://127.1.2.3:8080/x",
            "http://10.0.0.1/",
            "http://172.16.0.1/",
            "http://192.168.1.1/",
            "http://169.254.169.254/latest/meta-data",
            "http://100.100.100.200/",
            "http://0.0.0.0/",
            "http://255.255.255.255/",
            "http://224.0.0.1/",
            "http://198.18.0.1/",
            "http://localhost/",
            "http://a.localhost/",
            "http://printer.local/",
            "http://metadata.google.internal/",
            "http://ledger.aegis.svc/",
            "http://ledger.aegis.svc.cluster.local/",
            "http://intranet/",
            "http://[::1]/",
            "http://[::]/",
            "http://[fe80::1]/",
            "http://[fd00::1]/",
            "http://[::ffff:10.0.0.1]/",
            "http://[64:ff9b::a00:1]/",
            "http://[2002:7f00:1::]/",
            "http://[2001:db8::1]/",
            "http://[ff02::1]/",
        ] {
            assert!(!Webhook::parse(url).unwrap().is_public(), "{url}");
        }
    }

    #[test]
    fn other_spellings_of_a_place_are_refused() {
        for url in [
            "http://2130706433/",
            "http://0x7f.1/",
            "http://127.1/",
            "http://0177.0.0.1/",
            "http://127.0.0.1./",
            "http://localhost./",
            "http://user@example.com/",
            "http://example.com@127.0.0.1/",
            "HTTP://example.com/",
            "http://Example.com/",
            "ftp://example.com/",
            "file:///etc/passwd",
            "//example.com/",
            "http:///x",
            "http://",
            "http://[::1%25eth0]/",
            "http://exa%6dple.com/",
            "http://example.com:0/",
            "http://example.com:/",
            "http://example.com:99999/",
            "http://example.com/#x",
            "http://exämple.com/",
            "http://example.com/../x",
            "",
        ] {
            assert!(Webhook::parse(url).is_err(), "{url}");
        }
    }
}
