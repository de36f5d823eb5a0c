//! The daemon's word on each call, asked for on its kernel socket before anything happens.
//!
//! A call has a connection of its own, which stays open until its outcome is told: a daemon that loses it knows that
//! nobody will. Nothing but a whole and well-formed permission permits; whatever else comes back, or nothing within
//! the time that a daemon has, is a refusal.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use aegis_api::kernel::{
    Caller, DecisionContext, Ended, Evaluation, MAX_WAIT_SECS, OutcomeReport, OutcomeTaken,
    Policies, Refused,
};
use aegis_core::decision::Reason;
use aegis_protocol::json::{self, Limits};
use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use tokio::net::UnixStream;

/// How long the daemon has, beside the time that a human has.
const TIMEOUT: Duration = Duration::from_secs(5);
/// What an answer may hold.
const ANSWER: Limits = Limits { size: 4 << 20, depth: 16 };

/// Where the daemon is, and under which name it knows these tools.
#[derive(Clone, Debug)]
pub(crate) struct Daemon {
    socket: PathBuf,
    server: String,
    wait: u64,
}

/// One action, as it would happen.
#[derive(Clone, Debug)]
pub(crate) struct Question {
    /// The method of the kernel API.
    pub(crate) method: &'static str,
    /// The type of resource that it acts on.
    pub(crate) on: &'static str,
    /// The resource.
    pub(crate) id: String,
    /// What policies see besides.
    pub(crate) arguments: Map<String, Value>,
}

/// Why nothing happens.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoPermission {
    /// Decided so.
    #[error("{}", told(.0))]
    Denied(Box<DecisionContext>),
    /// Nobody listens, or has gone.
    #[error(
        "the Aegis daemon does not answer at {socket} ({why}), and without it nothing is allowed; a person has to start it with `aegis up`"
    )]
    Away { socket: String, why: String },
    /// No answer in time.
    #[error(
        "the Aegis daemon at {socket} gave no answer within {seconds} s, and without one nothing is allowed; a person can look at `aegis status`"
    )]
    Slow { socket: String, seconds: u64 },
    /// Something else listens.
    #[error(
        "what answers at {socket} is no Aegis daemon of this version ({what}), and without one nothing is allowed"
    )]
    Foreign { socket: String, what: &'static str },
    /// The question itself was refused.
    #[error("Aegis refuses this: {message} ({reason})")]
    Refused { message: String, reason: String },
}

/// What an agent is told: why, where it is recorded, and what can be done.
fn told(context: &DecisionContext) -> String {
    let message = context.message.trim_end_matches('.');
    let id = context.decision_id.as_ref().map(|id| format!(", decision {id}")).unwrap_or_default();
    let entry = context.index.map(|index| format!(", entry {index}")).unwrap_or_default();
    let recorded = format!("({}{id}{entry})", context.reason);
    match &context.approval {
        Some(approval) if context.verdict == "require_approval" => format!(
            "Aegis holds this back: {message} {recorded}; once a person has run `aegis approvals approve {approval}`, call the tool again with exactly the same arguments"
        ),
        // Its message says what to do.
        _ if context.reason == Reason::MalformedMessage.code() => {
            format!("Aegis refuses this: {message} {recorded}")
        }
        _ => format!(
            "Aegis refuses this: {message} {recorded}; nothing was done, and other words for the same do not help: ask the person whom you work for"
        ),
    }
}

impl NoPermission {
    /// Whether the daemon itself has said no.
    pub(super) const fn is_refusal(&self) -> bool {
        matches!(self, Self::Denied(_) | Self::Refused { .. })
    }

    /// The same with another sentence, where these tools know more of it than the daemon.
    pub(super) fn because(mut self, why: &str) -> Self {
        if let Self::Denied(context) = &mut self {
            context.message = why.into();
        }
        self
    }
}

/// An action that may happen, once; whoever holds it says how it ended.
#[must_use = "the outcome of what was permitted is awaited"]
#[derive(Debug)]
pub(crate) struct Permission {
    connection: Connection,
    id: String,
}

/// A connection to the daemon.
#[derive(Debug)]
pub(crate) struct Connection {
    sender: SendRequest<Full<Bytes>>,
    socket: String,
}

impl Daemon {
    /// The one at `socket`, which knows these tools as those of `server`, and may hold a call for a human for
    /// `wait` seconds.
    pub(crate) fn new(socket: &Path, server: &str, wait: u64) -> Self {
        let wait = wait.min(MAX_WAIT_SECS);
        Self { socket: socket.to_owned(), server: server.to_owned(), wait }
    }

    /// Connects.
    pub(crate) async fn connect(&self) -> Result<Connection, NoPermission> {
        let socket = self.socket.display().to_string();
        let away =
            |why: String| NoPermission::Away { socket: self.socket.display().to_string(), why };
        let stream = UnixStream::connect(&self.socket).await.map_err(|e| away(e.to_string()))?;
        let (sender, connection) =
            handshake(TokioIo::new(stream)).await.map_err(|e| away(e.to_string()))?;
        tokio::spawn(connection);
        Ok(Connection { sender, socket })
    }

    /// Asks whether an action may happen.
    pub(crate) async fn ask(
        &self,
        mut connection: Connection,
        question: &Question,
    ) -> Result<Permission, NoPermission> {
        let body = self.body(question, json!({}));
        let answer: Evaluation =
            connection.send(Method::POST, "/access/v1/evaluation", Some(body), self.wait).await?;
        let context = answer.context;
        // All of it has to say so.
        let allows = context.verdict == "allow";
        match (answer.decision, context.decision_id.clone()) {
            (true, Some(id)) if allows => Ok(Permission { connection, id }),
            (true, _) => Err(connection.foreign("its answer contradicts itself")),
            (false, _) => Err(NoPermission::Denied(Box::new(context))),
        }
    }

    /// Has it recorded that these tools themselves have refused a call, and why; what came of that.
    pub(super) async fn refuse(&self, question: &Question, reason: Reason) -> NoPermission {
        let body = self.body(question, json!({ "reason": reason.code() }));
        let refused = async {
            let mut connection = self.connect().await?;
            connection.send::<Evaluation>(Method::POST, "/v1/refusals", Some(body), 0).await
        };
        match refused.await {
            Ok(answer) => NoPermission::Denied(Box::new(answer.context)),
            Err(other) => other,
        }
    }

    fn body(&self, question: &Question, context: Value) -> Vec<u8> {
        body(&self.server, question, context)
    }
}

/// A question about an action of `server`, in AuthZEN's form.
pub(crate) fn body(server: &str, question: &Question, context: Value) -> Vec<u8> {
    let body = json!({
        "subject": { "type": "agent", "id": "self" },
        "action": { "name": question.method, "properties": question.arguments },
        "resource": {
            "type": question.on, "id": question.id,
            "properties": { "server": server },
        },
        "context": context,
    });
    body.to_string().into_bytes()
}

impl Permission {
    /// The decision that permits.
    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    /// Tells how it ended, and returns the connection. Whoever cannot be told concludes it as unknown.
    pub(crate) async fn conclude(mut self, result: Ended) -> Connection {
        let report = OutcomeReport { decision_id: self.id, result };
        let body = serde_json::to_vec(&report).unwrap_or_default();
        let told: Result<OutcomeTaken, _> =
            self.connection.send(Method::POST, "/v1/outcomes", Some(body), 0).await;
        if let Err(error) = told {
            tracing::warn!(%error, "the daemon was not told how a call ended");
        }
        self.connection
    }
}

impl Connection {
    /// Who the daemon says that this process is.
    pub(super) async fn caller(&mut self) -> Result<Caller, NoPermission> {
        self.send(Method::GET, "/v1/self", None, 0).await
    }

    /// What this process is governed by.
    pub(super) async fn policies(&mut self) -> Result<Policies, NoPermission> {
        self.send(Method::GET, "/v1/policies", None, 0).await
    }

    async fn send<T: DeserializeOwned>(
        &mut self,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
        wait: u64,
    ) -> Result<T, NoPermission> {
        let patience = TIMEOUT + Duration::from_secs(wait);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "localhost")
            .header(header::CONTENT_TYPE, "application/json")
            .header("prefer", format!("wait={wait}"))
            .body(Full::new(Bytes::from(body.unwrap_or_default())))
            .map_err(|_| self.foreign("it cannot be asked"))?;
        match tokio::time::timeout(patience, self.exchange(request)).await {
            Ok(answer) => answer,
            Err(_) => {
                Err(NoPermission::Slow { socket: self.socket.clone(), seconds: patience.as_secs() })
            }
        }
    }

    async fn exchange<T: DeserializeOwned>(
        &mut self,
        request: Request<Full<Bytes>>,
    ) -> Result<T, NoPermission> {
        let away = |socket: &str, why: String| NoPermission::Away { socket: socket.into(), why };
        let ready = self.sender.ready().await;
        let response = match ready {
            Ok(()) => self.sender.send_request(request).await,
            Err(gone) => Err(gone),
        };
        let response = response.map_err(|error| {
            if error.is_parse() {
                return self.foreign("its answer is not HTTP");
            }
            away(&self.socket, error.to_string())
        })?;
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER.size).collect().await;
        let bytes = body.map_err(|_| self.foreign("its answer is not whole"))?.to_bytes();
        let value =
            json::parse(&bytes, ANSWER).map_err(|_| self.foreign("its answer is not JSON"))?;
        if status == StatusCode::OK {
            return serde_json::from_value(value)
                .map_err(|_| self.foreign("its answer is no verdict"));
        }
        match serde_json::from_value::<Refused>(value) {
            Ok(Refused { message, reason }) => Err(NoPermission::Refused { message, reason }),
            Err(_) => Err(self.foreign("its answer is no verdict")),
        }
    }

    fn foreign(&self, what: &'static str) -> NoPermission {
        NoPermission::Foreign { socket: self.socket.clone(), what }
    }
}
