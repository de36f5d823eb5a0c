//! Where the names of upstreams lead. In a pod an AgentUpstream's author must not lead the sidecar to
//! itself or to the node: to loopback, to link-local addresses such as those of cloud metadata.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    task::{Context, Poll},
};

use futures::future::BoxFuture;
use hyper_util::client::legacy::connect::dns::{GaiResolver, Name};
use tower::Service;

/// Which addresses may be connected to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reachable {
    /// Every address: servers of this machine are what is governed.
    Everything,
    /// No address of the pod itself or of its node.
    OtherHosts,
}

impl Reachable {
    /// Whether an address may be connected to.
    #[must_use]
    pub fn allows(self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        let own = address.is_loopback()
            || address.is_unspecified()
            || address.is_multicast()
            || match address {
                IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast(),
                IpAddr::V6(v6) => v6.is_unicast_link_local(),
            };
        self == Self::Everything || !own
    }

    /// Whether an address may be connected to, and is none of this pod's own interfaces.
    #[must_use]
    pub fn is_elsewhere(self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.allows(address) && (self == Self::Everything || !is_own(address))
    }

    /// Whether a host may be connected to, as far as its name tells: addresses are not resolved.
    #[must_use]
    pub fn allows_host(self, host: &str) -> bool {
        let address = host.trim_start_matches('[').trim_end_matches(']').parse();
        address.map_or(true, |address| self.allows(address))
    }
}

/// Whether this is the address of an interface here. What cannot be told is taken for one.
fn is_own(address: IpAddr) -> bool {
    let Ok(mut interfaces) = nix::ifaddrs::getifaddrs() else { return true };
    interfaces.any(|interface| {
        let own = interface.address.as_ref();
        let v4 = own.and_then(|own| own.as_sockaddr_in()).map(|own| IpAddr::V4(own.ip()));
        let v6 = own.and_then(|own| own.as_sockaddr_in6()).map(|own| IpAddr::V6(own.ip()));
        v4.or(v6) == Some(address)
    })
}

/// The system's resolver, without the addresses that may not be connected to.
#[derive(Clone, Debug)]
pub(crate) struct Resolver {
    system: GaiResolver,
    reachable: Reachable,
}

impl Resolver {
    pub(crate) fn new(reachable: Reachable) -> Self {
        Self { system: GaiResolver::new(), reachable }
    }
}

impl Service<Name> for Resolver {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = io::Error;
    type Future = BoxFuture<'static, io::Result<Self::Response>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.system.poll_ready(cx)
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let (resolving, reachable) = (self.system.call(name), self.reachable);
        Box::pin(async move {
            let allowed: Vec<SocketAddr> =
                resolving.await?.filter(|address| reachable.allows(address.ip())).collect();
            if allowed.is_empty() {
                return Err(io::Error::other("the name leads to this pod or its node alone"));
            }
            Ok(allowed.into_iter())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_does_not_reach_itself() {
        for address in [
            "127.0.0.1",
            "127.9.9.9",
            "0.0.0.0",
            "169.254.169.254",
            "224.0.0.1",
            "255.255.255.255",
            "[::1]",
            "[::]",
            "[fe80::1]",
            "[::ffff:127.0.0.1]",
            "[::ffff:169.254.169.254]",
        ] {
            assert!(!Reachable::OtherHosts.allows_host(address), "{address}");
            assert!(Reachable::Everything.allows_host(address), "{address}");
        }
        for address in ["10.0.0.1", "192.0.2.1", "[2001:db8::1]", "tools.example"] {
            assert!(Reachable::OtherHosts.allows_host(address), "{address}");
        }
    }

    #[test]
    fn an_interface_of_this_pod_is_not_elsewhere() {
        for interface in nix::ifaddrs::getifaddrs().unwrap() {
            let Some(own) = interface.address.as_ref().and_then(|own| own.as_sockaddr_in()) else {
                continue;
            };
            assert!(!Reachable::OtherHosts.is_elsewhere(own.ip().into()), "{own}");
            assert!(is_own(own.ip().into()), "{own}");
        }
        assert!(Reachable::OtherHosts.is_elsewhere("192.0.2.1".parse().unwrap()));
        assert!(Reachable::Everything.is_elsewhere("127.0.0.1".parse().unwrap()));
    }

    #[tokio::test]
    async fn nor_by_a_name() {
        let name = || "localhost".parse().unwrap();
        let everything = Resolver::new(Reachable::Everything).call(name()).await.unwrap();
        assert!(everything.count() > 0);
        assert!(Resolver::new(Reachable::OtherHosts).call(name()).await.is_err());
    }
}
