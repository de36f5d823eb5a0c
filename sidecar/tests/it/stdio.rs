//! A wrapped command: the same rules on two pipes.

use std::sync::Arc;

use aegis_api::frame::{self, Channel, Frame};
use aegis_audit::{Kind, Outcome};
use serde_json::{Value, json};
use tokio::io::{DuplexStream, ReadHalf, WriteHalf};

use crate::{
    upstream::{TOOLS, definitions, is_own},
    world::{PATIENCE, World, asking, call, modern, request, world_with},
};

/// The wrapper's end of the session.
struct Wrapper {
    world: Arc<World>,
    reader: ReadHalf<DuplexStream>,
    writer: WriteHalf<DuplexStream>,
}

async fn wrapper() -> Wrapper {
    let world = world_with(json!({ "command": { "program": "calc" } })).await;
    Wrapper::of(Arc::new(world), "stdio-1")
}

impl Wrapper {
    fn of(world: Arc<World>, session: &str) -> Self {
        let (near, far) = tokio::io::duplex(1 << 16);
        let caller = world.caller(session);
        tokio::spawn(aegis_sidecar::stdio::serve(Arc::clone(&world.route), caller, far));
        let (reader, writer) = tokio::io::split(near);
        Self { world, reader, writer }
    }

    /// Another session of the same route.
    fn session(&self, session: &str) -> Self {
        Self::of(Arc::clone(&self.world), session)
    }

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

    async fn frame(&mut self) -> Frame {
        let frame = tokio::time::timeout(PATIENCE, frame::read(&mut self.reader)).await;
        frame.unwrap().unwrap().unwrap()
    }

    /// What leaves next, whatever it is.
    async fn raw(&mut self) -> (Channel, Value) {
        let Frame { channel, payload } = self.frame().await;
        (channel, serde_json::from_slice(&payload).unwrap())
    }

    /// Lists the server's tools where Aegis itself asks for them.
    async fn lists(&mut self) {
        let (channel, asked) = self.raw().await;
        assert!(channel == Channel::Server && is_own(&asked), "{asked}");
        self.lists_for(&asked).await;
    }

    async fn lists_for(&mut self, asked: &Value) {
        let result = json!({ "tools": definitions(&TOOLS) });
        self.server(json!({ "jsonrpc": "2.0", "id": asked["id"], "result": result })).await;
    }

    /// What leaves next; Aegis' own requests are answered on the way.
    async fn next(&mut self) -> (Channel, Value) {
        loop {
            let (channel, message) = self.raw().await;
            if channel != Channel::Server || !is_own(&message) {
                return (channel, message);
            }
            self.lists_for(&message).await;
        }
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
    wrapper.lists().await;
    let sent = wrapper.frame().await;
    assert_eq!(sent, Frame { channel: Channel::Server, payload: odd.into() });
    let odd = "{ \"result\":{} ,\"id\":1,\"jsonrpc\":\"2.0\" }";
    wrapper.server(odd).await;
    let back = wrapper.frame().await;
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
    crate::approvals::vote(&wrapper.world, true).await;
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

#[tokio::test]
async fn a_wrapped_server_lists_its_tools_before_the_first_call() {
    let mut wrapper = wrapper().await;
    wrapper.client(call(1, "echo")).await;
    wrapper.client(call(2, "absent")).await;
    let (channel, asked) = wrapper.raw().await;
    assert!(channel == Channel::Server && is_own(&asked), "{asked}");
    assert_eq!(asked["method"], "tools/list");
    // What is no answer to it is none, and what is behind it goes on.
    wrapper.client(request(3, "ping", json!({}))).await;
    assert_eq!(wrapper.raw().await, (Channel::Server, request(3, "ping", json!({}))));
    wrapper.server(json!({ "jsonrpc": "2.0", "id": "aegis-other", "result": {} })).await;
    wrapper.lists_for(&asked).await;
    // Once for both calls; the client sees neither the request nor its answer.
    let mut left = [wrapper.raw().await, wrapper.raw().await];
    left.sort_by_key(|(_, message)| message["id"].as_u64());
    assert_eq!(left[0], (Channel::Server, call(1, "echo")));
    let (channel, refused) = &left[1];
    assert_eq!((*channel, &refused["error"]["code"]), (Channel::Client, &json!(-32602)));
    // A second answer under the same id is no more an answer to anything.
    wrapper.lists_for(&asked).await;
    let done = json!({ "jsonrpc": "2.0", "id": 1, "result": {} });
    wrapper.server(&done).await;
    assert_eq!(wrapper.raw().await, (Channel::Client, done));
    let decided = wrapper.world.recorded(Kind::Decision, 2).await;
    assert!(decided.iter().any(|entry| entry.action_text("tool_pin").is_some()));
}

#[tokio::test]
async fn a_wrapped_server_whose_definition_has_changed_between_two_sessions_is_noticed() {
    let mut wrapper = wrapper().await;
    wrapper.client(call(1, "echo")).await;
    assert_eq!(wrapper.to(Channel::Server).await["id"], 1);
    let mut second = wrapper.session("stdio-2");
    second.client(call(1, "echo")).await;
    let (_, asked) = second.raw().await;
    let other = json!([{ "name": "echo", "description": "and more", "inputSchema": {} }]);
    let result = json!({ "jsonrpc": "2.0", "id": asked["id"], "result": { "tools": other } });
    second.server(result).await;
    let (channel, answer) = second.raw().await;
    assert_eq!(channel, Channel::Client);
    assert_eq!(answer["result"]["_meta"]["aegis.dev/reason"], "tool_quarantined");
}

#[tokio::test]
async fn a_wrapped_server_that_refuses_to_list_has_no_tool_to_call() {
    let mut wrapper = wrapper().await;
    wrapper.client(call(1, "echo")).await;
    let (_, asked) = wrapper.raw().await;
    let error = json!({ "code": -32601, "message": "Method not found" });
    wrapper.server(json!({ "jsonrpc": "2.0", "id": asked["id"], "error": error })).await;
    let answer = wrapper.to(Channel::Client).await;
    assert_eq!(answer["result"]["_meta"]["aegis.dev/reason"], "tools_unlisted");
    assert_eq!(wrapper.world.refused_for().await, ["tools_unlisted"]);
}

#[tokio::test]
async fn a_client_cannot_take_the_id_of_aegis_own_request() {
    let mut wrapper = wrapper().await;
    wrapper.client(call(1, "echo")).await;
    let (_, asked) = wrapper.raw().await;
    let mut clash = request(2, "ping", json!({}));
    clash["id"] = asked["id"].clone();
    wrapper.client(clash).await;
    let (channel, refused) = wrapper.raw().await;
    assert_eq!((channel, &refused["id"]), (Channel::Client, &asked["id"]));
    assert!(refused["error"].is_object(), "{refused}");
    wrapper.lists_for(&asked).await;
    assert_eq!(wrapper.raw().await.1, call(1, "echo"));
}

#[tokio::test]
async fn over_stdio_a_client_that_shows_forms_is_asked_and_repeats_the_call() {
    let mut wrapper = wrapper().await;
    let (_, body) = asking(1, "risky");
    wrapper.client(&body).await;
    let asked = wrapper.to(Channel::Client).await;
    assert_eq!(asked["result"]["resultType"], "input_required");
    crate::approvals::vote(&wrapper.world, true).await;
    let (_, plain) = asking(2, "risky");
    let mut retry = plain.clone();
    retry["params"]["requestState"] = asked["result"]["requestState"].clone();
    retry["params"]["inputResponses"] = json!({ "aegis.approval": { "action": "accept" } });
    wrapper.client(retry).await;
    let sent = wrapper.to(Channel::Server).await;
    assert_eq!(sent["params"].get("requestState"), None);
    assert_eq!(sent["params"].get("inputResponses"), None);
    assert_eq!((&sent["id"], &sent["params"]["name"]), (&plain["id"], &plain["params"]["name"]));
}
