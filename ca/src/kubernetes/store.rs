//! Keys and state in a Secret, shared by the replicas of the CA.
//!
//! Every write names the version of the Secret that it was made from, so of two replicas that change
//! it at once one succeeds and the other is told to read it again: none overwrites what it has not
//! seen. A change of several pieces is one write.

use std::{
    collections::BTreeMap,
    fmt,
    future::Future,
    sync::{Arc, mpsc},
    time::Duration,
};

use k8s_openapi::{
    ByteString, api::core::v1::Secret, apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{Api, Client, Config, ResourceExt as _, api::PostParams};
use parking_lot::Mutex;
use tokio::runtime::Runtime;
use zeroize::Zeroizing;

use crate::{Store, StoreError};

/// What names the authority that is to be rotated, on the Secret.
pub const ROTATE: &str = "aegis.dev/rotate";
/// How long the API server may take for one write.
const PATIENCE: Duration = Duration::from_secs(10);

/// A Secret.
#[derive(Clone)]
pub struct SecretStore(Arc<Inner>);

struct Inner {
    name: String,
    api: Api<Secret>,
    /// What was read or written last.
    held: Mutex<Option<Secret>>,
    /// The store is asked from synchronous code that may run on any thread, so it has its own.
    runtime: Option<Runtime>,
}

impl SecretStore {
    /// Reads the Secret `name`, which need not exist yet.
    ///
    /// # Errors
    /// When the API server cannot be asked.
    pub fn open(config: Config, namespace: &str, name: &str) -> Result<Self, StoreError> {
        let failed = |cause: String| StoreError::Cluster { name: name.to_owned(), cause };
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("ca-state")
            .enable_all()
            .build()
            .map_err(|error| failed(error.to_string()))?;
        let client = {
            let _guard = runtime.enter();
            Client::try_from(config).map_err(|error| failed(error.to_string()))?
        };
        let store = Self(Arc::new(Inner {
            name: name.to_owned(),
            api: Api::namespaced(client, namespace),
            held: Mutex::default(),
            runtime: Some(runtime),
        }));
        store.refresh()?;
        Ok(store)
    }

    /// Reads the Secret again. Returns whether it is another than before.
    ///
    /// # Errors
    /// When the API server cannot be asked.
    pub fn refresh(&self) -> Result<bool, StoreError> {
        let (api, name) = (self.0.api.clone(), self.0.name.clone());
        let mut held = self.0.held.lock();
        let read = self.wait(async move { api.get_opt(&name).await })?;
        let version = |secret: &Option<Secret>| {
            secret.as_ref().and_then(|secret| secret.metadata.resource_version.clone())
        };
        let changed = version(&held) != version(&read);
        *held = read;
        Ok(changed)
    }

    /// The version that was read or written last.
    #[must_use]
    pub fn version(&self) -> Option<String> {
        self.0.held.lock().as_ref()?.metadata.resource_version.clone()
    }

    fn wait<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, kube::Error>> + Send + 'static,
    ) -> Result<T, StoreError> {
        let name = || self.0.name.clone();
        let (send, answer) = mpsc::channel();
        if let Some(runtime) = &self.0.runtime {
            runtime.spawn(async move { send.send(work.await) });
        }
        match answer.recv_timeout(PATIENCE) {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(kube::Error::Api(status)))
                if status.is_conflict() || status.is_already_exists() =>
            {
                Err(StoreError::Conflict(name()))
            }
            Ok(Err(kube::Error::Api(status))) => {
                let cause = format!("{} ({})", status.reason, status.code);
                Err(StoreError::Cluster { name: name(), cause })
            }
            Ok(Err(error)) => Err(StoreError::Cluster { name: name(), cause: error.to_string() }),
            Err(_) => {
                let cause = "the API server did not answer in time".to_owned();
                Err(StoreError::Cluster { name: name(), cause })
            }
        }
    }

    fn change(&self, change: impl FnOnce(&mut Secret)) -> Result<(), StoreError> {
        let (api, name) = (self.0.api.clone(), self.0.name.clone());
        let mut held = self.0.held.lock();
        let mut secret = held.clone().unwrap_or_else(|| Secret {
            metadata: ObjectMeta { name: Some(name.clone()), ..ObjectMeta::default() },
            ..Secret::default()
        });
        secret.metadata.managed_fields = None;
        change(&mut secret);
        let params = PostParams::default();
        let written = match secret.metadata.resource_version {
            Some(_) => self.wait(async move { api.replace(&name, &params, &secret).await }),
            None => self.wait(async move { api.create(&params, &secret).await }),
        };
        *held = Some(written?);
        Ok(())
    }
}

impl Store for SecretStore {
    fn names(&self) -> Result<Vec<String>, StoreError> {
        let held = self.0.held.lock();
        let data = held.as_ref().and_then(|secret| secret.data.as_ref());
        Ok(data.map(|data| data.keys().cloned().collect()).unwrap_or_default())
    }

    fn read(&self, name: &str) -> Result<Option<Zeroizing<Vec<u8>>>, StoreError> {
        let held = self.0.held.lock();
        let data = held.as_ref().and_then(|secret| secret.data.as_ref());
        Ok(data.and_then(|data| data.get(name)).map(|bytes| Zeroizing::new(bytes.0.clone())))
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), StoreError> {
        self.write_all(&[(name, bytes)])
    }

    fn write_all(&self, pieces: &[(&str, &[u8])]) -> Result<(), StoreError> {
        self.change(|secret| put(secret, pieces))
    }

    fn remove(&self, name: &str) -> Result<(), StoreError> {
        self.change(|secret| {
            secret.data.get_or_insert_default().remove(name);
        })
    }

    fn reload(&self) -> Result<(), StoreError> {
        self.refresh().map(drop)
    }

    fn asked(&self) -> Option<String> {
        self.0.held.lock().as_ref()?.annotations().get(ROTATE).cloned()
    }

    fn answer(&self, pieces: &[(&str, &[u8])]) -> Result<(), StoreError> {
        self.change(|secret| {
            secret.annotations_mut().remove(ROTATE);
            put(secret, pieces);
        })
    }
}

fn put(secret: &mut Secret, pieces: &[(&str, &[u8])]) {
    let data: &mut BTreeMap<_, _> = secret.data.get_or_insert_default();
    for (name, bytes) in pieces {
        data.insert((*name).to_owned(), ByteString(bytes.to_vec()));
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // Also where waiting is forbidden: nothing of it is needed any more.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl fmt::Debug for SecretStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SecretStore").field("name", &self.0.name).finish_non_exhaustive()
    }
}
