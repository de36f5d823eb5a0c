//! What a pod says about its ports: which speak MCP or A2A, and which the kubelet probes.

use std::collections::BTreeSet;

use serde::Serialize;
use serde_json::Value;

use super::{A2A_PORTS, INJECTED, MCP_PORTS, Refusal, name_of};

/// The most ports that can be declared.
const MAX_PORTS: usize = 32;

/// A port's protocols and probes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Declared {
    /// Ports that speak MCP.
    pub mcp: BTreeSet<u16>,
    /// Ports that speak A2A.
    pub a2a: BTreeSet<u16>,
    /// What the kubelet asks: it has no SVID, so the sidecar lets exactly these through.
    pub probes: BTreeSet<Probe>,
}

/// One thing that the kubelet asks the application.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Probe {
    /// The port.
    pub port: u16,
    /// For HTTP: the path.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// For gRPC: the service whose health is asked for; the server's own is the empty one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grpc: Option<String>,
}

/// Reads what is declared; unknown annotations of Aegis are warned about.
pub(super) fn read(pod: &Value) -> Result<(Declared, Vec<String>), Refusal> {
    let mut declared = Declared::default();
    let mut warnings = Vec::new();
    let annotations = pod.pointer("/metadata/annotations").and_then(Value::as_object);
    for (name, value) in annotations.into_iter().flatten() {
        match name.as_str() {
            MCP_PORTS => declared.mcp.extend(ports(name, value)?),
            A2A_PORTS => declared.a2a.extend(ports(name, value)?),
            INJECTED => {}
            other if other.starts_with("aegis.dev/") => {
                warnings.push(format!("annotation `{other}` means nothing to Aegis"));
            }
            _ => {}
        }
    }
    for container in containers(pod) {
        for port in container.get("ports").and_then(Value::as_array).into_iter().flatten() {
            let number = port.get("containerPort").and_then(Value::as_u64);
            let Some(number) = number.and_then(|n| u16::try_from(n).ok()) else { continue };
            let name = name_of(port);
            if name == "mcp" || name.starts_with("mcp-") {
                declared.mcp.insert(number);
            } else if name == "a2a" || name.starts_with("a2a-") {
                declared.a2a.insert(number);
            }
        }
        for probe in ["startupProbe", "readinessProbe", "livenessProbe"] {
            declared.probes.extend(container.get(probe).and_then(|probe| asked(probe, container)));
        }
        for hook in ["postStart", "preStop"] {
            let hook = container.get("lifecycle").and_then(|lifecycle| lifecycle.get(hook));
            declared.probes.extend(hook.and_then(|hook| asked(hook, container)));
        }
    }
    if let Some(port) = declared.mcp.intersection(&declared.a2a).next() {
        return Err(Refusal::new(
            "BadAnnotation",
            format!("port {port} is declared as MCP and as A2A; keep one"),
        ));
    }
    Ok((declared, warnings))
}

fn containers(pod: &Value) -> impl Iterator<Item = &Value> {
    ["initContainers", "containers"]
        .into_iter()
        .filter_map(|list| pod.pointer(&format!("/spec/{list}")).and_then(Value::as_array))
        .flatten()
}

fn ports(name: &str, value: &Value) -> Result<Vec<u16>, Refusal> {
    let text = value.as_str().unwrap_or_default();
    let parsed: Option<Vec<u16>> =
        text.split(',').map(|port| port.trim().parse().ok().filter(|port| *port != 0)).collect();
    match parsed {
        Some(ports) if ports.len() <= MAX_PORTS => Ok(ports),
        _ => Err(Refusal::new(
            "BadAnnotation",
            format!(
                "annotation `{name}` must be at most {MAX_PORTS} port numbers with commas between"
            ),
        )),
    }
}

/// What a probe asks, with named ports resolved.
fn asked(probe: &Value, container: &Value) -> Option<Probe> {
    let port = |handler: &Value| {
        let port = handler.get("port")?;
        match port.as_str() {
            Some(name) => {
                let ports = container.get("ports").and_then(Value::as_array)?;
                let named = ports.iter().find(|port| name_of(port) == name)?;
                u16::try_from(named.get("containerPort")?.as_u64()?).ok()
            }
            None => u16::try_from(port.as_u64()?).ok(),
        }
    };
    if let Some(http) = probe.get("httpGet") {
        let path = http.get("path").and_then(Value::as_str).filter(|path| !path.is_empty());
        let path = Some(path.unwrap_or("/").to_owned());
        return Some(Probe { port: port(http)?, path, grpc: None });
    }
    if let Some(grpc) = probe.get("grpc") {
        let service = grpc.get("service").and_then(Value::as_str).unwrap_or_default();
        return Some(Probe { port: port(grpc)?, path: None, grpc: Some(service.to_owned()) });
    }
    let tcp = probe.get("tcpSocket")?;
    Some(Probe { port: port(tcp)?, path: None, grpc: None })
}
