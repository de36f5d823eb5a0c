//! From a token to who its pod may be.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use aegis_api::authority::AUDIENCE;
use aegis_core::{Digest, Timestamp, TrustDomain};
use aegis_identity::Clock;
use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use k8s_openapi::api::{authentication::v1::TokenReviewStatus, core::v1::Pod};
use parking_lot::Mutex;
use serde::Deserialize;
use tokio::sync::Semaphore;

use super::{Cluster, Identities, LookupError};
use aegis_mesh::limits::Rate;

use crate::Registration;

/// The longest token that is looked at.
const MAX_TOKEN_BYTES: usize = 16 * 1024;
/// How long an answer of the API server about a token and its pod is believed.
const BELIEVED: Duration = Duration::from_secs(10);
/// How many answers are remembered.
const MAX_ANSWERS: usize = 20_000;
/// How many questions are put to the API server at a time.
const MAX_REVIEWS: usize = 32;
/// What one pod may ask: so many a second, after so many at once.
const POD_RATE: (u32, u32) = (2, 20);
/// What the user of a ServiceAccount begins with.
const ACCOUNT: &str = "system:serviceaccount:";
/// Where the API server says for which pod a token was made.
const EXTRA: &str = "authentication.kubernetes.io/";

/// Who a token's holder may be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Attested {
    /// An agent, by its one AgentIdentity.
    Agent(Box<Registration>),
    /// A component of Aegis: `spiffe://<trust domain>/aegis/<name>`.
    Component(String),
}

/// Why nobody is recognised.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// Not something that the API server needs to see.
    #[error("the token is no ServiceAccount token")]
    Malformed,
    /// The API server does not know it, or no longer.
    #[error("the token is not valid: {0}")]
    Invalid(String),
    /// For somebody else.
    #[error("the token is not for the audience {AUDIENCE}")]
    Audience,
    /// Not bound to a pod on a node.
    #[error("the token of {0} is not bound to a pod on a node; project it into the pod")]
    Unbound(String),
    /// The pod is not what the token says.
    #[error("the pod {pod} is not as its token says: {why}")]
    Pod {
        /// Namespace and name.
        pod: String,
        /// What differs.
        why: &'static str,
    },
    /// Nobody has registered the pod.
    #[error("no AgentIdentity of its namespace selects the pod {0}")]
    Unregistered(String),
    /// Several have.
    #[error(
        "{count} AgentIdentities select the pod {pod}, among them {first} and {second}; make their labels differ"
    )]
    Ambiguous {
        /// Namespace and name.
        pod: String,
        /// How many.
        count: usize,
        /// One.
        first: String,
        /// Another.
        second: String,
    },
    /// The one that selects it cannot be used.
    #[error("the AgentIdentity {name} cannot be used: {why}")]
    Identity {
        /// Its name.
        name: String,
        /// What is wrong.
        why: String,
    },
    /// Too often.
    #[error("the pod {0} asks too often")]
    Rate(String),
    /// The API server could not be asked.
    #[error(transparent)]
    Lookup(#[from] LookupError),
}

impl Refused {
    /// In one word; a label of metrics.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Malformed => "malformed_token",
            Self::Invalid(_) => "invalid_token",
            Self::Audience => "other_audience",
            Self::Unbound(_) => "unbound_token",
            Self::Pod { .. } => "other_pod",
            Self::Unregistered(_) => "unregistered",
            Self::Ambiguous { .. } => "ambiguous",
            Self::Identity { .. } => "unusable_identity",
            Self::Rate(_) => "rate",
            Self::Lookup(_) => "api_server",
        }
    }
}

/// What the API server has said about a token and its pod.
#[derive(Clone, Debug)]
struct Bound {
    namespace: String,
    account: String,
    pod: String,
    uid: String,
    labels: Arc<BTreeMap<String, String>>,
}

/// Recognises the holders of tokens.
pub struct TokenAttestor {
    cluster: Arc<dyn Cluster>,
    identities: Identities,
    trust_domain: TrustDomain,
    /// Service accounts of Aegis' own components, and their names.
    components: BTreeMap<(String, String), String>,
    clock: Clock,
    answers: Mutex<HashMap<Digest, (Bound, Timestamp)>>,
    reviews: Semaphore,
    rate: Rate<String>,
}

impl std::fmt::Debug for TokenAttestor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TokenAttestor")
            .field("components", &self.components)
            .finish_non_exhaustive()
    }
}

#[derive(Deserialize)]
struct Claims {
    exp: u64,
}

impl TokenAttestor {
    /// Asks `cluster` about tokens and pods, and chooses among `identities`.
    #[must_use]
    pub fn new(
        cluster: Arc<dyn Cluster>,
        identities: Identities,
        trust_domain: TrustDomain,
        components: BTreeMap<(String, String), String>,
        clock: Clock,
    ) -> Self {
        Self {
            cluster,
            identities,
            trust_domain,
            components,
            clock,
            answers: Mutex::default(),
            reviews: Semaphore::new(MAX_REVIEWS),
            rate: Rate::new(POD_RATE.0, POD_RATE.1),
        }
    }

    /// Who the holder of `token` may be.
    ///
    /// # Errors
    /// When he is nobody.
    pub async fn attest(&self, token: &str) -> Result<Attested, Refused> {
        let expires = expiry(token).ok_or(Refused::Malformed)?;
        let digest = Digest::of(token.as_bytes());
        let known = self.known(&digest);
        let bound = match known {
            Some(bound) => bound,
            None => {
                let bound = self.look_up(token).await?;
                self.remember(digest, &bound, expires);
                bound
            }
        };
        if !self.rate.take(bound.uid.clone()) {
            return Err(Refused::Rate(bound.name()));
        }
        match self.components.get(&(bound.namespace.clone(), bound.account.clone())) {
            Some(component) => Ok(Attested::Component(component.clone())),
            None => self.agent(&bound).map(|agent| Attested::Agent(Box::new(agent))),
        }
    }

    /// The pod of this UID is gone: what was said of it no longer counts.
    pub fn forget(&self, uid: &str) {
        self.answers.lock().retain(|_, (bound, _)| bound.uid != uid);
    }

    fn known(&self, digest: &Digest) -> Option<Bound> {
        let answers = self.answers.lock();
        let (bound, until) = answers.get(digest)?;
        ((self.clock)() < *until).then(|| bound.clone())
    }

    fn remember(&self, digest: Digest, bound: &Bound, expires: Timestamp) {
        let now = (self.clock)();
        let mut answers = self.answers.lock();
        if answers.len() >= MAX_ANSWERS {
            answers.retain(|_, (_, until)| *until > now);
        }
        if answers.len() < MAX_ANSWERS {
            answers.insert(digest, (bound.clone(), now.plus(BELIEVED).min(expires)));
        }
    }

    async fn look_up(&self, token: &str) -> Result<Bound, Refused> {
        let closed = |_| LookupError("the CA is stopping".into());
        let _turn = self.reviews.acquire().await.map_err(closed)?;
        let status = self.cluster.review(token).await?;
        let (mut bound, node) = bound(&status)?;
        let pod = self.cluster.pod(&bound.namespace, &bound.pod).await?;
        let labels = check_pod(&bound, &node, pod)?;
        bound.labels = Arc::new(labels);
        Ok(bound)
    }

    fn agent(&self, bound: &Bound) -> Result<Registration, Refused> {
        let selecting = self.identities.selecting(&bound.namespace, &bound.account, &bound.labels);
        let known = match selecting.as_slice() {
            [] => return Err(Refused::Unregistered(bound.name())),
            [one] => one,
            [first, second, ..] => {
                return Err(Refused::Ambiguous {
                    pod: bound.name(),
                    count: selecting.len(),
                    first: first.name.clone(),
                    second: second.name.clone(),
                });
            }
        };
        let unusable = |why: String| Refused::Identity { name: known.name.clone(), why };
        known.spec.validate().map_err(unusable)?;
        let id = self
            .trust_domain
            .agent(&bound.namespace, &known.spec.service_account, &known.name)
            .map_err(|error| unusable(error.to_string()))?;
        Ok(Registration {
            id,
            sponsor: known.spec.sponsor.clone(),
            capabilities: Vec::new(),
            selectors: Vec::new(),
            ttl: Some(Duration::from_secs(known.spec.svid_ttl_seconds.into())),
        })
    }
}

impl Bound {
    fn name(&self) -> String {
        format!("{}/{}", self.namespace, self.pod)
    }
}

/// When a token says that it expires. Nothing else in it is read, and this only bounds for how long
/// the API server's word is believed.
fn expiry(token: &str) -> Option<Timestamp> {
    if token.len() > MAX_TOKEN_BYTES {
        return None;
    }
    let mut parts = token.split('.');
    let (_, claims, _) = (parts.next()?, parts.next()?, parts.next()?);
    if parts.next().is_some() {
        return None;
    }
    let claims = BASE64_URL_SAFE_NO_PAD.decode(claims).ok()?;
    let claims: Claims = serde_json::from_slice(&claims).ok()?;
    Some(Timestamp::from_secs(claims.exp))
}

/// For which pod, and on which node, a reviewed token was made.
fn bound(status: &TokenReviewStatus) -> Result<(Bound, String), Refused> {
    if status.authenticated != Some(true) || status.error.is_some() {
        let why = status.error.clone().unwrap_or_else(|| "it is not authenticated".into());
        // The API server's sentence, bounded: it quotes claims, never the token.
        return Err(Refused::Invalid(why.chars().take(200).collect()));
    }
    // An API server that knows no audiences answers with none.
    if !status.audiences.iter().flatten().any(|audience| audience == AUDIENCE) {
        return Err(Refused::Audience);
    }
    let user = status.user.clone().unwrap_or_default();
    let name = user.username.unwrap_or_default();
    let account = name.strip_prefix(ACCOUNT).and_then(|rest| rest.split_once(':'));
    let Some((namespace, account)) = account else { return Err(Refused::Unbound(name)) };
    let extra = user.extra.unwrap_or_default();
    let one = |key: &str| match extra.get(&format!("{EXTRA}{key}")).map(Vec::as_slice) {
        Some([value]) if !value.is_empty() => Some(value.clone()),
        _ => None,
    };
    let (Some(pod), Some(uid), Some(node)) = (one("pod-name"), one("pod-uid"), one("node-name"))
    else {
        return Err(Refused::Unbound(name.clone()));
    };
    let (namespace, account) = (namespace.to_owned(), account.to_owned());
    Ok((Bound { namespace, account, pod, uid, labels: Arc::default() }, node))
}

/// Whether the pod is the one that the token speaks of; its labels.
fn check_pod(
    bound: &Bound,
    node: &str,
    pod: Option<Pod>,
) -> Result<BTreeMap<String, String>, Refused> {
    let differs = |why| Refused::Pod { pod: bound.name(), why };
    let pod = pod.ok_or_else(|| differs("it does not exist"))?;
    if pod.metadata.uid.as_deref() != Some(&bound.uid) {
        return Err(differs("another pod has its name now"));
    }
    let spec = pod.spec.unwrap_or_default();
    if spec.node_name.as_deref() != Some(node) {
        return Err(differs("it is on another node"));
    }
    if spec.service_account_name.as_deref() != Some(&bound.account) {
        return Err(differs("it has another service account"));
    }
    let phase = pod.status.and_then(|status| status.phase).unwrap_or_default();
    if matches!(phase.as_str(), "Succeeded" | "Failed") {
        return Err(differs("it has ended"));
    }
    Ok(pod.metadata.labels.unwrap_or_default())
}
