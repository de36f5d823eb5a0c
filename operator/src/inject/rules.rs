//! The nftables rules of a pod: one table for both IP versions, put in force as a whole.
//!
//! Everything that the application sends over TCP goes to the sidecar, everything that comes in too;
//! only the sidecar's own user is left alone. On loopback, ports that are declared as MCP or A2A are
//! redirected as well. What the sidecar cannot read is dropped, in both directions: QUIC, so that clients
//! take TCP, and every other UDP, ICMP and the rest, in which whatever the application knows could be
//! carried away. What is left are names (port 53) and how IPv6 finds its neighbours. After the redirect
//! no TCP of the application leaves but over loopback: not even the answers of who has taken the
//! sidecar's ports while it was down.

use std::fmt::Write as _;

use super::{Declared, InjectConfig};

/// The rules, as `nft` takes them in one transaction. Running them again changes nothing.
#[must_use]
pub fn ruleset(config: &InjectConfig, declared: &Declared) -> String {
    let InjectConfig { uid, outbound_port, inbound_port, health_port, .. } = config;
    let ports: Vec<String> = declared.mcp.union(&declared.a2a).map(ToString::to_string).collect();
    let mut loopback = String::new();
    if !ports.is_empty() {
        let _ = write!(
            loopback,
            "\n    oifname \"lo\" tcp dport {{ {} }} redirect to :{outbound_port}",
            ports.join(", ")
        );
    }
    // Adding a table that is there does nothing, so deleting it afterwards never fails.
    format!(
        "add table inet aegis
delete table inet aegis
table inet aegis {{
  chain outbound {{
    type nat hook output priority -100; policy accept;
    meta skuid {uid} return{loopback}
    oifname \"lo\" return
    meta l4proto tcp redirect to :{outbound_port}
  }}
  chain inbound {{
    type nat hook prerouting priority -100; policy accept;
    tcp dport {health_port} return
    meta l4proto tcp redirect to :{inbound_port}
  }}
  chain unseen {{
    type filter hook output priority 0; policy accept;
    oifname \"lo\" accept
    meta skuid {uid} accept
    meta l4proto tcp accept
    udp dport 53 accept
    ct direction reply accept
    icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert, nd-router-solicit, mld-listener-report, mld2-listener-report }} accept
    drop
  }}
  chain kept {{
    type filter hook postrouting priority 0; policy accept;
    oifname != \"lo\" meta l4proto tcp meta skuid != {uid} drop
  }}
  chain arriving {{
    type filter hook input priority 0; policy accept;
    iifname \"lo\" accept
    meta l4proto tcp accept
    ct state established,related accept
    icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert, nd-router-advert, mld-listener-query }} accept
    drop
  }}
}}
"
    )
}
