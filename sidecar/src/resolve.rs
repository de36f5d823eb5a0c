//! Where the names of upstreams lead. In a pod an AgentUpstream's author must not lead the sidecar to
//! itself or to the node: to loopback, to link-local addresses such as those of cloud metadata.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    task::{Context, Poll},
};

use aegis_core::address;
use futures::future::BoxFuture;
use hyper_util::client::legacy::connect::dns::{GaiResolver, Name};
use tower::Service;

/// Which addresses may be connected to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reachable {
    /// Every address: servers of this machine are what is governed.
    Everything,
    /// No address of the pod itself or of its node, whose own ones are these.
    OtherHosts(Arc<[IpAddr]>),
}

impl Reachable {
    /// Whether an address may be connected to.
    #[must_use]
    pub fn allows(&self, to: IpAddr) -> bool {
        match self {
            Self::Everything => true,
            Self::OtherHosts(node) => {
                let same = |own: &IpAddr| address::unpacked(*own) == address::unpacked(to);
                !address::is_here(to) && !node.iter().any(same)
            }
        }
    }

    /// Whether an address may be connected to, and is none of this pod's own interfaces.
    #[must_use]
    pub fn is_elsewhere(&self, to: IpAddr) -> bool {
        self.allows(to) && (*self == Self::Everything || !is_own(to))
    }

    /// Whether a host may be connected to, as far as its name tells: addresses are not resolved.
    #[must_use]
    pub fn allows_host(&self, host: &str) -> bool {
        let address = host.trim_start_matches('[').trim_end_matches(']').parse();
        address.map_or(true, |address| self.allows(address))
    }
}

/// Whether this is the address of an interface here. What cannot be told is taken for one.
fn is_own(to: IpAddr) -> bool {
    let Ok(mut interfaces) = nix::ifaddrs::getifaddrs() else { return true };
    let Some(to) = address::unpacked(to) else { return true };
    interfaces.any(|interface| {
        let own = interface.address.as_ref();
        let v4 = own.and_then(|own| own.as_sockaddr_in()).map(|own| IpAddr::V4(own.ip()));
        let v6 = own.and_then(|own| own.as_sockaddr_in6()).map(|own| IpAddr::V6(own.ip()));
        v4.or(v6) == Some(to)
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
        let (resolving, reachable) = (self.system.call(name), self.reachable.clone());
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

    fn other_hosts(node: &[&str]) -> Reachable {
        Reachable::OtherHosts(node.iter().map(|own| own.parse().unwrap()).collect())
    }

    #[test]
    fn a_pod_does_not_reach_itself() {
        let other_hosts = other_hosts(&[]);
        for address in [
            "127.0.0.1",
            "0.0.0.0",
            "169.254.169.254",
            "[::1]",
            "[fe80::1]",
            "[fd00:ec2::254]",
            "[::ffff:169.254.169.254]",
            "[64:ff9b::a9fe:a9fe]",
            "[2002:7f00:1::]",
        ] {
            assert!(!other_hosts.allows_host(address), "{address}");
            assert!(Reachable::Everything.allows_host(address), "{address}");
        }
        for address in ["10.0.0.1", "192.0.2.1", "[2001:db8::1]", "tools.example"] {
            assert!(other_hosts.allows_host(address), "{address}");
        }
    }

    #[test]
    fn nor_its_node() {
        let other_hosts = other_hosts(&["10.1.2.3", "2001:db8::7"]);
        for address in [
            "10.1.2.3",
            "[2001:db8::7]",
            "[::ffff:10.1.2.3]",
            "[64:ff9b::a01:203]",
            "[2002:a01:203::1]",
        ] {
            assert!(!other_hosts.allows_host(address), "{address}");
        }
        assert!(other_hosts.allows_host("10.1.2.4"));
    }

    #[test]
    fn an_interface_of_this_pod_is_not_elsewhere() {
        let other_hosts = other_hosts(&[]);
        for interface in nix::ifaddrs::getifaddrs().unwrap() {
            let Some(own) = interface.address.as_ref().and_then(|own| own.as_sockaddr_in()) else {
                continue;
            };
            assert!(!other_hosts.is_elsewhere(own.ip().into()), "{own}");
            assert!(is_own(own.ip().into()), "{own}");
            assert!(is_own(own.ip().to_ipv6_mapped().into()), "{own}");
        }
        assert!(other_hosts.is_elsewhere("192.0.2.1".parse().unwrap()));
        assert!(Reachable::Everything.is_elsewhere("127.0.0.1".parse().unwrap()));
    }

    #[tokio::test]
    async fn nor_by_a_name() {
        let name = || "localhost".parse().unwrap();
        let everything = Resolver::new(Reachable::Everything).call(name()).await.unwrap();
        assert!(everything.count() > 0);
        assert!(Resolver::new(other_hosts(&[])).call(name()).await.is_err());
    }
}
