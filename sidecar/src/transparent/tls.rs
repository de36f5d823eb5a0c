//! TLS of the application's own: Aegis cannot look into it, so it is let through only to a host that a
//! policy names for the protocol `tls`, and counted as not covered.
//!
//! What counts is the name in the ClientHello. The address that the application wanted does not: the
//! sidecar asks for the name's addresses itself and connects there, so that no allowed name leads to
//! another host. It is one action and one outcome, and is judged anew when something changes.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use aegis_audit::entry::Outcome as Ended;
use aegis_core::{
    action::{Action, ActionKind, Protocol},
    decision::{Reason, Verdict},
    policy::Scope,
};
use aegis_kernel::{Context, Ending, Permit};
use serde_json::{Map, Value};
use tokio::{io::copy_bidirectional, net::TcpStream, sync::watch};
use tokio_util::io::InspectReader;

use super::{Transparent, hello, told};
use crate::exchange::cut_for;

/// The server by which these are counted; names come from the wire.
const LABEL: &str = "tls";
/// How long a name and a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How many addresses of a name are tried.
const MAX_ADDRESSES: usize = 8;
/// How long an open connection may go on once the process drains.
const LINGER: Duration = Duration::from_secs(15);

/// Decides on one connection, and carries it as long as it may go on.
pub(super) async fn tunnel(caught: &Arc<Transparent>, to: SocketAddr, client: TcpStream) {
    let own = match caught.own() {
        Ok(own) => own,
        Err(reason) => return drop(caught.refuse_stranger(reason)),
    };
    // Within the pod, what is declared speaks in the clear.
    let name = match hello::server_name(&client).await {
        Ok(name) if !to.ip().is_loopback() => name,
        other => {
            let mut told: Map<String, Value> = told(to, "tls");
            told.extend(other.err().map(|why| ("server_name".to_owned(), why.code().into())));
            caught.refuse(&own, "", Reason::ServerUnknown, told).await;
            return;
        }
    };
    let changes = caught.shared.kernel.changes();
    let Some(permit) = decide(caught, connect_to(&name, to.port())).await else { return };
    let approved = matches!(permit.receipt().decision.reason, Reason::Approved);
    let (action, receipt) = permit.into_parts();
    let started = Instant::now();
    let tunnel =
        Tunnel { caught, action, approved, sent: AtomicU64::new(0), received: AtomicU64::new(0) };
    let why = match tunnel.reach(&name, to.port()).await {
        Ok(server) => {
            caught.shared.metrics.uncovered.inc();
            tunnel.carry(client, server, changes).await
        }
        Err(reason) => Some(reason),
    };
    let ending = Ending {
        // Whether what was asked within it succeeded is nobody's to know.
        result: if why.is_some() { Ended::Failure } else { Ended::Unknown },
        reason: why.map(|reason| reason.code().to_owned()),
        status: None,
        bytes: tunnel.received.load(Ordering::Relaxed),
        sent: tunnel.sent.load(Ordering::Relaxed),
        events: 0,
        micros: u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX),
        redactions: 0,
    };
    if let Err(error) = caught.shared.kernel.conclude(&receipt, &ending).await {
        tracing::error!(%error, "an outcome could not be recorded");
    }
}

/// The action of opening a connection to `name`.
fn connect_to(name: &str, port: u16) -> Action {
    Action {
        kind: ActionKind::Connect,
        protocol: Protocol::Tls,
        method: "connect".into(),
        server: name.into(),
        tool: None,
        tool_pin: None,
        resource: Some(format!("tls://{name}:{port}")),
        arguments: Value::Null,
    }
}

async fn decide(caught: &Arc<Transparent>, action: Action) -> Option<Permit<Action>> {
    let principal = match caught.own().and_then(|own| caught.principal(&own)) {
        Ok(principal) => principal,
        Err(reason) => {
            drop(caught.refuse_stranger(reason));
            return None;
        }
    };
    let namespace = principal.id.namespace().unwrap_or_default();
    let context = Context::new(&principal, Scope::Mesh, namespace);
    let count = |verdict: Verdict, reason: Reason| {
        let labels = [LABEL, verdict.as_str(), reason.code()];
        caught.shared.metrics.decisions.with_label_values(&labels).inc();
    };
    match caught.shared.kernel.decide(context, action).await {
        Ok(permit) => {
            count(Verdict::Allow, permit.receipt().decision.reason);
            Some(permit)
        }
        Err(refusal) => {
            count(refusal.decision.verdict, refusal.decision.reason);
            None
        }
    }
}

/// A connection that may go on.
struct Tunnel<'a> {
    caught: &'a Arc<Transparent>,
    action: Action,
    approved: bool,
    /// Bytes from the application.
    sent: AtomicU64,
    /// Bytes to it.
    received: AtomicU64,
}

impl Tunnel<'_> {
    /// Connects to where the name leads, if that is neither this pod nor its node.
    async fn reach(&self, name: &str, port: u16) -> Result<TcpStream, Reason> {
        let asking = (self.caught.names)(name.to_owned());
        let found = match tokio::time::timeout(CONNECT_TIMEOUT, asking).await {
            Ok(Ok(found)) => found,
            Ok(Err(error)) => {
                tracing::info!(server = name, %error, "the name leads nowhere");
                return Err(Reason::UpstreamUnavailable);
            }
            Err(_) => return Err(Reason::UpstreamTimeout),
        };
        let reachable = &self.caught.shared.reachable;
        let allowed: Vec<IpAddr> =
            found.into_iter().filter(|address| reachable.is_elsewhere(*address)).collect();
        if allowed.is_empty() {
            tracing::warn!(server = name, "the name leads to this pod or its node alone");
        }
        for address in allowed.into_iter().take(MAX_ADDRESSES) {
            let connecting = TcpStream::connect((address, port));
            if let Ok(Ok(stream)) = tokio::time::timeout(CONNECT_TIMEOUT, connecting).await {
                let _ = stream.set_nodelay(true);
                return Ok(stream);
            }
        }
        Err(Reason::UpstreamUnavailable)
    }

    /// Carries bytes both ways until either end closes; `Some` is why it was cut.
    async fn carry(
        &self,
        client: TcpStream,
        server: TcpStream,
        mut changes: watch::Receiver<u64>,
    ) -> Option<Reason> {
        let count = |counter: &AtomicU64, bytes: &[u8]| {
            counter.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        };
        let mut client = InspectReader::new(client, |bytes: &[u8]| count(&self.sent, bytes));
        let mut server = InspectReader::new(server, |bytes: &[u8]| count(&self.received, bytes));
        let copying = copy_bidirectional(&mut client, &mut server);
        tokio::pin!(copying);
        let drain = self.caught.shared.drain.clone();
        let linger = async {
            drain.cancelled().await;
            tokio::time::sleep(LINGER).await;
        };
        tokio::pin!(linger);
        loop {
            // What has changed since the decision is looked at before the first byte.
            if let Some(reason) = self.recheck() {
                return Some(reason);
            }
            let left = match self.caught.own() {
                Ok(own) => own.not_after.since(self.caught.shared.kernel.now()),
                Err(reason) => return Some(reason),
            };
            tokio::select! {
                _ = copying.as_mut() => return None,
                () = linger.as_mut() => return Some(Reason::Draining),
                changed = changes.changed() => if changed.is_err() {
                    return Some(Reason::Draining);
                },
                // A renewed SVID lasts longer; one that was not ends the connection.
                () = tokio::time::sleep(left) => {}
            }
        }
    }

    /// Judges the open connection anew; `Some` is the reason to cut it.
    fn recheck(&self) -> Option<Reason> {
        let principal = match self.caught.own().and_then(|own| self.caught.principal(&own)) {
            Ok(principal) => principal,
            Err(reason) => return Some(reason),
        };
        let namespace = principal.id.namespace().unwrap_or_default();
        let context = Context::new(&principal, Scope::Mesh, namespace);
        let judgement = self.caught.shared.kernel.evaluate(&context.about(&self.action));
        cut_for(&judgement.decision, self.approved)
    }
}
