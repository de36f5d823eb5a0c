//! The pod's default gateways, as the kernel's tables have them. Where the node's end of the pod's
//! network is one, the kubelet's probes come from there and not from the node's own address.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Those of both families; none where the tables cannot be read.
pub(super) fn gateways() -> Vec<IpAddr> {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let (v4, v6) = (read("/proc/net/route"), read("/proc/net/ipv6_route"));
    v4.lines().filter_map(gateway_v4).chain(v6.lines().filter_map(gateway_v6)).collect()
}

/// `eth0 00000000 0100F40A …`: the device, the destination and the gateway, in the machine's own order.
fn gateway_v4(line: &str) -> Option<IpAddr> {
    let mut words = line.split_ascii_whitespace().skip(1);
    let (to, by) = (words.next()?, words.next()?);
    let mask = words.nth(4)?;
    let by = u32::from_str_radix(by, 16).ok()?;
    let is_default = to == "00000000" && mask == "00000000" && by != 0;
    is_default.then(|| Ipv4Addr::from(by.to_ne_bytes()).into())
}

/// The destination, its length, the source, its length and the gateway.
fn gateway_v6(line: &str) -> Option<IpAddr> {
    let mut words = line.split_ascii_whitespace();
    let (to, length) = (words.next()?, words.next()?);
    let by = Ipv6Addr::from(u128::from_str_radix(words.nth(2)?, 16).ok()?);
    let is_default = length == "00" && to.bytes().all(|digit| digit == b'0');
    (is_default && !by.is_unspecified()).then_some(by.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_default_routes_have_gateways_that_count() {
        let little = u32::from_ne_bytes([10, 244, 0, 1]);
        let default = format!("eth0\t00000000\t{little:08X}\t0003\t0\t0\t0\t00000000\t0\t0\t0");
        assert_eq!(gateway_v4(&default), Some([10, 244, 0, 1].into()));
        for line in [
            "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT",
            "eth0\t0000F40A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0",
            "eth0\t00000000\t00000000\t0001\t0\t0\t0\t00000000\t0\t0\t0",
            "",
        ] {
            assert_eq!(gateway_v4(line), None, "{line}");
        }
        let (zero, by) = ("0".repeat(32), "fd000000000000000000000000000001");
        let default = format!("{zero} 00 {zero} 00 {by} 00000400 1 0 3 eth0");
        assert_eq!(gateway_v6(&default), Some("fd00::1".parse().unwrap()));
        for line in [
            format!("{by} 80 {zero} 00 {zero} 00000400 1 0 3 eth0"),
            format!("{zero} 00 {zero} 00 {zero} ffffffff 1 0 200200 lo"),
            String::new(),
        ] {
            assert_eq!(gateway_v6(&line), None, "{line}");
        }
    }
}
