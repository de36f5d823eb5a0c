//! What would be decided about a hypothetical action, as [`aegis_sidecar::Route::govern`] would
//! have it: a server, method or tool that nobody knows is refused before any policy is asked.

use aegis_api::control::{ActionQuestion, Explanation};
use aegis_core::{
    AgentId,
    action::{Action, ActionKind, Protocol},
    decision::{Reason, Verdict},
    policy::Scope,
};
use aegis_kernel::{Context, Principal, explain::explain};
use aegis_protocol::mcp::{ClientMethod, ServerMethod};
use aegis_resources::did_you_mean;
use aegis_sidecar::pins::{Known, Pins};
use axum::{Json, extract::State, http::StatusCode};

use super::{Answer, Failure, Shared};
use crate::up::{attest::now, daemon::Daemon};

/// Why an action is refused whatever the policies say.
struct Refused {
    reason: Reason,
    /// What is unknown, and what is near.
    note: String,
    remedy: String,
}

/// What is known of the names in a question.
#[derive(Default)]
struct Names {
    namespace: Option<String>,
    pin: Option<aegis_core::Digest>,
    refused: Option<Refused>,
    note: Option<String>,
}

pub(super) async fn explain_action(
    State(daemon): Shared,
    Json(question): Json<ActionQuestion>,
) -> Answer<Explanation> {
    let state = daemon.kernel.state();
    let principal = principal(&daemon, question.agent.as_ref())?;
    let method = question.method.unwrap_or_else(|| "tools/call".into());
    let tool = question.tool.filter(|_| method == ClientMethod::ToolsCall.as_str());
    let names = look_up(&daemon, &question.server, &method, tool.as_deref());
    let kind =
        ClientMethod::from_name(&method).map_or(ActionKind::ServerRequest, ClientMethod::kind);
    let action = Action {
        kind,
        protocol: Protocol::Mcp,
        method,
        server: question.server,
        tool,
        tool_pin: names.pin,
        resource: question.resource,
        arguments: question.arguments,
    };
    let namespace = names.namespace.unwrap_or_else(|| "default".into());
    let request = Context::new(&principal, Scope::Mesh, &namespace).about(&action);
    let judgement = daemon.kernel.evaluate(&request);
    let mut told = explain(&request, &judgement, state.thresholds.of(principal.id.namespace()));
    told.notes.extend(names.note);
    if let Some(Refused { reason, note, remedy }) = names.refused {
        told.verdict = Verdict::Deny.as_str().into();
        told.reason = reason.code().into();
        told.message = reason.sentence().into();
        told.rules.clear();
        told.would_allow = vec![remedy];
        told.notes.push(note);
    }
    Ok(Json(told))
}

fn principal(daemon: &Daemon, named: Option<&AgentId>) -> Result<Principal, Failure> {
    let state = daemon.kernel.state();
    let mut agents = state.registry.agents().map(|(id, _)| id);
    let agent = match (named, agents.next(), agents.next()) {
        (Some(agent), _, _) | (None, Some(agent), None) => agent,
        _ => {
            let message = "there is not exactly one agent; name one with --agent";
            return Err(Failure(StatusCode::BAD_REQUEST, message.into()));
        }
    };
    let not_after = now().plus(std::time::Duration::from_secs(60));
    let unknown = || {
        let message = format!("no AgentIdentity is registered for {agent}");
        Failure(StatusCode::NOT_FOUND, message)
    };
    state.registry.principal(agent, not_after).ok_or_else(unknown)
}

fn look_up(daemon: &Daemon, server: &str, method: &str, tool: Option<&str>) -> Names {
    let routes = daemon.routes.lock();
    let Some((key, listening)) = routes.iter().find(|(key, _)| key.1 == server) else {
        let near = did_you_mean(server, routes.keys().map(|(_, name)| name.as_str()));
        return Names {
            refused: Some(Refused {
                reason: Reason::ServerUnknown,
                note: format!("no server is called `{server}`{near}"),
                remedy: format!(
                    "an AgentUpstream `{server}`; a wrapper with a command of its own needs none"
                ),
            }),
            ..Names::default()
        };
    };
    let mut names = Names { namespace: Some(key.0.clone()), ..Names::default() };
    let client = ClientMethod::from_name(method);
    if client.is_none() && ServerMethod::from_name(method).is_none() {
        let known = ClientMethod::ALL.iter().map(|method| method.as_str());
        let near = did_you_mean(method, known);
        names.refused = Some(Refused {
            reason: Reason::MethodUnknown,
            note: format!("no method of MCP that Aegis knows is called `{method}`{near}"),
            remedy: "a method that Aegis knows".into(),
        });
    } else if let Some(tool) = tool {
        look_up_tool(&listening.route.pins, server, tool, &mut names);
    }
    names
}

fn look_up_tool(pins: &Pins, server: &str, tool: &str, names: &mut Names) {
    match pins.find(tool) {
        Known::Pinned(pin, _) => names.pin = Some(pin),
        Known::Quarantined => {
            names.refused = Some(Refused {
                reason: Reason::ToolQuarantined,
                note: format!("nobody has agreed to the definition of `{tool}` that was seen last"),
                remedy: format!("a human who agrees to it: `aegis tools pin {server} {tool}`"),
            });
        }
        Known::Absent => {
            let tools = pins.tools();
            let seen: Vec<&str> = tools
                .iter()
                .filter(|(_, tool)| tool.seen.is_some())
                .map(|(name, _)| name.as_str())
                .collect();
            if seen.is_empty() {
                // At the first call Aegis lists them itself, and judges by what it finds.
                names.pin = pins.pin(tool);
                names.note = Some(format!(
                    "server `{server}` has not listed its tools since Aegis started; if it has no `{tool}`, the call is refused ({})",
                    Reason::ToolUnknown
                ));
                return;
            }
            let near = did_you_mean(tool, seen.iter().copied());
            names.refused = Some(Refused {
                reason: Reason::ToolUnknown,
                note: format!(
                    "server `{server}` has listed {} tools, and none is called `{tool}`{near}",
                    seen.len()
                ),
                remedy: format!("a tool that `aegis tools list {server}` names"),
            });
        }
    }
}
