//! A wrapped command: the same rules on two pipes.

use std::sync::Arc;

use aegis_api::frame::{self, Channel, Frame};
use aegis_audit::{Kind, Outcome};
use serde_json::{Value, json};
use tokio::io::{DuplexStream, ReadHalf, WriteHalf};

use crate::world::{PATIENCE, World, call, modern, request, world_with};

/// The wrapper's end of the session.
struct Wrapper {
    world: World,
    reader: ReadHalf<DuplexStream>,
    writer: WriteHalf<DuplexStream>,
}

async fn wrapper() -> Wrapper {
    let world = world_with(json!({ "command": { "program": "calc" } })).await;
    let (near, far) = tokio::io::duplex(1 << 16);
    let caller = world.caller("stdio-1");
    tokio::spawn(aegis_sidecar::stdio::serve(Arc::clone(&world.route), caller, far));
    let (reader, writer) = tokio::io::split(near);
    Wrapper { world, reader, writer }
}

impl Wrapper {
    async fn client(&mut self, message: impl ToString) {
        frame::write(&mut self.writer, Channel::Client, message.to_string().as_bytes())
            .await
            .unwrap();
    }

    async fn server(&mut self, message: impl ToString) {
        frame::write(&mut self.writer, Channel::Server, message.to_string().as_bytes())
            .await
            .unwrap();
    }

    async fn next(&mut self) -> (Channel, Value) {
        let frame = tokio::time::timeout(PATIENCE, frame::read(&mut self.reader)).await;
        let Frame { channel, payload } = frame.unwrap().unwrap().unwrap();
        (channel, serde_json::from_slice(&payload).unwrap())
    }

    /// What leaves next, which must go there.
    async fn to(&mut self, channel: Channel) -> Value {
        let (to, message) = self.next().await;
        assert_eq!(to, channel, "{message}");
        message
    }
}

#[tokio::test]
async fn a_call_passes_byte_for_byte_and_is_recorded() {
    let mut wrapper = wrapper().await;
    let odd = "{ \"params\":{\"name\":\"echo\"}, \"method\":\"tools/call\",\"id\":1 ,\"jsonrpc\":\"2.0\"}";
    wrapper.client(odd).await;
    let sent = frame::read(&mut wrapper.reader).await.unwrap().unwrap();
    assert_eq!(sent, Frame { channel: Channel::Server, payload: odd.into() });
    let odd = "{ \"result\":{} ,\"id\":1,\"jsonrpc\":\"2.0\" }";
    wrapper.server(odd).await;
    let back = frame::read(&mut wrapper.reader).await.unwrap().unwrap();
    assert_eq!(back, Frame { channel: Channel::Client, payload: odd.into() });
    assert_eq!(wrapper.world.recorded(Kind::Decision, 1).await.len(), 1);
    let outcome = wrapper.world.recorded(Kind::Outcome, 1).await.remove(0);
    assert_eq!(outcome.result, Outcome::Success);
}

#[tokio::test]
async fn a_denied_call_is_answered_and_never_sent() {
    let mut wrapper = wrapper().await;
    wrapper.client(call(1, "forbidden")).await;
    let answer = wrapper.to(Channel::Client).await;
    assert_eq!(answer["result"]["_meta"]["aegis.dev/reason"], "policy_denied");
    wrapper.client("not json").await;
    assert_eq!(wrapper.to(Channel::Client).await["error"]["code"], -32700);
    wrapper.client(call(2, "echo")).await;
    assert_eq!(wrapper.to(Channel::Server).await["id"], 2);
}

#[tokio::test]
async fn unparsable_server_lines_are_withheld_and_do_not_kill_the_session() {
    let mut wrapper = wrapper().await;
    wrapper.client(call(1, "echo")).await;
    wrapper.to(Channel::Server).await;
    for line in [
        "Server listening on port 3000",
        "",
        "{\"jsonrpc\":\"2.0\",\"id\":1,\"id\":1,\"result\":{}}",
        "{\"jsonrpc\":\"2.0\",\"id\":9,\"result\":{}}",
        "{\"jsonrpc\":\"2.0\",\"id\":\"1\",\"result\":{}}",
        "{\"jsonrpc\":\"2.0\",\"method\":\"notifications/evil\"}",
        "[]",
    ] {
        wrapper.server(line).await;
    }
    let good = json!({ "jsonrpc": "2.0", "id": 1, "result": {} });
    wrapper.server(&good).await;
    assert_eq!(wrapper.to(Channel::Client).await, good);
    let outcomes = wrapper.world.recorded(Kind::Outcome, 1).await;
    assert_eq!((outcomes.len(), outcomes[0].result), (1, Outcome::Success));
    // A second answer is withheld too.
    wrapper.server(&good).await;
    wrapper.client(call(2, "echo")).await;
    assert_eq!(wrapper.to(Channel::Server).await["id"], 2);
}

#[tokio::test]
async fn a_refused_notification_gets_no_answer() {
    let mut wrapper = wrapper().await;
    wrapper.client(json!({ "jsonrpc": "2.0", "method": "notifications/evil" })).await;
    wrapper.client(json!({ "jsonrpc": "2.0", "id": "nobody-asked", "result": {} })).await;
    wrapper.client(call(2, "forbidden")).await;
    assert_eq!(wrapper.to(Channel::Client).await["id"], 2, "the first answer is the call's");
    assert_eq!(wrapper.world.refused_for().await.len(), 3);
}

#[tokio::test]
async fn server_requests_over_stdio_need_a_policy() {
    let mut wrapper = wrapper().await;
    for open in [false, true] {
        if open {
            wrapper.client(call(1, "echo")).await;
            wrapper.to(Channel::Server).await;
        }
        wrapper.server(request(5, "roots/list", json!({}))).await;
        assert_eq!(wrapper.to(Channel::Server).await["error"]["code"], 4030);
        let sample =
            request(6, "sampling/createMessage", json!({ "messages": [], "maxTokens": 1 }));
        wrapper.server(&sample).await;
        assert_eq!(wrapper.to(Channel::Client).await, sample);
        let reply = json!({ "jsonrpc": "2.0", "id": 6, "result": { "role": "assistant" } });
        wrapper.client(&reply).await;
        assert_eq!(wrapper.to(Channel::Server).await, reply);
        wrapper.server(request(7, "evil/run", json!({}))).await;
        assert_eq!(wrapper.to(Channel::Server).await["error"]["code"], -32601);
    }
    assert_eq!(wrapper.world.recorded(Kind::ServerRequest, 4).await.len(), 4);
}

#[tokio::test]
async fn notifications_of_a_modern_server_pass() {
    let mut wrapper = wrapper().await;
    let (_, discover) = modern("server/discover", json!({}));
    wrapper.client(discover).await;
    wrapper.to(Channel::Server).await;
    wrapper.server(json!({ "jsonrpc": "2.0", "id": 1, "result": {} })).await;
    wrapper.to(Channel::Client).await;
    let told = json!({ "jsonrpc": "2.0", "method": "notifications/tools/list_changed" });
    wrapper.server(&told).await;
    assert_eq!(wrapper.to(Channel::Client).await, told);
    // A modern server asks within results only.
    wrapper.server(request(6, "sampling/createMessage", json!({}))).await;
    wrapper.server(&told).await;
    assert_eq!(wrapper.to(Channel::Client).await, told);
}

#[tokio::test]
async fn an_open_id_cannot_be_used_again() {
    let mut wrapper = wrapper().await;
    wrapper.client(request(1, "tools/list", json!({}))).await;
    wrapper.to(Channel::Server).await;
    wrapper.client(request(1, "ping", json!({}))).await;
    assert!(wrapper.to(Channel::Client).await["error"].is_object());
    // The answer is still a list, and is filtered as one.
    let tools =
        json!([{ "name": "forbidden", "inputSchema": {} }, { "name": "echo", "inputSchema": {} }]);
    wrapper.server(json!({ "jsonrpc": "2.0", "id": 1, "result": { "tools": tools } })).await;
    let listed = wrapper.to(Channel::Client).await;
    assert_eq!(listed["result"]["tools"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn a_held_call_does_not_hold_the_ones_behind_it() {
    let mut wrapper = wrapper().await;
    wrapper.client(call(1, "risky")).await;
    wrapper.client(call(2, "echo")).await;
    assert_eq!(wrapper.to(Channel::Server).await["id"], 2);
    let id = wrapper.world.recorded(Kind::ApprovalRequested, 1).await.remove(0).approval.unwrap();
    let vote = aegis_core::approval::Vote {
        approver: "grace@acme.example".into(),
        approve: true,
        factor: aegis_core::approval::Factor::Totp,
        comment: None,
        at: crate::world::now(),
    };
    wrapper.world.kernel.vote(&id, vote).await.unwrap();
    assert_eq!(wrapper.to(Channel::Server).await["id"], 1);
}

#[tokio::test]
async fn a_wrapper_that_leaves_ends_its_calls_as_unknown() {
    let mut wrapper = wrapper().await;
    wrapper.client(call(1, "echo")).await;
    wrapper.to(Channel::Server).await;
    let Wrapper { world, reader, writer } = wrapper;
    drop((reader, writer));
    let outcome = world.recorded(Kind::Outcome, 1).await.remove(0);
    assert_eq!(outcome.result, Outcome::Unknown);
}
