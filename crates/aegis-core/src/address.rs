//! Where an address leads: to the public internet, or to whoever connects and what is next to it.
//!
//! Only the text of the address tells, nobody is asked. An IPv6 address that holds an IPv4 one is
//! what it holds, wherever a network translates it: mapped, compatible, translated (RFC 2765, RFC
//! 6052) or 6to4. What cannot be unpacked for certain is no public place.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Where clouds tell a machine who it is and hand it credentials, besides the link-local addresses
/// (Azure, Alibaba). Each is also refused where it looks public.
const METADATA_V4: [Ipv4Addr; 2] =
    [Ipv4Addr::new(168, 63, 129, 16), Ipv4Addr::new(100, 100, 100, 200)];
/// The same in IPv6: Google, Oracle.
const METADATA_V6: [Ipv6Addr; 2] = [
    Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254),
    Ipv6Addr::new(0xfd00, 0xc1, 0, 0, 0, 0, 0xa9fe, 0xa9fe),
];

/// Whether an address is one of the public internet: not of this machine, a private network, a link
/// or a provider, and none that holds such a one.
#[must_use]
pub fn is_public(address: IpAddr) -> bool {
    match unpacked(address) {
        Some(IpAddr::V4(v4)) => is_public_v4(v4),
        Some(IpAddr::V6(v6)) => is_public_v6(v6),
        None => false,
    }
}

/// Whether an address leads back to whoever connects, to all of its link, or to what a cloud tells
/// a machine of itself. What is here on other interfaces, and the node's own addresses, only those
/// know who run there.
#[must_use]
pub fn is_here(address: IpAddr) -> bool {
    let Some(address) = unpacked(address) else { return true };
    let link = match address {
        IpAddr::V4(v4) => {
            // "This network", of which Linux takes every address for itself.
            v4.is_link_local() || v4.is_broadcast() || v4.octets()[0] == 0
        }
        IpAddr::V6(v6) => v6.is_unicast_link_local() || is_site_local(v6),
    };
    link || address.is_loopback()
        || address.is_unspecified()
        || address.is_multicast()
        || is_metadata(address)
}

/// The address that one is or holds, so that two spellings of a place are one; `None` for one whose
/// content cannot be told.
#[must_use]
pub fn unpacked(address: IpAddr) -> Option<IpAddr> {
    let IpAddr::V6(v6) = address else { return Some(address) };
    let v4 = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        Some(Ipv4Addr::new(a, b, c, d).into())
    };
    match v6.segments() {
        [0, 0, 0, 0, 0, 0, 0, 0 | 1] => Some(address),
        // Compatible, mapped, translated by SIIT, by NAT64 under its well-known prefix, and 6to4.
        [0, 0, 0, 0, 0, 0 | 0xffff, high, low]
        | [0, 0, 0, 0, 0xffff, 0, high, low]
        | [0x64, 0xff9b, 0, 0, 0, 0, high, low]
        | [0x2002, high, low, ..] => v4(high, low),
        // NAT64 under a prefix of the network's own (RFC 8215), whose length only it knows; Teredo,
        // which hides what it holds.
        [0x64, 0xff9b, 1, ..] | [0x2001, 0, ..] => None,
        _ => Some(address),
    }
}

/// By the IANA registry of special addresses.
fn is_public_v4(v4: Ipv4Addr) -> bool {
    let [a, b, c, _] = v4.octets();
    !(v4.is_private()
        || v4.is_loopback()
        || v4.is_link_local()
        || v4.is_documentation()
        || a == 0
        || a >= 224
        || (a == 100 && (64..128).contains(&b))
        || (a == 192 && b == 0 && c == 0)
        || (a == 198 && (b == 18 || b == 19))
        || METADATA_V4.contains(&v4))
}

fn is_public_v6(v6: Ipv6Addr) -> bool {
    match v6.segments() {
        // Benchmarking, ORCHID, documentation.
        [0x2001, 0..0x200, ..] | [0x2001, 0xdb8, ..] => false,
        [first, ..] => (0x2000..0x3ff0).contains(&first),
    }
}

/// Given up (RFC 3879), and still routed to the link by some.
fn is_site_local(v6: Ipv6Addr) -> bool {
    v6.segments()[0] & 0xffc0 == 0xfec0
}

fn is_metadata(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => METADATA_V4.contains(&v4),
        // Amazon's are all under one prefix.
        IpAddr::V6(v6) => matches!(v6.segments(), [0xfd00, 0xec2, ..]) || METADATA_V6.contains(&v6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn only_public_addresses_are_public() {
        for public in
            ["93.184.216.34", "2606:2800:220:1::1", "64:ff9b::5db8:d822", "2002:5db8:d822::"]
        {
            assert!(is_public(address(public)) && !is_here(address(public)), "{public}");
        }
        for private in [
            "10.0.0.1",
            "172.16.0.1",
            "192.168.1.1",
            "100.64.0.1",
            "192.0.0.9",
            "192.0.2.1",
            "198.18.0.1",
            "240.0.0.1",
            "168.63.129.16",
            "fd00::1",
            "2001:db8::1",
            "2001:0:1::1",
            "64:ff9b:1::5db8:d822",
            "64:ff9b::a00:1",
            "2002:a00:1::",
            "::ffff:10.0.0.1",
            "::10.0.0.1",
            "::ffff:0:10.0.0.1",
        ] {
            assert!(!is_public(address(private)), "{private}");
        }
    }

    #[test]
    fn what_leads_back_is_known_however_it_is_packed() {
        for here in [
            "127.0.0.1",
            "127.9.9.9",
            "0.0.0.0",
            "0.1.2.3",
            "169.254.169.254",
            "224.0.0.1",
            "255.255.255.255",
            "168.63.129.16",
            "100.100.100.200",
            "::1",
            "::",
            "fe80::a9fe:a9fe",
            "fec0::1",
            "ff02::1",
            "fd00:ec2::254",
            "fd20:ce::254",
            "fd00:c1::a9fe:a9fe",
            "::ffff:127.0.0.1",
            "::127.0.0.1",
            "::ffff:0:127.0.0.1",
            "64:ff9b::7f00:1",
            "64:ff9b::a9fe:a9fe",
            "64:ff9b:1::a9fe:a9fe",
            "2002:7f00:1::1",
            "2002:a9fe:a9fe::",
            "2001:0:4136:e378:8000:63bf:5601:5601",
        ] {
            assert!(is_here(address(here)) && !is_public(address(here)), "{here}");
        }
        for elsewhere in ["10.0.0.1", "192.0.2.1", "fd00::1", "2001:db8::1", "64:ff9b::a00:1"] {
            assert!(!is_here(address(elsewhere)), "{elsewhere}");
        }
    }
}
