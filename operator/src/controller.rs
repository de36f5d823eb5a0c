//! One loop for all kinds: watch, reconcile, write the status once, try again after an error.
//!
//! Nothing is asked for on a schedule: a change of an object, or of what it depends on, is what
//! starts a reconciliation; only an error starts one by time, each later than the one before.

use std::{collections::HashMap, sync::Arc, time::Duration};

use futures::{Stream, StreamExt as _};
use kube::{
    Client,
    runtime::{
        Controller, WatchStreamExt as _,
        controller::{Action, Error},
        events::Recorder,
        reflector::{ObjectRef, store::Writer},
        watcher,
    },
};
use parking_lot::Mutex;
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{
    metrics::Metrics,
    object::{Kind, Stored},
    status,
};

/// The shortest and the longest wait after an error.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(300));

/// Why an object could not be dealt with now. What is wrong with the object itself is no error but
/// a condition.
#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    /// The API server did not do what was asked.
    #[error("the API server: {0}")]
    Kubernetes(#[from] Box<kube::Error>),
    /// `opa` is of no use.
    #[error("policies cannot be compiled: {0}")]
    Opa(#[from] aegis_policy::OpaError),
    /// A task ended by itself.
    #[error("a task of the operator ended unexpectedly: {0}")]
    Task(#[from] tokio::task::JoinError),
}

/// How objects of one kind are dealt with.
pub trait Reconcile: Send + Sync + 'static {
    /// The kind.
    type Kind: Kind;
    /// The controller's name, in metrics.
    const CONTROLLER: &'static str;

    /// What the status of an object should be. Called again, it gives the same.
    fn status(
        &self,
        object: Arc<Stored<Self::Kind>>,
    ) -> impl Future<
        Output = Result<<Self::Kind as kube::core::object::HasStatus>::Status, ReconcileError>,
    > + Send;
}

/// What all controllers share.
#[derive(Clone)]
pub struct Shared {
    /// The API server.
    pub client: Client,
    /// Where Events are told.
    pub recorder: Recorder,
    /// What is counted.
    pub metrics: Metrics,
    /// Raised whenever what the operator distributes may have changed.
    pub changed: watch::Sender<u64>,
    /// How many kinds have been listed completely. Stores tell only one waiter that they are ready,
    /// and that is kube's own controller.
    pub listed: watch::Sender<usize>,
    /// Ends the controllers.
    pub stop: CancellationToken,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

impl Shared {
    /// Says that something that is distributed may have changed.
    pub fn touch(&self) {
        self.changed.send_modify(|count| *count += 1);
    }
}

struct Context<R: Reconcile> {
    reconciler: R,
    shared: Shared,
    failures: Mutex<HashMap<ObjectRef<Stored<R::Kind>>, u32>>,
}

/// Runs the controller of one kind until it is told to stop. `again` starts over with all objects,
/// when what they depend on has changed.
pub async fn run<R: Reconcile>(
    reconciler: R,
    shared: Shared,
    writer: Writer<Stored<R::Kind>>,
    again: impl Stream<Item = ()> + Send + 'static,
) {
    let nobody = futures::stream::pending();
    run_with(reconciler, shared, writer, again, nobody).await;
}

/// The same, and `some` names single objects that are to be looked at again.
pub async fn run_with<R: Reconcile>(
    reconciler: R,
    shared: Shared,
    writer: Writer<Stored<R::Kind>>,
    again: impl Stream<Item = ()> + Send + 'static,
    some: impl Stream<Item = ObjectRef<Stored<R::Kind>>> + Send + 'static,
) {
    let api = kube::Api::<Stored<R::Kind>>::all(shared.client.clone());
    let reader = writer.as_reader();
    let touched = shared.clone();
    let mut listed = false;
    let events = watcher(api, watcher::Config::default())
        .default_backoff()
        .reflect(writer)
        .inspect(move |event| match event {
            // A deletion leaves nothing to reconcile, and one that was missed shows here.
            Ok(watcher::Event::Delete(_)) => touched.touch(),
            Ok(watcher::Event::InitDone) => {
                touched.listed.send_modify(|count| *count += usize::from(!listed));
                listed = true;
                touched.touch();
            }
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(controller = R::CONTROLLER, %error, "the watch was interrupted")
            }
        })
        .applied_objects();
    let stop = shared.stop.clone();
    let context = Arc::new(Context { reconciler, shared, failures: Mutex::default() });
    let counted = Arc::clone(&context);
    Controller::for_stream(events, reader)
        .reconcile_all_on(again)
        .reconcile_on(some)
        .graceful_shutdown_on(async move { stop.cancelled().await })
        .run(reconcile::<R>, backoff::<R>, context)
        .for_each(|result| {
            match result {
                Err(Error::ReconcilerFailed(error, object)) => {
                    tracing::warn!(controller = R::CONTROLLER, %object, %error, "will be tried again");
                }
                Err(Error::ObjectNotFound(_)) => counted.shared.touch(),
                Ok(_) | Err(_) => {}
            }
            std::future::ready(())
        })
        .await;
}

async fn reconcile<R: Reconcile>(
    object: Arc<Stored<R::Kind>>,
    context: Arc<Context<R>>,
) -> Result<Action, ReconcileError> {
    let metrics = &context.shared.metrics;
    let label = [R::CONTROLLER];
    metrics.queue_adds.with_label_values(&label).inc();
    metrics.active_workers.with_label_values(&label).inc();
    metrics.queue_depth.with_label_values(&label).inc();
    let started = Instant::now();
    let result = one(&object, &context).await;
    metrics.queue_depth.with_label_values(&label).dec();
    metrics.active_workers.with_label_values(&label).dec();
    metrics.reconcile_seconds.with_label_values(&label).observe(started.elapsed().as_secs_f64());
    let word = if result.is_ok() { "success" } else { "error" };
    metrics.reconciles.with_label_values(&[R::CONTROLLER, word]).inc();
    if result.is_ok() {
        context.failures.lock().remove(&ObjectRef::from_obj(&*object));
    }
    result.map(|()| Action::await_change())
}

async fn one<R: Reconcile>(
    object: &Arc<Stored<R::Kind>>,
    context: &Context<R>,
) -> Result<(), ReconcileError> {
    let shared = &context.shared;
    let status = context.reconciler.status(Arc::clone(object)).await?;
    let api = R::Kind::api(shared.client.clone(), object.namespace());
    match status::write(&api, &shared.recorder, object, status).await {
        Ok(written) => {
            if written {
                shared.metrics.status_writes.with_label_values(&[R::CONTROLLER]).inc();
            }
            Ok(())
        }
        // It is gone; its deletion is on the way.
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
        Err(error) => Err(Box::new(error).into()),
    }
}

fn backoff<R: Reconcile>(
    object: Arc<Stored<R::Kind>>,
    _: &ReconcileError,
    context: Arc<Context<R>>,
) -> Action {
    let label = [R::CONTROLLER];
    context.shared.metrics.reconcile_errors.with_label_values(&label).inc();
    context.shared.metrics.queue_retries.with_label_values(&label).inc();
    let mut failures = context.failures.lock();
    let count = failures.entry(ObjectRef::from_obj(&*object)).or_insert(0);
    *count = count.saturating_add(1);
    Action::requeue(wait_after(*count))
}

/// How long to wait after this many failures in a row.
fn wait_after(failures: u32) -> Duration {
    let (shortest, longest) = BACKOFF;
    shortest.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(longest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_failure_waits_longer_up_to_a_limit() {
        assert_eq!(wait_after(1), BACKOFF.0);
        assert_eq!(wait_after(2), BACKOFF.0 * 2);
        assert!((1..40).all(|n| wait_after(n) <= wait_after(n + 1)));
        assert_eq!(wait_after(u32::MAX), BACKOFF.1);
    }
}
