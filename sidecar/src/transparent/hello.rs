//! The server name of a TLS connection, by its ClientHello. Nothing is taken off the connection.
//!
//! The hello is read whole, in however many records and segments it comes, up to a bound, by the TLS
//! library's own parser: a prefix of it is never judged. With Encrypted ClientHello the outer name is
//! what counts: it names who terminates TLS.

use std::time::Duration;

use rustls::server::Acceptor;
use tokio::{net::TcpStream, sync::Semaphore};

/// How many hellos are read at a time: whoever stalls them does not fill the memory.
static READING: Semaphore = Semaphore::const_new(256);
/// How long a client may take to send its hello.
const PATIENCE: Duration = Duration::from_secs(10);
/// The largest hello. Those with post-quantum key shares have about 2 KiB.
const MAX_BYTES: usize = 16 * 1024;
/// The longest name (RFC 1035 §2.3.4).
const MAX_NAME_BYTES: usize = 253;

/// Why a connection has no name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Nameless {
    /// The hello has none, or an address.
    Absent,
    /// It is none that leads anywhere by itself.
    Unusable,
    /// The hello cannot be read, is too large, or does not end in time.
    Unreadable,
}

impl Nameless {
    /// What is recorded.
    pub(super) const fn code(self) -> &'static str {
        match self {
            Self::Absent => "absent",
            Self::Unusable => "unusable",
            Self::Unreadable => "unreadable",
        }
    }
}

/// Waits for the hello and reads its name, in lower case.
///
/// # Errors
/// Why there is none.
pub(super) async fn server_name(stream: &TcpStream) -> Result<String, Nameless> {
    let _turn = READING.acquire().await.map_err(|_| Nameless::Unreadable)?;
    let read = tokio::time::timeout(PATIENCE, read(stream)).await;
    read.unwrap_or(Err(Nameless::Unreadable))
}

async fn read(stream: &TcpStream) -> Result<String, Nameless> {
    let mut bytes = vec![0; MAX_BYTES];
    let mut known = 0;
    loop {
        let count = stream.peek(&mut bytes).await.map_err(|_| Nameless::Unreadable)?;
        if count == known {
            if count == 0 || count == MAX_BYTES {
                return Err(Nameless::Unreadable);
            }
            // Peeking returns at once while there are bytes: wait until there are more.
            tokio::time::sleep(Duration::from_millis(5)).await;
            continue;
        }
        known = count;
        if let Some(name) = parse(bytes.get(..count).unwrap_or_default())? {
            return Ok(name);
        }
    }
}

/// The name; `None` while the hello is not complete.
fn parse(mut bytes: &[u8]) -> Result<Option<String>, Nameless> {
    let mut acceptor = Acceptor::default();
    while !bytes.is_empty() {
        match acceptor.read_tls(&mut bytes) {
            Ok(count) if count > 0 => {}
            _ => return Err(Nameless::Unreadable),
        }
        if let Some(accepted) = acceptor.accept().map_err(|_| Nameless::Unreadable)? {
            let hello = accepted.client_hello();
            return usable(hello.server_name().ok_or(Nameless::Absent)?).map(Some);
        }
    }
    Ok(None)
}

/// A whole name of at least two labels: shorter ones are completed in ways that nobody has judged.
fn usable(name: &str) -> Result<String, Nameless> {
    let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
    let spelled = |label: &str| {
        !label.is_empty()
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
    };
    let numeric =
        name.rsplit('.').next().is_none_or(|last| last.bytes().all(|b| b.is_ascii_digit()));
    let whole = name.len() <= MAX_NAME_BYTES && name.contains('.') && name.split('.').all(spelled);
    if whole && !numeric { Ok(name) } else { Err(Nameless::Unusable) }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use aegis_identity::tls::{Roots, https_client_config};
    use rustls::{ClientConnection, pki_types::ServerName};

    use super::*;

    fn hello(name: &str, sni: bool) -> Vec<u8> {
        let mut config = https_client_config(&Roots::WebPki).unwrap();
        config.enable_sni = sni;
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let mut client = ClientConnection::new(Arc::new(config), name).unwrap();
        let mut out = Vec::new();
        client.write_tls(&mut out).unwrap();
        out
    }

    /// The same hello in records of `size` bytes.
    fn fragmented(hello: &[u8], size: usize) -> Vec<u8> {
        let records = hello[5..].chunks(size).map(|part| {
            let length = u16::try_from(part.len()).unwrap().to_be_bytes();
            [&[0x16, 3, 1][..], &length, part].concat()
        });
        records.collect::<Vec<_>>().concat()
    }

    #[test]
    fn a_hello_is_read_whole() {
        let whole = hello("API.example.com", true);
        assert!(whole.len() > 1200, "with a post-quantum key share");
        assert_eq!(parse(&whole), Ok(Some("api.example.com".into())));
        for end in [0, 1, 5, 6, 100, whole.len() - 1] {
            assert_eq!(parse(&whole[..end]), Ok(None), "{end}");
        }
        for size in [1, 16, 700] {
            let parts = fragmented(&whole, size);
            assert_eq!(parse(&parts), Ok(Some("api.example.com".into())), "{size}");
            assert_eq!(parse(&parts[..parts.len() - 1]), Ok(None));
        }
    }

    #[test]
    fn without_a_name_there_is_none() {
        assert_eq!(parse(&hello("api.example.com", false)), Err(Nameless::Absent));
        assert_eq!(parse(&hello("192.0.2.1", true)), Err(Nameless::Absent));
        assert_eq!(parse(b"\x16\x03\x01\x00\x05hello"), Err(Nameless::Unreadable));
        assert_eq!(parse(b"\x16\x03\x01\xff\xffhello"), Err(Nameless::Unreadable));
        assert_eq!(parse(&hello("calc", true)), Err(Nameless::Unusable));
    }

    #[test]
    fn a_name_leads_somewhere_by_itself() {
        for name in ["a.b", "API.Example.com.", "x-1.y_2.example"] {
            assert!(usable(name).is_ok(), "{name}");
        }
        for name in
            ["", ".", "a", "a.", "a..b", ".a.b", "10.0.0.1", "a.1", "a b.c", "a/b.c", "a.b:1"]
        {
            assert_eq!(usable(name), Err(Nameless::Unusable), "{name}");
        }
        assert_eq!(usable(&format!("{}.b", "a".repeat(252))), Err(Nameless::Unusable));
    }
}
