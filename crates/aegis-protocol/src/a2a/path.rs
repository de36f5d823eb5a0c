//! The HTTP+JSON binding's paths (specification 1.0 §11.3 and `a2a.proto`; 0.3 §3.5.3), read once.
//!
//! Clients encode what they need not (`/message%3Astream`), and servers decode before they match, so
//! a path is decoded before it is matched here too: segment by segment, once. What a second reader
//! could take for something else is refused: encoded slashes and backslashes, an encoded percent
//! sign (which a second decoding would change), dot segments, empty segments, control characters.

use http::Method;

use super::{CARD_PATH, Operation, ProtocolError, Version};
use crate::mcp::name::is_invisible;

/// The longest id of a task, a context or a configuration, and the longest tenant. Bytes.
pub(super) const MAX_ID_BYTES: usize = 256;
/// What begins a path and is therefore no tenant's name.
const NO_TENANT: [&str; 6] =
    ["tasks", "message:send", "message:stream", "extendedAgentCard", "v1", ".well-known"];

/// What a path says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Located {
    pub(super) operation: Operation,
    /// The version whose path it is; a card has none.
    pub(super) version: Option<Version>,
    pub(super) tenant: Option<String>,
    pub(super) task: Option<String>,
    pub(super) config: Option<String>,
}

/// Whether `path` is that of the JSON-RPC endpoint at `base`.
pub(super) fn is_endpoint(base: &str, path: &str) -> bool {
    let base = base.trim_end_matches('/');
    path.strip_prefix(base).is_some_and(|rest| matches!(rest, "" | "/"))
}

/// The base of an agent that is known by its address alone, as the path of a request tells: what stands
/// before the path of an operation of HTTP+JSON, and the whole path where there is none, to which
/// JSON-RPC is posted. A tenant counts as a part of it.
#[must_use]
pub fn base_of(path: &str) -> &str {
    let mut from = 0;
    for piece in path.split('/') {
        let decoded = percent_decoded(piece.as_bytes(), false).unwrap_or_default();
        if NO_TENANT.contains(&decoded.as_str()) {
            return path.get(..from.max(1) - 1).filter(|base| !base.is_empty()).unwrap_or("/");
        }
        from += piece.len() + 1;
    }
    path
}

/// Reads `path` of an agent at `base`.
pub(super) fn locate(method: &Method, base: &str, path: &str) -> Result<Located, ProtocolError> {
    if path == CARD_PATH {
        return card(method);
    }
    let base = base.trim_end_matches('/');
    let rest = path.strip_prefix(base).and_then(|rest| rest.strip_prefix('/'));
    let rest = rest.ok_or(ProtocolError::OperationUnknown)?;
    let decoded = rest.split('/').map(segment).collect::<Result<Vec<_>, _>>()?;
    let mut segments: Vec<&str> = decoded.iter().map(String::as_str).collect();
    if segments == [".well-known", "agent-card.json"] {
        return card(method);
    }
    let version = if segments.first() == Some(&"v1") { Version::V0_3 } else { Version::V1_0 };
    if version == Version::V0_3 {
        segments.remove(0);
    }
    let begins = segments.first().copied().unwrap_or_default();
    let tenant = (!NO_TENANT.contains(&begins) && begins != "card" && version == Version::V1_0)
        .then(|| begins.to_owned());
    if tenant.is_some() {
        segments.remove(0);
        if segments.first().is_none_or(|next| !NO_TENANT.contains(next)) {
            return Err(ProtocolError::OperationUnknown);
        }
    }
    let mut located = within(method, version, &segments)?;
    located.tenant = tenant;
    Ok(located)
}

fn card(method: &Method) -> Result<Located, ProtocolError> {
    if method != Method::GET {
        return Err(ProtocolError::OperationUnknown);
    }
    let operation = Operation::GetAgentCard;
    Ok(Located { operation, version: None, tenant: None, task: None, config: None })
}

/// What the segments below base, version and tenant say.
fn within(method: &Method, version: Version, segments: &[&str]) -> Result<Located, ProtocolError> {
    let located = |operation, task: Option<&str>, config: Option<&str>| {
        let (task, config) = (task.map(str::to_owned), config.map(str::to_owned));
        Ok(Located { operation, version: Some(version), tenant: None, task, config })
    };
    let (get, post) = (method == Method::GET, method == Method::POST);
    match segments {
        ["message:send"] if post => located(Operation::SendMessage, None, None),
        ["message:stream"] if post => located(Operation::SendStreamingMessage, None, None),
        ["tasks"] if get => located(Operation::ListTasks, None, None),
        ["extendedAgentCard"] if get && version == Version::V1_0 => {
            located(Operation::GetExtendedAgentCard, None, None)
        }
        ["card"] if get && version == Version::V0_3 => {
            located(Operation::GetExtendedAgentCard, None, None)
        }
        ["tasks", task] => match (task.strip_suffix(":cancel"), task.strip_suffix(":subscribe")) {
            (Some(task), _) if post => located(Operation::CancelTask, Some(task), None),
            // The proto says GET, the table of §5.3 says POST.
            (_, Some(task)) if post || get => located(Operation::SubscribeToTask, Some(task), None),
            (None, None) if get => located(Operation::GetTask, Some(task), None),
            _ => Err(ProtocolError::OperationUnknown),
        },
        ["tasks", task, "pushNotificationConfigs"] if post => {
            located(Operation::CreatePushConfig, Some(task), None)
        }
        ["tasks", task, "pushNotificationConfigs"] if get => {
            located(Operation::ListPushConfigs, Some(task), None)
        }
        ["tasks", task, "pushNotificationConfigs", config] if get => {
            located(Operation::GetPushConfig, Some(task), Some(config))
        }
        ["tasks", task, "pushNotificationConfigs", config] if *method == Method::DELETE => {
            located(Operation::DeletePushConfig, Some(task), Some(config))
        }
        _ => Err(ProtocolError::OperationUnknown),
    }
}

/// One segment, decoded once.
fn segment(text: &str) -> Result<String, ProtocolError> {
    let decoded = percent_decoded(text.as_bytes(), false).ok_or(ProtocolError::Path)?;
    if matches!(decoded.as_str(), "" | "." | "..")
        || decoded
            .chars()
            .any(|c| matches!(c, '/' | '\\' | '%' | '?' | '#' | ';') || is_invisible(c))
    {
        return Err(ProtocolError::Path);
    }
    Ok(decoded)
}

/// Text that was percent-encoded once; in a query `+` is a space.
pub(super) fn percent_decoded(text: &[u8], plus: bool) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.iter();
    while let Some(&byte) = bytes.next() {
        let byte = match byte {
            b'%' => {
                let mut digit = || char::from(*bytes.next()?).to_digit(16);
                let (high, low) = (digit()?, digit()?);
                u8::try_from(high << 4 | low).ok()?
            }
            b'+' if plus => b' ',
            byte => byte,
        };
        out.push(byte);
    }
    String::from_utf8(out).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(method: Method, path: &str) -> Result<(Operation, Option<Version>), ProtocolError> {
        locate(&method, "/a2a", path).map(|located| (located.operation, located.version))
    }

    #[test]
    fn a_base_is_what_stands_before_an_operation() {
        for (path, base) in [
            ("/", "/"),
            ("/a2a", "/a2a"),
            ("/a2a/", "/a2a/"),
            ("/message:send", "/"),
            ("/message%3Asend", "/"),
            ("/a2a/message:stream", "/a2a"),
            ("/a2a/v1/message:send", "/a2a"),
            ("/a2a/tenant/tasks/t", "/a2a/tenant"),
            ("/a2a/tasks/tasks", "/a2a"),
            ("/v1/card", "/"),
            ("/.well-known/agent-card.json", "/"),
            ("/a2a/.well-known/agent-card.json", "/a2a"),
        ] {
            assert_eq!(base_of(path), base, "{path}");
        }
    }

    #[test]
    fn every_path_of_both_versions_is_its_operation() {
        use Operation::*;
        let (get, post, delete) = (Method::GET, Method::POST, Method::DELETE);
        let configs = "pushNotificationConfigs";
        for (method, path, operation) in [
            (&post, "message:send".to_owned(), SendMessage),
            (&post, "message:stream".to_owned(), SendStreamingMessage),
            (&get, "tasks".to_owned(), ListTasks),
            (&get, "tasks/t".to_owned(), GetTask),
            (&post, "tasks/t:cancel".to_owned(), CancelTask),
            (&post, "tasks/t:subscribe".to_owned(), SubscribeToTask),
            (&get, "tasks/t:subscribe".to_owned(), SubscribeToTask),
            (&post, format!("tasks/t/{configs}"), CreatePushConfig),
            (&get, format!("tasks/t/{configs}"), ListPushConfigs),
            (&get, format!("tasks/t/{configs}/c"), GetPushConfig),
            (&delete, format!("tasks/t/{configs}/c"), DeletePushConfig),
        ] {
            for (prefix, version) in
                [("", Version::V1_0), ("v1/", Version::V0_3), ("acme/", Version::V1_0)]
            {
                let path = format!("/a2a/{prefix}{path}");
                assert_eq!(of(method.clone(), &path), Ok((operation, Some(version))), "{path}");
            }
        }
        assert_eq!(of(Method::GET, "/a2a/extendedAgentCard").unwrap().0, GetExtendedAgentCard);
        assert_eq!(of(Method::GET, "/a2a/v1/card").unwrap().0, GetExtendedAgentCard);
        assert_eq!(of(Method::GET, CARD_PATH), Ok((GetAgentCard, None)));
        assert_eq!(of(Method::GET, "/a2a/.well-known/agent-card.json"), Ok((GetAgentCard, None)));
    }

    #[test]
    fn a_percent_encoded_path_is_normalised_before_matching() {
        for path in ["/a2a/message%3Astream", "/a2a/message%3astream", "/a2a/%6Dessage:stream"] {
            assert_eq!(
                of(Method::POST, path).unwrap().0,
                Operation::SendStreamingMessage,
                "{path}"
            );
        }
        let located = locate(&Method::POST, "/", "/tasks/a%3Ab%3Acancel").unwrap();
        assert_eq!(located.task.as_deref(), Some("a:b"));
    }

    #[test]
    fn a_path_with_more_than_one_reading_is_refused() {
        for path in [
            "/a2a/tasks/a%2Fb",
            "/a2a/tasks/a%5Cb",
            "/a2a/tasks/%2e%2e",
            "/a2a/tasks/../message:send",
            "/a2a//tasks/t",
            "/a2a/tasks/",
            "/a2a/tasks/a%253Acancel",
            "/a2a/tasks/a%00",
            "/a2a/tasks/%ff",
            "/a2a/tasks/%4",
            "/a2a/tasks/a;b",
        ] {
            assert_eq!(of(Method::GET, path), Err(ProtocolError::Path), "{path}");
        }
    }

    #[test]
    fn other_paths_and_methods_are_unknown() {
        for (method, path) in [
            (Method::GET, "/other/tasks"),
            (Method::GET, "/a2atasks"),
            (Method::PUT, "/a2a/tasks/t"),
            (Method::POST, "/a2a/tasks/t"),
            (Method::GET, "/a2a/tasks/t:cancel"),
            (Method::POST, "/a2a/acme/other/message:send"),
            (Method::POST, "/a2a/v1/acme/message:send"),
            (Method::POST, CARD_PATH),
            (Method::GET, "/a2a/card"),
            (Method::GET, "/a2a/v1/extendedAgentCard"),
            (Method::GET, "/a2a/tasks/tasks/t"),
        ] {
            assert_eq!(of(method, path), Err(ProtocolError::OperationUnknown), "{path}");
        }
    }
}
