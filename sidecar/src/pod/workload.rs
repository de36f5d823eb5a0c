//! The SPIFFE Workload API for the application, on a socket that the pod's other containers have to
//! read only.
//!
//! It gives out the application's own SVID, which no other sidecar takes for an agent's.

use aegis_core::AgentId;
use aegis_identity::system_clock;
use aegis_mesh::{Authority, WorkloadSocket, workload::Application};
use anyhow::Context as _;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::Options;

/// Serves until `stop`.
///
/// # Errors
/// When the socket cannot be bound.
pub(super) async fn serve(
    options: &Options,
    authority: &Authority,
    agent: &AgentId,
    tasks: &TaskTracker,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    let socket = WorkloadSocket::bind_within(&options.workload_socket).await;
    let socket = socket.context("the application cannot be served its SVIDs")?;
    let application = Application::new(authority.clone(), agent.clone(), system_clock());
    let stop = stop.clone();
    tasks.spawn(async move {
        if let Err(error) = socket.serve(application, stop).await {
            tracing::error!(%error, "the application is served no SVIDs any more");
        }
    });
    Ok(())
}
