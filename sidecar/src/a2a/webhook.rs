//! Webhooks: whoever names one makes the agent send a request, so it is decided as one.
//!
//! First where it leads: to a public place, or to a host that the upstream's owner has named. Names
//! are resolved here, and all their addresses must be public; the agent resolves them again, which no
//! proxy can prevent. Then whether a policy allows it: an HTTP request to that host and path.

use std::time::Duration;

use aegis_core::{
    action::{Action, ActionKind, Protocol},
    address::is_public,
    decision::{Reason, Verdict},
};
use aegis_kernel::Context;
use aegis_protocol::a2a::webhook::Webhook;

use crate::route::{Caller, Route};

/// How long a name may take to be resolved.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(5);

/// The request that the agent is to send, if it may.
pub(super) async fn check(route: &Route, caller: &Caller, url: &str) -> Result<Action, Reason> {
    let webhook = Webhook::parse(url).map_err(|_| Reason::WebhookRefused)?;
    let named = route.spec.a2a.webhook_hosts.contains(&webhook.host);
    if !named && !leads_out(&webhook).await {
        return Err(Reason::WebhookRefused);
    }
    let path = webhook.url.parse::<http::Uri>().map_err(|_| Reason::WebhookRefused)?;
    let action = Action {
        kind: ActionKind::HttpRequest,
        protocol: Protocol::Http,
        method: "POST".into(),
        server: webhook.host,
        tool: None,
        tool_pin: None,
        resource: Some(path.path().to_owned()),
        arguments: serde_json::Value::Null,
    };
    let judgement = route.kernel().evaluate(&elsewhere(route, caller).about(&action));
    match judgement.decision.verdict {
        Verdict::Allow => Ok(action),
        Verdict::RequireApproval | Verdict::Deny => Err(judgement.decision.reason),
    }
}

/// The circumstances of a request that leads to another server than the agent itself.
fn elsewhere<'a>(route: &'a Route, caller: &'a Caller) -> Context<'a> {
    Context { endpoint: None, ..route.context(caller) }
}

/// Whether it leads to public addresses alone.
async fn leads_out(webhook: &Webhook) -> bool {
    if !webhook.is_public() {
        return false;
    }
    if webhook.address().is_some() {
        return true;
    }
    let resolving = tokio::net::lookup_host((webhook.host.as_str(), webhook.port));
    let Ok(Ok(addresses)) = tokio::time::timeout(RESOLVE_TIMEOUT, resolving).await else {
        return false;
    };
    let mut addresses = addresses.peekable();
    addresses.peek().is_some() && addresses.all(|address| is_public(address.ip()))
}

/// Decides on, and records, the request within the decision that it is part of.
pub(super) async fn decide(
    route: &Route,
    caller: &Caller,
    within: &str,
    action: Action,
) -> Result<(), Reason> {
    let mut context = elsewhere(route, caller);
    context.within = Some(within);
    match route.kernel().decide(context, action).await {
        Ok(permit) => {
            route.count(Verdict::Allow, permit.receipt().decision.reason);
            Ok(())
        }
        Err(refusal) => {
            route.count(refusal.decision.verdict, refusal.decision.reason);
            Err(refusal.decision.reason)
        }
    }
}
