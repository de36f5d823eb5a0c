//! What the CA asks the API server: whose a token is, and what became of its pod.

use aegis_api::authority::AUDIENCE;
use futures::future::BoxFuture;
use k8s_openapi::api::{
    authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus},
    core::v1::Pod,
};
use kube::{Api, Client, api::PostParams};

/// The API server could not be asked.
#[derive(Debug, thiserror::Error)]
#[error("the API server does not answer: {0}")]
pub struct LookupError(pub String);

/// The questions of attestation.
pub trait Cluster: Send + Sync + 'static {
    /// Has a token reviewed for the CA's audience.
    fn review<'a>(
        &'a self,
        token: &'a str,
    ) -> BoxFuture<'a, Result<TokenReviewStatus, LookupError>>;

    /// The pod of this name; `None` if there is none.
    fn pod<'a>(
        &'a self,
        namespace: &'a str,
        name: &'a str,
    ) -> BoxFuture<'a, Result<Option<Pod>, LookupError>>;
}

/// Asks the real one.
#[derive(Clone)]
pub struct ApiServer(pub Client);

impl std::fmt::Debug for ApiServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ApiServer")
    }
}

/// An answer of the API server without what it may quote of the question: the token.
fn failed(error: &kube::Error) -> LookupError {
    LookupError(match error {
        kube::Error::Api(status) => format!("{} ({})", status.reason, status.code),
        other => other.to_string(),
    })
}

impl Cluster for ApiServer {
    fn review<'a>(
        &'a self,
        token: &'a str,
    ) -> BoxFuture<'a, Result<TokenReviewStatus, LookupError>> {
        Box::pin(async move {
            let spec = TokenReviewSpec {
                token: token.to_owned(),
                audiences: Some(vec![AUDIENCE.to_owned()]),
            };
            let review = TokenReview { spec, ..TokenReview::default() };
            let api: Api<TokenReview> = Api::all(self.0.clone());
            let answer = api.create(&PostParams::default(), &review).await;
            Ok(answer.map_err(|error| failed(&error))?.status.unwrap_or_default())
        })
    }

    fn pod<'a>(
        &'a self,
        namespace: &'a str,
        name: &'a str,
    ) -> BoxFuture<'a, Result<Option<Pod>, LookupError>> {
        Box::pin(async move {
            let api: Api<Pod> = Api::namespaced(self.0.clone(), namespace);
            api.get_opt(name).await.map_err(|error| failed(&error))
        })
    }
}
