//! ApprovalRequests on the API server.

use aegis_resources::{
    approval::{ApprovalRequestSpec, ApprovalStatus},
    kinds::{ApprovalRequest, ApprovalRequestObjectSpec},
};
use futures::StreamExt as _;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{
    Api, Client, Resource as _,
    api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions},
    runtime::{WatchStreamExt as _, watcher},
};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::{Desk, Request, Requests};
use crate::{object::Kind as _, status::FIELD_MANAGER};

/// Writes requests to the API server.
#[derive(Clone)]
pub struct ApiServer(pub Client);

impl std::fmt::Debug for ApiServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ApiServer")
    }
}

impl ApiServer {
    fn api(&self, namespace: &str) -> Api<Request> {
        ApprovalRequest::api(self.0.clone(), namespace)
    }
}

impl Requests for ApiServer {
    async fn create(
        &self,
        namespace: &str,
        name: &str,
        spec: ApprovalRequestSpec,
    ) -> Result<Request, String> {
        let request = Request {
            metadata: ObjectMeta {
                name: Some(name.to_owned()),
                namespace: Some(namespace.to_owned()),
                ..ObjectMeta::default()
            },
            spec: Ok(ApprovalRequestObjectSpec(spec)),
            status: None,
        };
        let params =
            PostParams { field_manager: Some(FIELD_MANAGER.into()), ..PostParams::default() };
        match self.api(namespace).create(&params, &request).await {
            Ok(made) => Ok(made),
            Err(kube::Error::Api(status)) if status.is_already_exists() => {
                self.api(namespace).get(name).await.map_err(|error| error.to_string())
            }
            Err(error) => Err(error.to_string()),
        }
    }

    async fn write_status(&self, request: &Request, status: ApprovalStatus) -> Result<(), String> {
        let patch = json!({
            "apiVersion": ApprovalRequest::api_version(&()),
            "kind": ApprovalRequest::kind(&()),
            "metadata": { "name": request.name(), "uid": request.uid() },
            "status": status,
        });
        let params = PatchParams::apply(FIELD_MANAGER).force();
        let api = self.api(request.namespace());
        match api.patch_status(request.name(), &params, &Patch::Apply(patch)).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
            Err(error) => Err(error.to_string()),
        }
    }

    async fn delete(&self, request: &Request) -> Result<(), String> {
        let own = Preconditions { uid: request.metadata.uid.clone(), ..Preconditions::default() };
        let params = DeleteParams { preconditions: Some(own), ..DeleteParams::default() };
        match self.api(request.namespace()).delete(request.name(), &params).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
            Err(error) => Err(error.to_string()),
        }
    }
}

/// Tells the desk of every request of the cluster, until `stop`.
pub async fn follow(client: Client, desk: Desk<ApiServer>, stop: CancellationToken) {
    let api: Api<Request> = Api::all(client);
    let mut events = std::pin::pin!(watcher(api, watcher::Config::default()).default_backoff());
    let mut listing = Vec::new();
    loop {
        let event = tokio::select! {
            () = stop.cancelled() => return,
            event = events.next() => event,
        };
        match event {
            None => return,
            Some(Err(error)) => tracing::warn!(%error, "the watch over requests was interrupted"),
            Some(Ok(watcher::Event::Init)) => listing.clear(),
            Some(Ok(watcher::Event::InitApply(request))) => listing.push(request),
            Some(Ok(watcher::Event::InitDone)) => desk.all_listed(std::mem::take(&mut listing)),
            Some(Ok(watcher::Event::Apply(request))) => desk.seen(request),
            Some(Ok(watcher::Event::Delete(request))) => desk.gone(&request),
        }
    }
}
