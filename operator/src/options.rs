//! How the operator is run: its flags.

use std::{net::SocketAddr, path::PathBuf};

use aegis_core::TrustDomain;
use serde_json::{Map, Value};

/// The name of the operator: of its Lease, and in Events.
pub const NAME: &str = "aegis-operator";

/// How the operator is run.
#[derive(Clone, Debug, clap::Parser)]
#[command(name = "aegis-operator", version)]
pub struct Options {
    /// The trust domain of the agents, such as acme.example
    #[arg(long, env = "AEGIS_TRUST_DOMAIN")]
    pub trust_domain: TrustDomain,
    /// The operator's own namespace, where its Lease and its Secrets are
    #[arg(long, env = "POD_NAMESPACE", default_value = "aegis-system")]
    pub namespace: String,
    /// The name of this replica
    #[arg(long, env = "POD_NAME", default_value = NAME)]
    pub instance: String,
    /// Where health and metrics are served
    #[arg(long, env = "AEGIS_ADMIN_ADDRESS", default_value = "0.0.0.0:9490")]
    pub admin: SocketAddr,
    /// Where compiled policies are kept between restarts; none if absent
    #[arg(long, env = "AEGIS_CACHE_DIRECTORY")]
    pub cache: Option<PathBuf>,
    /// How pods are injected (JSON); without it, webhooks are not served
    #[arg(long, env = "AEGIS_INJECT_CONFIG")]
    pub inject_config: Option<PathBuf>,
    /// Where the webhooks are served
    #[arg(long, env = "AEGIS_WEBHOOK_ADDRESS", default_value = "0.0.0.0:9443")]
    pub webhook: SocketAddr,
    /// The Service in front of the webhooks
    #[arg(long, env = "AEGIS_WEBHOOK_SERVICE", default_value = NAME)]
    pub service: String,
    /// What the API server puts before e-mail addresses in user names, such as oidc:
    #[arg(long, env = "AEGIS_USER_PREFIX", default_value = "")]
    pub user_prefix: String,
    /// Where the mesh is; without it, nothing is distributed.
    #[command(flatten)]
    pub mesh: Option<MeshOptions>,
}

/// Where the mesh is: all of these, or none.
#[derive(Clone, Debug, clap::Args)]
pub struct MeshOptions {
    /// The CA: host:port. Without it, the operator has no SVID and hands nothing to sidecars
    #[arg(
        long,
        env = "AEGIS_CA_ADDRESS",
        required = false,
        requires_all = ["token", "distribution", "distribution_service"]
    )]
    pub ca: String,
    /// The file with the token by which the CA knows the operator
    #[arg(long, env = "AEGIS_TOKEN_FILE", required = false, requires = "ca")]
    pub token: PathBuf,
    /// Where the leader serves what sidecars enforce
    #[arg(long, env = "AEGIS_DISTRIBUTION_ADDRESS", required = false, requires = "ca")]
    pub distribution: SocketAddr,
    /// The Service in front of that, as sidecars are told it: host:port
    #[arg(long, env = "AEGIS_OPERATOR_ADDRESS", required = false, requires = "ca")]
    pub distribution_service: String,
    /// The ledger, as sidecars are told it: host:port
    #[arg(long, env = "AEGIS_LEDGER_ADDRESS", requires = "ca")]
    pub ledger: Option<String>,
}

impl MeshOptions {
    /// What each sidecar is told about where things are.
    #[must_use]
    pub fn addresses(&self, trust_domain: &TrustDomain) -> Map<String, Value> {
        let ledger = self.ledger.as_ref().map(|ledger| ("AEGIS_LEDGER_ADDRESS", ledger.as_str()));
        let told = [
            ("AEGIS_TRUST_DOMAIN", trust_domain.as_str()),
            ("AEGIS_CA_ADDRESS", &self.ca),
            ("AEGIS_OPERATOR_ADDRESS", &self.distribution_service),
        ];
        let told = told.into_iter().chain(ledger);
        told.map(|(name, value)| (name.to_owned(), value.into())).collect()
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    fn parsed(more: &[&str]) -> Result<Options, String> {
        let flags = ["aegis-operator", "--trust-domain", "acme.example"];
        Options::try_parse_from(flags.iter().chain(more)).map_err(|error| error.to_string())
    }

    #[test]
    fn the_mesh_is_named_whole_or_not_at_all() {
        assert!(parsed(&[]).unwrap().mesh.is_none());
        let error = parsed(&["--ca", "aegis-ca:9442"]).unwrap_err();
        assert!(error.contains("--token") && error.contains("--distribution-service"), "{error}");
        assert!(parsed(&["--ledger", "aegis-ledger:9445"]).is_err());
        let flags = ["--ca=ca:1", "--token=t", "--distribution=0.0.0.0:2"];
        let mut all = flags.to_vec();
        all.push("--distribution-service=operator:2");
        let mesh = parsed(&all).unwrap().mesh.unwrap();
        let domain: TrustDomain = "acme.example".parse().unwrap();
        let told = mesh.addresses(&domain);
        assert_eq!(told.get("AEGIS_OPERATOR_ADDRESS"), Some(&"operator:2".into()));
        assert_eq!((told.len(), told.get("AEGIS_LEDGER_ADDRESS")), (3, None));
    }
}
