//! The API server's answers to the questions of admission.

use std::sync::Arc;

use aegis_core::thresholds::Thresholds;
use aegis_resources::kinds::ClusterTrustThreshold;
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec,
};
use kube::{
    Api, Client,
    api::{ListParams, PostParams},
};

use crate::{
    admission::{Cluster, Permission, User},
    object::Stored,
    reconcile::base,
};

/// Asks the API server.
#[derive(Clone)]
pub struct ApiServer(pub Client);

impl std::fmt::Debug for ApiServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ApiServer")
    }
}

impl Cluster for ApiServer {
    async fn may(
        &self,
        user: &User,
        what: Permission,
        namespace: &str,
        name: &str,
    ) -> Result<bool, String> {
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: Some(user.username.clone()),
                uid: user.uid.clone(),
                groups: Some(user.groups.clone()),
                extra: Some(user.extra.clone()),
                resource_attributes: Some(ResourceAttributes {
                    group: Some("aegis.dev".into()),
                    resource: Some(what.resource().into()),
                    verb: Some(what.verb().into()),
                    namespace: Some(namespace.to_owned()),
                    name: Some(name.to_owned()),
                    ..ResourceAttributes::default()
                }),
                ..SubjectAccessReviewSpec::default()
            },
            ..SubjectAccessReview::default()
        };
        let api: Api<SubjectAccessReview> = Api::all(self.0.clone());
        let answer =
            api.create(&PostParams::default(), &review).await.map_err(|e| e.to_string())?;
        Ok(answer.status.is_some_and(|status| status.allowed))
    }

    async fn thresholds(&self) -> Result<Thresholds, String> {
        let api: Api<Stored<ClusterTrustThreshold>> = Api::all(self.0.clone());
        let list = api.list(&ListParams::default()).await.map_err(|error| error.to_string())?;
        let all: Vec<_> = list.items.into_iter().map(Arc::new).collect();
        Ok(base(&all))
    }
}
