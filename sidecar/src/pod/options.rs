//! What the sidecar is told, by the variables that injection sets.

use std::{collections::BTreeSet, net::IpAddr, path::PathBuf};

use aegis_audit::Durability;
use aegis_core::TrustDomain;
use anyhow::Context as _;
use base64::{Engine as _, prelude::BASE64_STANDARD};
use ed25519_dalek::VerifyingKey;

use crate::{
    ManifestMode,
    transparent::{Ports, Probe},
};

/// The enforcement point of one pod. Injection sets everything; nothing of it is the application's.
#[derive(Clone, Debug, clap::Parser)]
#[command(name = "aegis-sidecar", version)]
pub struct Options {
    /// The trust domain, such as acme.example
    #[arg(long, env = "AEGIS_TRUST_DOMAIN")]
    pub trust_domain: TrustDomain,
    /// Where the CA is: host:port
    #[arg(long, env = "AEGIS_CA_ADDRESS")]
    pub ca: String,
    /// Whom to believe at first: PEM certificates, or a SPIFFE bundle in JSON
    #[arg(long, env = "AEGIS_CA_ROOTS")]
    pub ca_roots: String,
    /// The file with the pod's token for the CA
    #[arg(long, env = "AEGIS_TOKEN", default_value = "/var/run/secrets/aegis/token")]
    pub token: PathBuf,
    /// Where the operator is: host:port
    #[arg(long, env = "AEGIS_OPERATOR_ADDRESS")]
    pub operator: String,
    /// The operator's public keys, in base64, with commas between
    #[arg(long, env = "AEGIS_OPERATOR_KEY")]
    pub operator_key: String,
    /// Where the ledger is: host:port. Without one, the record stays in this pod
    #[arg(long, env = "AEGIS_LEDGER_ADDRESS")]
    pub ledger: Option<String>,
    /// How far a record must be before anything goes on
    #[arg(long, env = "AEGIS_AUDIT", value_enum, default_value_t = AuditMode::Strict)]
    pub audit: AuditMode,
    /// What becomes of a peer whose sidecar shows no manifest that holds
    #[arg(long, env = "AEGIS_MANIFESTS", value_enum, default_value_t)]
    pub manifests: ManifestMode,
    /// Where the journal is until the ledger has it
    #[arg(long, env = "AEGIS_STATE", default_value = "/var/lib/aegis")]
    pub state: PathBuf,
    /// Where the application is served the SPIFFE Workload API
    #[arg(long, env = "AEGIS_WORKLOAD_SOCKET", default_value = "/run/aegis/workload.sock")]
    pub workload_socket: PathBuf,
    /// The pod's UID: each of its journals is named after it
    #[arg(long, env = "POD_UID")]
    pub pod_uid: String,
    /// The node's own addresses, with commas between
    #[arg(long, env = "AEGIS_NODE_ADDRESSES", default_value = "")]
    pub node_addresses: String,
    /// Where what the application sends is redirected to
    #[arg(long, env = "AEGIS_OUTBOUND_PORT", default_value_t = 15001)]
    pub outbound_port: u16,
    /// Where what comes to the application is redirected to
    #[arg(long, env = "AEGIS_INBOUND_PORT", default_value_t = 15006)]
    pub inbound_port: u16,
    /// Where health and metrics are served
    #[arg(long, env = "AEGIS_HEALTH_PORT", default_value_t = 15021)]
    pub health_port: u16,
    /// Ports of the application that speak MCP, with commas between
    #[arg(long, env = "AEGIS_MCP_PORTS", default_value = "")]
    pub mcp_ports: String,
    /// Ports of the application that speak A2A, with commas between
    #[arg(long, env = "AEGIS_A2A_PORTS", default_value = "")]
    pub a2a_ports: String,
    /// What the kubelet asks the application (JSON): a list of {"port", "path"}
    #[arg(long, env = "AEGIS_PROBES", default_value = "[]")]
    pub probes: String,
}

/// How far a record must be before anything goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum AuditMode {
    /// The ledger has acknowledged it
    Strict,
    /// It is queued; the answer waits until it is on disk
    Overlap,
    /// It is queued; a loss is counted and recorded
    Buffered,
}

impl AuditMode {
    /// As the journal calls it.
    #[must_use]
    pub const fn durability(self) -> Durability {
        match self {
            Self::Strict => Durability::Strict,
            Self::Overlap => Durability::Overlap,
            Self::Buffered => Durability::Buffered,
        }
    }
}

impl Options {
    /// What the pod declares about its ports.
    ///
    /// # Errors
    /// When something is no port, or no probe.
    pub fn ports(&self) -> anyhow::Result<Ports> {
        let probes: Vec<Probe> = serde_json::from_str(&self.probes)
            .context("AEGIS_PROBES is not a list of {\"port\", \"path\", \"grpc\"}")?;
        Ok(Ports {
            mcp: numbers("AEGIS_MCP_PORTS", &self.mcp_ports)?,
            a2a: numbers("AEGIS_A2A_PORTS", &self.a2a_ports)?,
            probes,
            own: BTreeSet::from([self.outbound_port, self.inbound_port, self.health_port]),
        })
    }

    /// The addresses of the node that this pod is on.
    ///
    /// # Errors
    /// When one is none.
    pub fn node(&self) -> anyhow::Result<Vec<IpAddr>> {
        let parts = self.node_addresses.split(',').map(str::trim).filter(|part| !part.is_empty());
        let addresses: Result<Vec<IpAddr>, _> = parts.map(str::parse).collect();
        addresses.with_context(|| {
            let text = &self.node_addresses;
            format!("AEGIS_NODE_ADDRESSES is `{text}`; expected addresses with commas between")
        })
    }

    /// Who may say what is to be enforced.
    ///
    /// # Errors
    /// When a key is none.
    pub fn operator_keys(&self) -> anyhow::Result<Vec<VerifyingKey>> {
        let keys = self.operator_key.split(',').map(|text| {
            let bytes = BASE64_STANDARD.decode(text.trim()).ok()?;
            VerifyingKey::from_bytes(&bytes.try_into().ok()?).ok()
        });
        let keys: Option<Vec<VerifyingKey>> = keys.collect();
        keys.context("AEGIS_OPERATOR_KEY holds something that is no Ed25519 public key in base64")
    }
}

fn numbers(name: &str, text: &str) -> anyhow::Result<BTreeSet<u16>> {
    let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
    let numbers: Result<BTreeSet<u16>, _> = parts.map(str::parse).collect();
    numbers.with_context(|| format!("{name} is `{text}`; expected ports with commas between"))
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    fn options(more: &[&str]) -> Options {
        let given = [
            "aegis-sidecar",
            "--trust-domain=acme.example",
            "--ca=aegis-ca:9442",
            "--ca-roots=x",
            "--operator=aegis-operator:9444",
            "--pod-uid=1",
        ];
        let mut all: Vec<&str> = given.to_vec();
        if !more.iter().any(|one| one.starts_with("--operator-key")) {
            all.push("--operator-key=AAAA");
        }
        all.extend(more);
        Options::parse_from(all)
    }

    #[test]
    fn what_injection_says_is_read() {
        let ports = options(&[
            "--mcp-ports=8080, 8081",
            "--probes=[{\"port\":8080},{\"port\":8080,\"path\":\"/healthz?full=1\"}]",
        ]);
        let ports = ports.ports().unwrap();
        assert_eq!(ports.mcp, BTreeSet::from([8080, 8081]));
        assert_eq!(ports.a2a, BTreeSet::new());
        assert_eq!(ports.own, BTreeSet::from([15001, 15006, 15021]));
        assert_eq!(ports.probes.len(), 2);
    }

    #[test]
    fn what_is_none_is_refused_with_its_name() {
        for (given, named) in [
            ("--mcp-ports=http", "AEGIS_MCP_PORTS"),
            ("--a2a-ports=70000", "AEGIS_A2A_PORTS"),
            ("--probes={}", "AEGIS_PROBES"),
        ] {
            let error = options(&[given]).ports().unwrap_err().to_string();
            assert!(error.contains(named), "{error}");
        }
        let error = options(&["--node-addresses=10.0.0"]).node().unwrap_err().to_string();
        assert!(error.contains("AEGIS_NODE_ADDRESSES"), "{error}");
        let node = options(&["--node-addresses=10.0.0.7,fd00::7"]).node().unwrap();
        assert_eq!(node, ["10.0.0.7".parse::<IpAddr>().unwrap(), "fd00::7".parse().unwrap()]);
        assert!(options(&[]).operator_keys().is_err());
        let key = ed25519_dalek::SigningKey::from_bytes(&[7; 32]).verifying_key();
        let text = format!("--operator-key={}", BASE64_STANDARD.encode(key.as_bytes()));
        assert_eq!(options(&[&text]).operator_keys().unwrap(), [key]);
    }
}
