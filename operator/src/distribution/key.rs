//! The key that signs what is distributed: one for all operators of a cluster, in a Secret.

use std::collections::BTreeMap;

use ed25519_dalek::SigningKey;
use k8s_openapi::{
    ByteString, api::core::v1::Secret, apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{Api, Client, api::PostParams};

/// The Secret with the key.
pub const SECRET: &str = "aegis-distribution-key";
/// The member with the 32 bytes.
const SEED: &str = "seed";

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The API server did not do what was asked.
    #[error("the Secret {SECRET} cannot be read or written: {0}")]
    Kubernetes(#[from] Box<kube::Error>),
    /// The Secret holds something else.
    #[error(
        "the Secret {SECRET} holds no key of 32 bytes under `{SEED}`; restore it, or delete it and restart all sidecars"
    )]
    Unusable,
}

/// Reads the key, or makes it: of several operators that start at once, one makes it.
///
/// # Errors
/// When it cannot be had.
pub async fn load_or_create(client: Client, namespace: &str) -> Result<SigningKey, KeyError> {
    let api: Api<Secret> = Api::namespaced(client, namespace);
    loop {
        if let Some(secret) = api.get_opt(SECRET).await.map_err(Box::new)? {
            return read(&secret).ok_or(KeyError::Unusable);
        }
        let key = SigningKey::from_bytes(&rand::random());
        let data = BTreeMap::from([(SEED.to_owned(), ByteString(key.to_bytes().to_vec()))]);
        let metadata = ObjectMeta { name: Some(SECRET.to_owned()), ..ObjectMeta::default() };
        let secret =
            Secret { metadata, data: Some(data), immutable: Some(true), ..Secret::default() };
        match api.create(&PostParams::default(), &secret).await {
            Ok(_) => return Ok(key),
            Err(kube::Error::Api(status)) if status.is_already_exists() => {}
            Err(error) => return Err(Box::new(error).into()),
        }
    }
}

fn read(secret: &Secret) -> Option<SigningKey> {
    let seed = &secret.data.as_ref()?.get(SEED)?.0;
    Some(SigningKey::from_bytes(seed.as_slice().try_into().ok()?))
}
