//! One operation, however it is spelled.

use aegis_core::{AgentId, decision::Reason};
use http::StatusCode;
use proptest::prelude::*;
use serde_json::json;

use super::super::{CARD_PATH, deny};
use super::*;

const EXTENSION: &str = "https://example.com/extensions/geo/v1";

fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in pairs {
        headers.append(*name, value.parse().unwrap());
    }
    headers
}

fn sent(
    method: Method,
    target: &str,
    pairs: &[(&'static str, &str)],
    body: &str,
) -> Result<ClientRequest, Refusal> {
    let (path, query) = match target.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (target, None),
    };
    let headers = headers(pairs);
    let received = Received { method: &method, path, query, headers: &headers, base: "/" };
    let body = Bytes::copy_from_slice(body.as_bytes());
    parse("planner", &received, &[EXTENSION.to_owned()], body, Limits::default())
}

const V1: (&str, &str) = ("a2a-version", "1.0");

fn rpc(method: &str, params: Value) -> String {
    json!({ "jsonrpc": "2.0", "id": 7, "method": method, "params": params }).to_string()
}

fn rpc_1(method: &str, params: Value) -> ClientRequest {
    sent(Method::POST, "/", &[V1], &rpc(method, params)).unwrap()
}

fn rpc_3(method: &str, params: Value) -> ClientRequest {
    sent(Method::POST, "/", &[], &rpc(method, params)).unwrap()
}

fn rest_1(method: Method, target: &str, body: &str) -> ClientRequest {
    sent(method, target, &[V1], body).unwrap()
}

fn rest_3(method: Method, target: &str, body: &str) -> ClientRequest {
    sent(method, target, &[], body).unwrap()
}

fn same(requests: &[ClientRequest]) {
    let agent: AgentId = "spiffe://acme.example/ns/a/sa/b/agent/c".parse().unwrap();
    let first = &requests[0];
    for other in requests {
        assert_eq!(other.action(), first.action());
        let digest = |request: &ClientRequest| request.action().digest(&agent, None).unwrap();
        assert_eq!(digest(other), digest(first));
        assert_eq!(other.tasks(), first.tasks());
        assert_eq!(other.webhook(), first.webhook());
    }
}

/// The message as 0.3 writes it.
fn message_of_0_3() -> Value {
    json!({
        "message": {
            "kind": "message", "messageId": "m-3", "taskId": "t", "contextId": "c", "role": "user",
            "parts": [
                { "kind": "text", "text": "Book it", "metadata": { "x": 1 } },
                { "kind": "file", "file": { "uri": "https://e.example/f", "mimeType": "text/plain", "name": "f" } },
                { "kind": "file", "file": { "bytes": "aGk=" } },
                { "kind": "data", "data": { "n": [1, { "data": 2 }] } },
            ],
        },
        "configuration": {
            "acceptedOutputModes": ["text/plain"], "historyLength": 3, "blocking": false,
            "pushNotificationConfig": {
                "id": "p", "url": "https://h.example/", "token": "secret",
                "authentication": { "schemes": ["Bearer"], "credentials": "more" },
            },
        },
        "metadata": { "k": "v" },
    })
}

/// The message as 0.3's proto writes it.
fn message_of_0_3_proto() -> Value {
    json!({
        "request": {
            "message_id": "m-4", "task_id": "t", "context_id": "c", "role": "ROLE_USER",
            "content": [
                { "text": "Book it", "metadata": { "x": 1 } },
                { "file": { "file_with_uri": "https://e.example/f", "mime_type": "text/plain", "name": "f" } },
                { "file": { "file_with_bytes": "aGk=" } },
                { "data": { "data": { "n": [1, { "data": 2 }] } } },
            ],
        },
        "configuration": {
            "accepted_output_modes": ["text/plain"], "history_length": 3, "blocking": false,
            "push_notification": {
                "id": "p", "url": "https://h.example/", "token": "secret",
                "authentication": { "schemes": ["Bearer"], "credentials": "more" },
            },
        },
        "metadata": { "k": "v" },
    })
}

#[test]
fn the_same_message_is_the_same_action_in_every_binding_and_version() {
    let message = json!({
        "messageId": "m-1", "taskId": "t", "contextId": "c", "role": "ROLE_USER",
        "parts": [
            { "text": "Book it", "metadata": { "x": 1 } },
            { "url": "https://e.example/f", "mediaType": "text/plain", "filename": "f" },
            { "raw": "aGk=" },
            { "data": { "n": [1, { "data": 2 }] } },
        ],
    });
    let configuration = json!({
        "acceptedOutputModes": ["text/plain"], "historyLength": 3, "returnImmediately": true,
        "taskPushNotificationConfig": {
            "id": "p", "url": "https://h.example/", "token": "secret",
            "authentication": { "scheme": "Bearer", "credentials": "more" },
        },
    });
    let current = json!({
        "message": message, "configuration": configuration, "metadata": { "k": "v" },
    });
    let mut snake = current.clone();
    snake["message"]["message_id"] = "m-2".into();
    snake["message"].as_object_mut().unwrap().remove("messageId");
    let task = snake["message"].as_object_mut().unwrap().remove("taskId").unwrap();
    snake["message"]["task_id"] = task;
    snake["configuration"]["historyLength"] = "3".into();
    snake["message"]["role"] = 1.into();
    snake["tenant"] = "".into();
    let (legacy, proto) = (message_of_0_3(), message_of_0_3_proto());
    let requests = [
        rpc_1("SendMessage", current.clone()),
        rpc_1("SendMessage", snake),
        rest_1(Method::POST, "/message:send", &current.to_string()),
        rest_1(Method::POST, "/message%3Asend", &current.to_string()),
        rpc_3("message/send", legacy.clone()),
        rest_3(Method::POST, "/v1/message:send", &legacy.to_string()),
        rest_3(Method::POST, "/v1/message:send", &proto.to_string()),
    ];
    same(&requests);
    let action = requests[0].action();
    assert_eq!((action.method.as_str(), action.kind.as_str()), ("SendMessage", "agent_message"));
    assert_eq!(action.arguments["message"]["parts"][0]["text"], "Book it");
    assert!(!action.arguments.to_string().contains("secret"));
    assert_eq!(requests[0].tasks(), ["t"]);
    assert_eq!(requests[0].context(), Some("c"));
    assert_eq!(requests[0].webhook(), Some("https://h.example/"));
    let waits = json!({ "message": { "role": "user", "parts": [{ "kind": "text", "text": "x" }] },
        "configuration": { "blocking": true } });
    let plain = json!({ "message": { "role": "ROLE_USER", "parts": [{ "text": "x" }] } });
    same(&[rpc_3("message/send", waits), rpc_1("SendMessage", plain)]);
}

#[test]
fn the_same_request_about_a_task_is_the_same_action_everywhere() {
    let (get, post) = (Method::GET, Method::POST);
    same(&[
        rpc_1("GetTask", json!({ "id": "t", "historyLength": 2 })),
        rest_1(get.clone(), "/tasks/t?historyLength=2", ""),
        rest_1(get.clone(), "/tasks/%74?history_length=2", ""),
        rpc_3("tasks/get", json!({ "id": "t", "historyLength": 2 })),
        rest_3(get.clone(), "/v1/tasks/t?historyLength=2", ""),
    ]);
    same(&[
        rpc_1("CancelTask", json!({ "id": "t" })),
        rest_1(post.clone(), "/tasks/t:cancel", r#"{"id":"t"}"#),
        rest_1(post.clone(), "/tasks/t%3Acancel", ""),
        rpc_3("tasks/cancel", json!({ "id": "t" })),
        rest_3(post.clone(), "/v1/tasks/t:cancel", r#"{"name":"tasks/t"}"#),
    ]);
    same(&[
        rpc_1("SubscribeToTask", json!({ "id": "t" })),
        rest_1(post, "/tasks/t:subscribe", ""),
        rest_1(get.clone(), "/tasks/t:subscribe", ""),
        rpc_3("tasks/resubscribe", json!({ "id": "t" })),
    ]);
    same(&[
        rpc_1("ListTasks", json!({ "contextId": "c", "pageSize": 5, "includeArtifacts": true })),
        rest_1(get.clone(), "/tasks?contextId=c&pageSize=5&includeArtifacts=true", ""),
    ]);
    same(&[
        rpc_1("GetExtendedAgentCard", json!({})),
        rest_1(get.clone(), "/extendedAgentCard", ""),
        rpc_3("agent/getAuthenticatedExtendedCard", json!({})),
        rest_3(get, "/v1/card", ""),
    ]);
}

#[test]
fn the_same_request_about_a_webhook_is_the_same_action_everywhere() {
    let (get, post, delete) = (Method::GET, Method::POST, Method::DELETE);
    let configs = "pushNotificationConfigs";
    same(&[
        rpc_1(
            "CreateTaskPushNotificationConfig",
            json!({ "taskId": "t", "id": "p", "url": "https://h.example/" }),
        ),
        rest_1(
            post.clone(),
            &format!("/tasks/t/{configs}"),
            r#"{"id":"p","url":"https://h.example/"}"#,
        ),
        rpc_3(
            "tasks/pushNotificationConfig/set",
            json!({ "taskId": "t", "pushNotificationConfig": { "id": "p", "url": "https://h.example/" } }),
        ),
        rest_3(
            post,
            &format!("/v1/tasks/t/{configs}"),
            r#"{"parent":"tasks/t","config_id":"p","config":{"push_notification_config":{"id":"p","url":"https://h.example/"}}}"#,
        ),
    ]);
    same(&[
        rpc_1("GetTaskPushNotificationConfig", json!({ "taskId": "t", "id": "p" })),
        rest_1(get.clone(), &format!("/tasks/t/{configs}/p"), ""),
        rpc_3(
            "tasks/pushNotificationConfig/get",
            json!({ "id": "t", "pushNotificationConfigId": "p" }),
        ),
        rest_3(get.clone(), &format!("/v1/tasks/t/{configs}/p"), ""),
    ]);
    same(&[
        rpc_1("ListTaskPushNotificationConfigs", json!({ "taskId": "t" })),
        rest_1(get, &format!("/tasks/t/{configs}"), ""),
        rpc_3("tasks/pushNotificationConfig/list", json!({ "id": "t" })),
    ]);
    same(&[
        rpc_1("DeleteTaskPushNotificationConfig", json!({ "taskId": "t", "id": "p" })),
        rest_1(delete, &format!("/tasks/t/{configs}/p"), ""),
        rpc_3(
            "tasks/pushNotificationConfig/delete",
            json!({ "id": "t", "pushNotificationConfigId": "p" }),
        ),
    ]);
}

fn refused(method: Method, target: &str, pairs: &[(&'static str, &str)], body: &str) -> Refusal {
    sent(method, target, pairs, body).unwrap_err()
}

fn error_of(refusal: &Refusal) -> (StatusCode, Value) {
    let answer = deny::refuse(refusal);
    (answer.status, serde_json::from_slice(&answer.body).unwrap())
}

#[test]
fn unknown_versions_are_refused_by_the_bindings_own_error() {
    let body = rpc("SendMessage", json!({ "message": { "parts": [{ "text": "x" }] } }));
    for version in ["2.0", "1.1", "0.2", "x"] {
        let refusal = refused(Method::POST, "/", &[("a2a-version", version)], &body);
        assert_eq!(refusal.error.reason(), Reason::ProtocolUnsupported);
        let (status, error) = error_of(&refusal);
        assert_eq!((status.as_u16(), &error["error"]["code"]), (200, &json!(-32009)));
        assert_eq!(
            (&error["id"], &error["error"]["data"][0]["reason"]),
            (&json!(7), &json!("VERSION_NOT_SUPPORTED"))
        );
        let (status, error) =
            error_of(&refused(Method::GET, "/tasks/t", &[("a2a-version", version)], ""));
        assert_eq!((status.as_u16(), &error["error"]["code"]), (400, &json!(400)));
        assert_eq!(error["error"]["status"], "FAILED_PRECONDITION");
        assert_eq!(error["error"]["details"][0]["reason"], "VERSION_NOT_SUPPORTED");
    }
    // An empty version is 0.3, which has neither this path nor this method.
    assert_eq!(
        error_of(&refused(Method::GET, "/tasks/t", &[], "")).1["error"]["details"][0]["reason"],
        "VERSION_NOT_SUPPORTED"
    );
    assert_eq!(error_of(&refused(Method::POST, "/", &[], &body)).1["error"]["code"], -32601);
    let old = rpc("message/send", json!({ "message": { "parts": [{ "text": "x" }] } }));
    assert_eq!(error_of(&refused(Method::POST, "/", &[V1], &old)).1["error"]["code"], -32601);
}

#[test]
fn header_query_path_and_body_must_agree() {
    let mismatch =
        |refusal: Refusal| assert_eq!(refusal.error.reason(), Reason::HeaderMismatch, "{refusal}");
    mismatch(refused(Method::GET, "/tasks/t?A2A-Version=0.3", &[V1], ""));
    mismatch(refused(Method::GET, "/v1/tasks/t", &[V1], ""));
    mismatch(refused(Method::GET, "/tasks/t", &[V1, V1], ""));
    mismatch(refused(Method::POST, "/tasks/t:cancel", &[V1], r#"{"id":"other"}"#));
    mismatch(refused(Method::POST, "/tasks/t:cancel", &[V1], r#"{"id":""  ,"tenant":"x","id2":1,"taskId":"t"}"#.replace("\"id\":\"\"  ,\"tenant\":\"x\",", "\"id\":\"u\",").as_str()));
    mismatch(refused(
        Method::POST,
        "/acme/message:send",
        &[V1],
        r#"{"tenant":"x","message":{"parts":[{"text":"x"}]}}"#,
    ));
    mismatch(refused(
        Method::POST,
        "/tasks/t/pushNotificationConfigs",
        &[V1],
        r#"{"task_id":"u","url":"https://h.example/"}"#,
    ));
    mismatch(refused(
        Method::POST,
        "/v1/tasks/t/pushNotificationConfigs",
        &[],
        r#"{"config":{"name":"tasks/u/pushNotificationConfigs/p","pushNotificationConfig":{"url":"https://h.example/"}}}"#,
    ));
    mismatch(refused(
        Method::POST,
        "/",
        &[V1, ("a2a-extensions", EXTENSION), ("x-a2a-extensions", "https://other.example/")],
        &rpc("GetTask", json!({ "id": "t" })),
    ));
    // The query alone may name the version.
    assert_eq!(
        sent(Method::GET, "/tasks/t?A2A-Version=1.0", &[], "").unwrap().asked().form.version,
        Version::V1_0
    );
}

#[test]
fn unknown_extensions_are_refused_by_the_bindings_own_error() {
    let message = json!({ "message": { "parts": [{ "text": "x" }] } });
    let header =
        ("a2a-extensions", "https://example.com/extensions/geo/v1, https://other.example/x");
    let refusal = refused(Method::POST, "/", &[V1, header], &rpc("SendMessage", message.clone()));
    assert_eq!(error_of(&refusal).1["error"]["code"], -32004);
    let refusal = refused(Method::POST, "/message:send", &[V1, header], &message.to_string());
    let (status, error) = error_of(&refusal);
    assert_eq!(
        (status.as_u16(), &error["error"]["details"][0]["reason"]),
        (400, &json!("UNSUPPORTED_OPERATION"))
    );
    let within = json!({ "message": { "parts": [{ "text": "x" }], "extensions": ["https://other.example/x"] } });
    assert_eq!(
        refused(Method::POST, "/", &[V1], &rpc("SendMessage", within)).error,
        ProtocolError::ExtensionUnknown
    );
    // A known one is judged.
    let known =
        sent(Method::POST, "/", &[V1, ("a2a-extensions", EXTENSION)], &rpc("SendMessage", message));
    assert_eq!(known.unwrap().action().arguments["a2a-extensions"], json!([EXTENSION]));
}

#[test]
fn a_member_has_one_spelling() {
    let send = |message: Value| {
        refused(Method::POST, "/", &[V1], &rpc("SendMessage", json!({ "message": message })))
    };
    let parts = json!([{ "text": "x" }]);
    for message in [
        json!({ "parts": parts, "taskId": "t", "task_id": "u" }),
        json!({ "parts": parts, "taskId": "", "task_id": "u" }),
        json!({ "parts": parts, "TaskId": "u" }),
        json!({ "parts": parts, "taskid": "u" }),
        json!({ "parts": parts, "x_y": 1, "xY": 2 }),
    ] {
        assert!(matches!(send(message.clone()).error, ProtocolError::Ambiguous(_)), "{message}");
    }
    // 0.3's names and those that they are judged by: both would be forwarded.
    let webhook = json!({ "url": "https://h.example/" });
    let part = json!({ "kind": "file", "file": { "uri": "https://e.example/" }, "url": "https://f.example/" });
    for params in [
        json!({ "message": { "role": "user", "parts": parts }, "configuration":
            { "pushNotificationConfig": webhook, "taskPushNotificationConfig": webhook } }),
        json!({ "message": { "role": "user", "parts": [part] } }),
    ] {
        let error = refused(Method::POST, "/", &[], &rpc("message/send", params.clone())).error;
        assert!(matches!(error, ProtocolError::Ambiguous(_)), "{params}");
    }
    let text = r#"{"jsonrpc":"2.0","id":7,"method":"GetTask","params":{"id":"t","id":"u"}}"#;
    assert_eq!(refused(Method::POST, "/", &[V1], text).error.reason(), Reason::DuplicateKey);
    assert_eq!(
        refused(Method::GET, "/tasks/t?historyLength=1&historyLength=2", &[V1], "").error,
        ProtocolError::Query
    );
}

#[test]
fn what_is_no_request_is_refused() {
    let cases = [
        (Method::POST, "/", "[]".to_owned(), -32600),
        (Method::POST, "/", "{".to_owned(), -32700),
        (
            Method::POST,
            "/",
            json!({ "jsonrpc": "2.0", "method": "GetTask", "params": { "id": "t" } }).to_string(),
            -32600,
        ),
        (Method::POST, "/", json!({ "jsonrpc": "2.0", "id": 1, "result": {} }).to_string(), -32600),
        (Method::POST, "/", rpc("tools/call", json!({})), -32601),
        (Method::POST, "/", rpc("GetTask", json!({})), -32602),
        (Method::POST, "/", rpc("GetTask", json!({ "id": 5 })), -32602),
        (Method::POST, "/", rpc("SendMessage", json!({})), -32602),
        (Method::POST, "/", rpc("SendMessage", json!({ "message": { "parts": [] } })), -32602),
        (
            Method::POST,
            "/",
            rpc(
                "SendMessage",
                json!({ "message": { "role": "boss", "parts": [{ "text": "x" }] } }),
            ),
            -32602,
        ),
        (Method::POST, "/?x=1", rpc("GetTask", json!({ "id": "t" })), -32600),
    ];
    for (method, target, body, code) in cases {
        assert_eq!(
            error_of(&refused(method, target, &[V1], &body)).1["error"]["code"],
            code,
            "{body}"
        );
    }
    assert_eq!(error_of(&refused(Method::GET, "/tasks/t", &[V1], "{}")).0, 400);
    assert_eq!(error_of(&refused(Method::POST, "/tasks/t:cancel?id=u", &[V1], "{}")).0, 400);
    assert_eq!(error_of(&refused(Method::GET, "/other", &[V1], "")).0, 404);
}

#[test]
fn whoever_looks_for_the_card_need_not_know_the_version() {
    for pairs in [&[][..], &[V1][..], &[("a2a-version", "9.9")][..]] {
        let request = sent(Method::GET, CARD_PATH, pairs, "").unwrap();
        assert_eq!(request.asked().operation, Operation::GetAgentCard);
        assert_eq!(request.action().kind.as_str(), "session");
    }
}

proptest! {
    #[test]
    fn judged_bytes_are_forwarded_bytes(text in any::<String>(), extra in any::<i32>()) {
        let body = rpc("SendMessage", json!({
            "message": { "messageId": "m", "parts": [{ "text": text }], "x-vendor": extra },
        }));
        let request = sent(Method::POST, "/", &[V1], &body).unwrap();
        prop_assert_eq!(request.bytes(), &Bytes::from(body));
        prop_assert_eq!(&request.action().arguments["message"]["parts"][0]["text"], &json!(text));
        prop_assert_eq!(&request.action().arguments["message"]["x-vendor"], &json!(extra));
    }

    #[test]
    fn no_request_makes_it_panic(target in "/[a-zA-Z0-9%:/.?&=_-]{0,60}", body in any::<Vec<u8>>(), get in any::<bool>()) {
        let method = if get { Method::GET } else { Method::POST };
        let _ = sent(method, &target, &[V1], &String::from_utf8_lossy(&body));
    }

    #[test]
    fn a_task_is_the_same_in_path_and_params(id in "[a-zA-Z0-9._~:@-]{1,40}") {
        prop_assume!(!matches!(id.as_str(), "." | "..") && !id.ends_with(":cancel") && !id.ends_with(":subscribe"));
        let encoded: String = id.bytes().map(|b| format!("%{b:02X}")).collect();
        same(&[
            rpc_1("GetTask", json!({ "id": id })),
            rest_1(Method::GET, &format!("/tasks/{id}"), ""),
            rest_1(Method::GET, &format!("/tasks/{encoded}"), ""),
        ]);
    }
}
