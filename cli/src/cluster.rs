//! Aegis in a Kubernetes cluster, asked with the rights of whoever asks: objects of the API server,
//! and the ledger behind its Service through the API server's proxy. There is no other way in.

pub(crate) mod approvals;
pub(crate) mod status;

use std::sync::Arc;

use aegis_api::{Client, client::Through, control::TrustView};
use anyhow::{Context as _, bail};
use http::Request;
use kube::{
    Config,
    client::Body,
    config::{KubeConfigOptions, Kubeconfig},
};
use serde::Deserialize;
use serde_json::Value;

use crate::log::encode;

/// The ledger's Service, and the port where its log is read.
const LEDGER: &str = "aegis-ledger:http";
/// Aegis' own kinds.
const KINDS: &str = "/apis/aegis.dev/v1alpha1";
/// How many objects are asked for at once.
const PAGE: u32 = 500;

/// Which cluster is asked, if one is.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "In a cluster")]
pub(crate) struct ClusterArgs {
    /// Ask the cluster of the kubeconfig, with your own rights there, instead of a daemon
    #[arg(long, global = true)]
    cluster: bool,
    /// The kubeconfig's context. Default: its current one
    #[arg(long, global = true, value_name = "NAME")]
    context: Option<String>,
    /// The namespace that Aegis runs in
    #[arg(long, global = true, value_name = "NAME", default_value = "aegis-system")]
    namespace: String,
}

impl ClusterArgs {
    /// The cluster that is asked; `None` where a daemon is.
    ///
    /// # Errors
    /// When there is no such cluster.
    pub(crate) async fn connect(&self) -> anyhow::Result<Option<Cluster>> {
        if !self.cluster {
            if self.context.is_some() {
                bail!("--context names a cluster; add --cluster to ask it");
            }
            return Ok(None);
        }
        let context = self.context.clone();
        let options = KubeConfigOptions { context, ..KubeConfigOptions::default() };
        // In a pod there is no kubeconfig, and the pod's own account asks.
        let config = match Kubeconfig::read() {
            Err(_) if self.context.is_none() => Config::infer().await.map_err(anyhow::Error::from),
            _ => Config::from_kubeconfig(&options).await.map_err(anyhow::Error::from),
        };
        let config = config.context("there is no cluster to ask; set KUBECONFIG")?;
        let server = config.cluster_url.to_string();
        let client = kube::Client::try_from(config)
            .with_context(|| format!("the cluster {server} cannot be asked"))?;
        Ok(Some(Cluster { client, server, namespace: self.namespace.clone() }))
    }
}

/// A cluster that is asked.
pub(crate) struct Cluster {
    client: kube::Client,
    server: String,
    namespace: String,
}

/// A page of what the ledger says of trust.
#[derive(Deserialize)]
struct TrustPage {
    agents: Vec<TrustView>,
    next: Option<String>,
}

impl Cluster {
    /// Where it is.
    pub(crate) fn server(&self) -> &str {
        &self.server
    }

    /// Asks for its ledger's own paths.
    pub(crate) fn ledger(&self) -> Client {
        let base = format!("/api/v1/namespaces/{}/services/{LEDGER}/proxy", self.namespace);
        let client = self.client.clone();
        let through: Through = Arc::new(move |path| {
            let (client, uri) = (client.clone(), format!("{base}{path}"));
            Box::pin(async move {
                let request = Request::get(uri).body(Body::empty()).map_err(|e| e.to_string())?;
                let response = client.send(request).await.map_err(|e| e.to_string())?;
                let status = response.status();
                let body = response.into_body().collect_bytes().await.map_err(|e| e.to_string())?;
                Ok((status, body))
            })
        });
        Client::through(&format!("of the cluster {}", self.server), through)
    }

    /// What its ledger says of the trust in all agents.
    ///
    /// # Errors
    /// When it is not reached, or does not know yet.
    pub(crate) async fn trust(&self) -> anyhow::Result<Vec<TrustView>> {
        let (ledger, mut all, mut path) =
            (self.ledger(), Vec::new(), "/v1/trust?limit=1000".to_owned());
        loop {
            let page: TrustPage = ledger.get(&path).await?;
            all.extend(page.agents);
            match page.next {
                Some(last) => path = format!("/v1/trust?limit=1000&after={}", encode(&last)),
                None => return Ok(all),
            }
        }
    }

    /// All objects under a path of the API server, such as `/api/v1/namespaces`.
    ///
    /// # Errors
    /// When the API server does not tell them.
    async fn list(&self, path: &str, selector: &str) -> anyhow::Result<Vec<Value>> {
        let (mut all, mut next) = (Vec::new(), String::new());
        loop {
            let more = if next.is_empty() { next } else { format!("&continue={}", encode(&next)) };
            let uri = format!("{path}?limit={PAGE}{selector}{more}");
            let request = Request::get(uri).body(Vec::new())?;
            let mut page: Value = self.client.request(request).await.with_context(|| {
                format!("the cluster {} does not tell what is at {path}", self.server)
            })?;
            next = text(&page, "/metadata/continue").to_owned();
            if let Some(Value::Array(items)) = page.get_mut("items").map(Value::take) {
                all.extend(items);
            }
            if next.is_empty() {
                return Ok(all);
            }
        }
    }
}

/// A member's text; empty where there is none.
fn text<'v>(value: &'v Value, pointer: &str) -> &'v str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// `namespace/name`, or the name of what has no namespace.
fn full_name(object: &Value) -> String {
    let name = text(object, "/metadata/name");
    match text(object, "/metadata/namespace") {
        "" => name.to_owned(),
        namespace => format!("{namespace}/{name}"),
    }
}
