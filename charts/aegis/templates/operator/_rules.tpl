{{- /* The nftables rules of an injected pod, as the operator writes them; after `return` it puts one line for declared ports. */}}
{{- define "aegis.rules.head" -}}
add table inet aegis
delete table inet aegis
table inet aegis {
  chain outbound {
    type nat hook output priority -100; policy accept;
    meta skuid {{ .uid | int64 }} return
{{- end }}
{{- define "aegis.rules.tail" }}
    oifname "lo" return
    meta l4proto tcp redirect to :{{ .outboundPort | int64 }}
  }
  chain inbound {
    type nat hook prerouting priority -100; policy accept;
    tcp dport {{ .healthPort | int64 }} return
    meta l4proto tcp redirect to :{{ .inboundPort | int64 }}
  }
  chain unseen {
    type filter hook output priority 0; policy accept;
    oifname "lo" accept
    meta skuid {{ .uid | int64 }} accept
    meta l4proto tcp accept
    udp dport 53 accept
    ct direction reply accept
    icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert, nd-router-solicit, mld-listener-report, mld2-listener-report } accept
    drop
  }
  chain kept {
    type filter hook postrouting priority 0; policy accept;
    oifname != "lo" meta l4proto tcp meta skuid != {{ .uid | int64 }} drop
  }
  chain arriving {
    type filter hook input priority 0; policy accept;
    iifname "lo" accept
    meta l4proto tcp accept
    ct state established,related accept
    icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert, nd-router-advert, mld-listener-query } accept
    drop
  }
}
{{ end }}
{{- /* The line for declared ports, as a regular expression. */}}
{{- define "aegis.rules.declared" -}}
\n    oifname "lo" tcp dport [{] [0-9]+(, [0-9]+)* [}] redirect to :{{ .outboundPort | int64 }}
{{- end }}
