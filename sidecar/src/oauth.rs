//! How an upstream's OAuth metadata looks to clients (RFC 9728; MCP basic/authorization).
//!
//! A client that is told 401 reads the metadata of the resource it called, to learn who issues
//! tokens for it. Behind Aegis it called Aegis' address, so the document is served there, and
//! challenges point there. Where Aegis adds a credential of its own, a client has nothing to ask a
//! token for: it sees neither.

use std::time::Duration;

use aegis_audit::entry::Outcome as Ended;
use aegis_core::decision::Reason;
use aegis_protocol::json::{self, edit};
use aegis_resources::upstream::OauthMetadata;
use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::Full;
use serde_json::Value;

use crate::{
    forward::Target,
    inbound::{self, Body, boxed},
    relay, respond,
    route::{Caller, Route},
};

const WELL_KNOWN: &str = "/.well-known/oauth-protected-resource";
/// What a challenge says before the metadata's address.
const PARAMETER: &str = "resource_metadata=\"";

/// Whether `path` is that of the metadata of the upstream at `target`.
pub(crate) fn is_metadata(target: &Target, path: &str) -> bool {
    let rest = path.strip_prefix(WELL_KNOWN);
    rest.is_some_and(|rest| rest.is_empty() || rest == target.path())
}

/// Serves the metadata: a decision and an outcome, as for every message.
pub(crate) async fn serve(route: &Route, caller: &Caller, path: &str) -> Response<Body> {
    let permit = match inbound::decide(route, caller, "session/metadata").await {
        Ok(permit) => permit,
        Err(refused) => return refused,
    };
    let (_, receipt) = permit.into_parts();
    let document = match route.spec.presents_oauth() {
        OauthMetadata::Hidden => Err(None),
        _ => read(route, path).await,
    };
    let (result, reason) = match &document {
        Ok(_) => (Ended::Success, None),
        Err(reason) => (Ended::Failure, reason.map(|reason| reason.code().to_owned())),
    };
    let bytes = document.as_ref().map_or(0, |bytes| bytes.len() as u64);
    let ending = aegis_kernel::Ending {
        result,
        reason,
        status: None,
        bytes,
        sent: 0,
        events: 0,
        micros: 0,
        redactions: 0,
    };
    if let Err(error) = route.kernel().conclude(&receipt, &ending).await {
        tracing::error!(%error, "an outcome could not be recorded");
    }
    match document {
        Ok(bytes) => {
            let mut response = Response::new(Full::new(bytes));
            let json = HeaderValue::from_static("application/json");
            response.headers_mut().insert(header::CONTENT_TYPE, json);
            boxed(response)
        }
        Err(Some(reason)) => {
            boxed(respond::http(respond::plain(respond::status_of(reason), reason)))
        }
        Err(None) => {
            boxed(respond::http(respond::plain(StatusCode::NOT_FOUND, Reason::MethodUnknown)))
        }
    }
}

/// The upstream's document; `None` if it has none.
async fn read(route: &Route, path: &str) -> Result<Bytes, Option<Reason>> {
    let target = route.target.as_ref().ok_or(Reason::UpstreamUnavailable)?;
    let timeout = Duration::from_secs(route.spec.limits.answer_timeout_secs.into());
    let (head, body) = target.get(path, timeout).await?.into_parts();
    if !head.status.is_success() {
        return Err(None);
    }
    if relay::content_type(&head.headers) != "application/json"
        || head.headers.contains_key(header::CONTENT_ENCODING)
    {
        return Err(Some(Reason::UpstreamMalformed));
    }
    let bytes = relay::collect(route, body).await?;
    let malformed = Some(Reason::UpstreamMalformed);
    let document = json::parse(&bytes, route.response_limits()).map_err(|_| malformed)?;
    if !document.get("resource").is_some_and(Value::is_string) {
        return Err(malformed);
    }
    match (route.spec.presents_oauth(), route.address()) {
        (OauthMetadata::Own, Some(address)) => {
            let own = Value::from(format!("http://{address}{}", target.path())).to_string();
            let resource = edit::find(&bytes, &["resource"]).ok_or(malformed)?;
            let edited = edit::splice(&bytes, &[(resource, own.into_bytes())]).ok_or(malformed)?;
            Ok(edited.into())
        }
        _ => Ok(bytes),
    }
}

/// A challenge of the upstream as its client gets it: with Aegis' address for the metadata; `None`
/// where clients are never asked for a token.
pub(crate) fn challenge(route: &Route, challenge: &str) -> Option<String> {
    if route.spec.presents_oauth() == OauthMetadata::Hidden {
        return None;
    }
    let (Some(address), Some(target)) = (route.address(), &route.target) else {
        return Some(challenge.to_owned());
    };
    let Some((before, rest)) = challenge.split_once(PARAMETER) else {
        return Some(challenge.to_owned());
    };
    // Up to the closing quote; an address has no quote of its own.
    let (_, after) = rest.split_once('"')?;
    Some(format!("{before}{PARAMETER}http://{address}{WELL_KNOWN}{}\"{after}", target.path()))
}
