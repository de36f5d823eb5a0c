//! Where a connection was going before nftables redirected it.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use nix::sys::socket::{
    getsockopt,
    sockopt::{Ip6tOriginalDst, OriginalDst},
};
use tokio::net::TcpStream;

/// The original destination of a redirected connection (netfilter's `SO_ORIGINAL_DST`).
///
/// # Errors
/// When the connection was not redirected: somebody has connected to the port itself.
pub fn original_destination(stream: &TcpStream) -> io::Result<SocketAddr> {
    let local = stream.local_addr()?;
    let original = if local.is_ipv4() {
        let address = getsockopt(stream, OriginalDst)?;
        let ip = Ipv4Addr::from(u32::from_be(address.sin_addr.s_addr));
        SocketAddr::new(IpAddr::V4(ip), u16::from_be(address.sin_port))
    } else {
        let address = getsockopt(stream, Ip6tOriginalDst)?;
        let ip = Ipv6Addr::from(address.sin6_addr.s6_addr);
        SocketAddr::new(IpAddr::V6(ip), u16::from_be(address.sin6_port))
    };
    // Without a redirect the kernel may know the connection all the same.
    if original == local {
        return Err(io::Error::other("the connection was made to the sidecar's own port"));
    }
    Ok(original)
}
