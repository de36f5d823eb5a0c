//! What an enforcement point asks, and what it is told when the answer is not "yes".

use std::sync::Arc;

use aegis_core::{
    AgentId, action::Action, decision::Decision, grant::GrantError, policy::Scope,
    trust::TrustScore,
};
use aegis_identity::VerifiedGrant;
use aegis_protocol::{a2a::ClientRequest, mcp::ClientMessage};

use crate::principal::Principal;

/// Everything about a question but the action itself.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// Who asks.
    pub principal: &'a Principal,
    /// Where.
    pub scope: Scope,
    /// The namespace of the upstream.
    pub server_namespace: &'a str,
    /// Port and path of the server, of one that is reached by its address: it may have several.
    pub endpoint: Option<&'a str>,
    /// The protocol's session, if it has one.
    pub session: Option<&'a str>,
    /// Who signed the content or the intent, where that has been verified.
    pub provenance: Option<Provenance<'a>>,
    /// W3C `traceparent`.
    pub trace: Option<&'a str>,
    /// For a server's request to its client: the decision within which it came.
    pub within: Option<&'a str>,
    /// The grant of an approval that came with it. It is looked at where an approval is asked for.
    pub grant: Option<&'a Shown>,
}

/// A grant as it was shown: verified, or why it is none.
pub type Shown = Result<VerifiedGrant, GrantError>;

/// One question to the kernel.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Who asks, and where.
    pub context: Context<'a>,
    /// What for.
    pub action: &'a Action,
}

/// A message that carries the action it is judged by. What is judged and what is sent cannot part.
pub trait Judged {
    /// The action.
    fn action(&self) -> &Action;
}

impl Judged for Action {
    fn action(&self) -> &Action {
        self
    }
}

impl Judged for ClientMessage {
    fn action(&self) -> &Action {
        self.action()
    }
}

impl Judged for ClientRequest {
    fn action(&self) -> &Action {
        self.action()
    }
}

impl<'a> Context<'a> {
    /// A question of `principal` at the network, about an upstream in `server_namespace`.
    #[must_use]
    pub const fn new(principal: &'a Principal, scope: Scope, server_namespace: &'a str) -> Self {
        Self {
            principal,
            scope,
            server_namespace,
            endpoint: None,
            session: None,
            provenance: None,
            trace: None,
            within: None,
            grant: None,
        }
    }

    /// Asks about `action`.
    #[must_use]
    pub const fn about(self, action: &'a Action) -> Request<'a> {
        Request { context: self, action }
    }
}

/// A verified signature.
#[derive(Clone, Copy, Debug)]
pub struct Provenance<'a> {
    /// Who signed.
    pub signer: &'a AgentId,
    /// What the signer is trusted.
    pub trust: TrustScore,
    /// `content` or `intent`.
    pub signed: &'a str,
    /// The intent's id.
    pub intent: Option<&'a str>,
}

/// What would be decided. It is not recorded and permits nothing.
#[derive(Clone, Debug)]
pub struct Preview {
    /// The decision as it would be now.
    pub decision: Decision,
    /// The approval that there is for this very action, waited for or given.
    pub approval: Option<String>,
}

/// An action that may not be forwarded, or not yet. It is recorded.
#[derive(Clone, Debug)]
pub struct Refusal {
    /// Unique; in the record.
    pub decision_id: String,
    /// Why.
    pub decision: Arc<Decision>,
    /// The approval that it waits for, if the verdict is `require_approval`.
    pub approval: Option<String>,
    /// The index of its record, unless recording failed.
    pub index: Option<u64>,
}
