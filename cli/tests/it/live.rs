//! The real daemon: `aegis up` with its own ledger and policies, a server behind it, and what people
//! and agents see of it.

use std::{
    path::PathBuf,
    process::{Child, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{Json, Router, routing::post};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader, Lines},
    net::{TcpListener, TcpStream},
    process::{ChildStdin, ChildStdout},
};

use crate::fixture::{self, Run, command, text};

/// How long a test waits for what must come.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

const IDENTITY: &str = "apiVersion: aegis.dev/v1alpha1
kind: AgentIdentity
metadata: { name: bot }
spec: { sponsor: ada@acme.example, selector: { unix: { uid: @UID@ } } }
";
const POLICY: &str = "apiVersion: aegis.dev/v1alpha1
kind: AgentPolicy
metadata: { name: all }
spec:
  rules:
    - { name: calls, effect: allow }
    - { name: never, effect: deny, tools: [never] }
";
const THRESHOLDS: &str = "apiVersion: aegis.dev/v1alpha1
kind: ClusterTrustThreshold
metadata: { name: all }
spec: { tMin: 1, tau: 1000 }
";

/// A daemon over a temporary folder, which can be killed and started again.
pub(crate) struct Live {
    pub(crate) folder: tempfile::TempDir,
    daemon: Option<Child>,
    more: Vec<String>,
    env: Vec<(&'static str, String)>,
}

impl Drop for Live {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Live {
    /// Starts one with the standard documents and these.
    pub(crate) async fn start(documents: &str, more: &[&str]) -> Self {
        Self::start_in(Vec::new(), documents, more).await
    }

    /// Starts one with these variables in its environment.
    pub(crate) async fn start_in(
        env: Vec<(&'static str, String)>,
        documents: &str,
        more: &[&str],
    ) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("aegis.d")).unwrap();
        let more = more.iter().map(|&word| word.to_owned()).collect();
        let mut live = Self { folder, daemon: None, more, env };
        let identity = IDENTITY.replace("@UID@", &nix::unistd::getuid().to_string());
        live.write("identity.yaml", &identity);
        live.write("policy.yaml", POLICY);
        live.write("thresholds.yaml", THRESHOLDS);
        live.write("upstream.yaml", documents);
        live.up().await;
        live
    }

    pub(crate) fn write(&self, name: &str, document: &str) {
        std::fs::write(self.folder.path().join("aegis.d").join(name), document).unwrap();
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    pub(crate) async fn up(&mut self) {
        let state = self.state();
        let mut args = vec!["up", "--config", "aegis.d", "--state", text(&state)];
        if !self.more.iter().any(|word| word == "--admin") {
            args.extend(["--admin", "127.0.0.1:0"]);
        }
        args.extend(self.more.iter().map(String::as_str));
        let log = std::fs::File::create(self.folder.path().join("log")).unwrap();
        let mut command = command(&args);
        command.current_dir(self.folder.path());
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        let child = command.stdout(Stdio::null()).stderr(log).spawn().unwrap();
        self.daemon = Some(child);
        let deadline = Instant::now() + PATIENCE;
        while self.aegis(&["status"]).await.code != 0 {
            let ended = self.daemon.as_mut().unwrap().try_wait().unwrap();
            let log = || std::fs::read_to_string(self.folder.path().join("log")).unwrap();
            assert!(ended.is_none() && Instant::now() < deadline, "{ended:?}: {}", log());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    pub(crate) fn kill(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
    }

    /// As if the machine had lost its power.
    pub(crate) async fn restart(&mut self) {
        self.kill();
        self.up().await;
    }

    /// Ends it in order.
    pub(crate) async fn stop(&mut self) {
        let mut daemon = self.daemon.take().unwrap();
        let pid = nix::unistd::Pid::from_raw(daemon.id().try_into().unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        let status = tokio::task::spawn_blocking(move || daemon.wait()).await.unwrap().unwrap();
        assert!(status.success(), "{status}");
    }

    pub(crate) async fn aegis(&self, args: &[&str]) -> Run {
        let mut command = tokio::process::Command::from(command(args));
        command.env("AEGIS_SOCKET", self.state().join("control.sock")).stdin(Stdio::null());
        Run::of(&command.output().await.unwrap())
    }

    pub(crate) async fn status(&self) -> Value {
        self.aegis(&["status", "-o", "json"]).await.exits(0).json()
    }

    /// Entries of a kind.
    pub(crate) async fn entries(&self, kind: &str) -> Vec<Value> {
        let run = self.aegis(&["audit", "query", "--kind", kind, "-o", "json"]).await.exits(0);
        let entry = |line| serde_json::from_str::<Value>(line).unwrap()["entry"].take();
        run.stdout.lines().map(entry).collect()
    }

    /// Calls a tool of the HTTP upstream; the reason it is refused for, or `None`.
    pub(crate) async fn call(&self, tool: &str) -> Option<String> {
        let status = self.status().await;
        let address = status["upstreams"][0]["address"].as_str().unwrap().to_owned();
        let host = address.strip_prefix("http://").unwrap().strip_suffix("/mcp").unwrap();
        let body = json!({
            "jsonrpc": "2.0", "id": 1, "method": "tools/call",
            "params": { "name": tool, "arguments": {} },
        })
        .to_string();
        let request = format!(
            "POST /mcp HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\naccept: application/json\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        let mut stream = TcpStream::connect(host).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (_, body) = answer.split_once("\r\n\r\n").unwrap();
        let body: Value = serde_json::from_str(body).unwrap_or_else(|_| panic!("{answer}"));
        let places = ["/result/_meta/aegis.dev~1reason", "/error/data/reason"];
        places.iter().find_map(|place| body.pointer(place)?.as_str().map(str::to_owned))
    }
}

/// An MCP server over HTTP that has `echo` and `never`, described so.
pub(crate) struct Server {
    pub(crate) description: Arc<Mutex<&'static str>>,
    pub(crate) calls: Arc<Mutex<u64>>,
    pub(crate) document: String,
}

impl Server {
    pub(crate) async fn start() -> Self {
        let (description, calls) = (Arc::new(Mutex::new("first")), Arc::new(Mutex::new(0)));
        let (told, counted) = (Arc::clone(&description), Arc::clone(&calls));
        let answer = async move |Json(message): Json<Value>| {
            let result = match message["method"].as_str().unwrap() {
                "tools/list" => {
                    let tool = |name: &str| json!({ "name": name, "description": *told.lock(), "inputSchema": {} });
                    json!({ "tools": [tool("echo"), tool("never")] })
                }
                _ => {
                    *counted.lock() += 1;
                    json!({ "content": [] })
                }
            };
            Json(json!({ "jsonrpc": "2.0", "id": message["id"], "result": result }))
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new().route("/mcp", post(answer));
        tokio::spawn(async move { axum::serve(listener, router).await });
        let document = format!(
            "apiVersion: aegis.dev/v1alpha1\nkind: AgentUpstream\nmetadata: {{ name: calc }}\nspec: {{ url: 'http://{address}/mcp' }}\n"
        );
        Self { description, calls, document }
    }
}

pub(crate) async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds().await {
        assert!(Instant::now() < deadline, "timed out: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn every_durability_has_its_records() {
    for mode in ["overlap", "buffered"] {
        let server = Server::start().await;
        let mut live = Live::start(&server.document, &["--audit", mode]).await;
        assert_eq!(live.status().await["audit"], mode);
        for _ in 0..20 {
            assert_eq!(live.call("echo").await, None);
        }
        assert_eq!(live.call("never").await.as_deref(), Some("policy_denied"));
        if mode == "overlap" {
            // Whoever has an answer has it after its decision was on disk: no crash takes that away.
            live.restart().await;
            assert!(live.entries("decision").await.len() >= 21);
        }
        live.stop().await;
        let database = live.state().join("ledger.db");
        let run = live.aegis(&["audit", "verify", "--database", text(&database)]).await;
        run.exits(0);
        live.up().await;
        let decisions = live.entries("decision").await;
        let allowed = decisions.iter().filter(|entry| entry["result"] == "allow").count();
        assert_eq!((decisions.len(), allowed), (21, 20), "{mode}");
        assert_eq!(*server.calls.lock(), 20);
    }
}

#[tokio::test]
async fn a_broken_document_keeps_its_last_version_in_the_daemon() {
    let server = Server::start().await;
    let live = Live::start(&server.document, &[]).await;
    assert_eq!(live.call("never").await.as_deref(), Some("policy_denied"));
    live.aegis(&["status", "--check"]).await.exits(0);
    live.aegis(&["status", "--check", "--coverage"]).await.exits(1);
    live.write("policy.yaml", &POLICY.replace("effect: deny", "efect: deny"));
    until("the broken document is noticed", async || {
        live.aegis(&["status", "--check"]).await.code == 1
    })
    .await;
    assert_eq!(live.call("never").await.as_deref(), Some("policy_denied"));
    assert_eq!(live.call("echo").await, None);
    let policy = live.status().await["policies"][0].clone();
    assert_eq!(policy["state"], "last_good");
    let why = policy["message"].as_str().unwrap();
    for part in ["/aegis.d/policy.yaml:7:", "`efect`", "its last good version stays in force"] {
        assert!(why.contains(part), "{why}");
    }
    live.write("policy.yaml", &POLICY.replace("effect: deny", "effect: allow"));
    until("the mended document is in force", async || {
        live.aegis(&["status", "--check"]).await.code == 0
    })
    .await;
    assert_eq!(live.call("never").await, None);
}

#[tokio::test]
async fn a_quarantine_and_a_revocation_survive_a_restart() {
    let server = Server::start().await;
    let mut live = Live::start(&server.document, &[]).await;
    assert_eq!(live.call("echo").await, None);
    live.aegis(&["agents", "quarantine", "bot", "--reason", "test"]).await.exits(0);
    assert_eq!(live.call("echo").await.as_deref(), Some("agent_quarantined"));
    live.restart().await;
    assert_eq!(live.call("echo").await.as_deref(), Some("agent_quarantined"));
    live.aegis(&["agents", "release", "bot", "--reason", "test"]).await.exits(0);
    live.restart().await;
    assert_eq!(live.call("echo").await, None);
    live.aegis(&["agents", "revoke", "bot", "--reason", "test"]).await.exits(0);
    assert_eq!(live.call("echo").await.as_deref(), Some("identity_revoked"));
    live.restart().await;
    assert_eq!(live.call("echo").await.as_deref(), Some("identity_revoked"));
    assert_eq!(*server.calls.lock(), 2);
}

/// Enrols a second factor, and starts anew with it.
pub(crate) async fn enroll(live: &mut Live) {
    let state = live.state();
    let enroll = ["approvals", "enroll", "--state", text(&state)];
    live.aegis(&enroll).await.exits(0);
    let code = fixture::code(&state.join("totp.pending"), 0);
    live.aegis(&[&enroll[..], &["--confirm", &code]].concat()).await.exits(0);
    live.restart().await;
}

/// The next code of the enrolled secret that was not used before: codes work once, and the one
/// before, this one and the next are valid.
pub(crate) fn code(live: &Live, step: i8) -> String {
    fixture::code(&live.state().join("totp.secret"), step)
}

#[tokio::test]
async fn orders_need_the_second_factor_that_is_enrolled() {
    let server = Server::start().await;
    let mut live = Live::start(&server.document, &[]).await;
    assert_eq!(live.call("echo").await, None);
    enroll(&mut live).await;
    *server.description.lock() = "second";
    assert_eq!(live.call("echo").await.as_deref(), Some("tool_quarantined"));
    let tools = live.aegis(&["tools", "list", "-o", "json"]).await.json();
    let seen = tools[0]["seen"].as_str().unwrap().to_owned();
    let adjust = ["trust", "adjust", "bot", "--score", "700", "--reason", "test"];
    let quarantine = ["agents", "quarantine", "bot", "--reason", "test"];
    let release = ["agents", "release", "bot", "--reason", "test"];
    let revoke = ["agents", "revoke", "bot", "--reason", "test"];
    let pin = ["tools", "pin", "calc", "echo", "--digest", &seen];
    for order in [&adjust[..], &quarantine, &release, &revoke, &pin] {
        live.aegis(order).await.refuses("a second factor is enrolled");
        let wrong = [order, &["--totp", "nonsense"]].concat();
        live.aegis(&wrong).await.refuses("the code is not valid");
    }
    assert_eq!(live.call("echo").await.as_deref(), Some("tool_quarantined"));
    // Wrong codes have used the step up: a new start forgets that.
    live.restart().await;
    assert_eq!(live.call("echo").await.as_deref(), Some("tool_quarantined"));
    live.aegis(&[&pin[..], &["--totp", &code(&live, -1)]].concat()).await.exits(0);
    assert_eq!(live.call("echo").await, None);
    live.aegis(&[&adjust[..], &["--totp", &code(&live, 0)]].concat()).await.exits(0);
    for kind in ["trust_adjusted", "tool_pinned"] {
        let entries = live.entries(kind).await;
        let by_hand = entries.iter().find(|entry| entry["detail"]["factor"] == "totp");
        let who = by_hand.unwrap_or_else(|| panic!("{entries:?}"))["detail"]["who"].as_str();
        assert!(who.unwrap().contains(':'), "{who:?}");
    }
}

/// A client's end of `aegis wrap`.
pub(crate) struct Wrapped {
    pub(crate) process: tokio::process::Child,
    input: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Wrapped {
    pub(crate) fn start(live: &Live, args: &[&str]) -> Self {
        let mut command = tokio::process::Command::from(command(args));
        command.env("AEGIS_SOCKET", live.state().join("control.sock"));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut process = command.spawn().unwrap();
        let input = process.stdin.take().unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        Self { process, input, lines }
    }

    pub(crate) async fn ask(&mut self, method: &str, params: Value) -> Value {
        let message = json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params });
        self.input.write_all(format!("{message}\n").as_bytes()).await.unwrap();
        let line = tokio::time::timeout(PATIENCE, self.lines.next_line()).await.unwrap();
        serde_json::from_str(&line.unwrap().unwrap()).unwrap()
    }
}

/// A stdio server: it tells its environment, and has the tools `echo` and `never`.
pub(crate) const STDIO: &str = "import json,os,sys
for line in sys.stdin:
    m=json.loads(line)
    r={'tools':[{'name':n,'inputSchema':{}} for n in ('echo','never')]} if m['method']=='tools/list' else {'content':[{'type':'text','text':json.dumps(dict(os.environ))}]}
    print(json.dumps({'jsonrpc':'2.0','id':m['id'],'result':r}),flush=True)
";

pub(crate) fn registered(live_script: &str) -> String {
    format!(
        "apiVersion: aegis.dev/v1alpha1\nkind: AgentUpstream\nmetadata: {{ name: notes }}\nspec:\n  command:\n    program: python3\n    args: ['-c', {}]\n    env: {{ NOTES_TOKEN: of-the-daemon }}\n",
        serde_json::to_string(live_script).unwrap()
    )
}

#[tokio::test]
async fn a_registered_command_is_started_by_the_daemon_and_no_other() {
    let live = Live::start(&registered(STDIO), &[]).await;
    let mut client = Wrapped::start(&live, &["wrap", "--server", "notes"]);
    let echo = json!({ "name": "echo", "arguments": {} });
    let answer = client.ask("tools/call", echo.clone()).await;
    let environment = answer["result"]["content"][0]["text"].as_str().unwrap();
    assert!(environment.contains("of-the-daemon"), "{environment}");
    assert!(!environment.contains("AEGIS"), "{environment}");
    let answer = client.ask("tools/call", json!({ "name": "never", "arguments": {} })).await;
    assert_eq!(answer["result"]["_meta"]["aegis.dev/reason"], "policy_denied");
    // The same command may be given, another may not.
    let mut same =
        Wrapped::start(&live, &["wrap", "--server", "notes", "--", "python3", "-c", STDIO]);
    assert!(same.ask("tools/call", echo).await["result"]["content"].is_array());
    let other = ["wrap", "--server", "notes", "--", "python3", "-c", "print(1)"];
    live.aegis(&other).await.refuses("is not the one that AgentUpstream `notes` registers");
    live.aegis(&["wrap", "--server", "other"]).await.refuses("registers a command");
    live.aegis(&["wrap"]).await.refuses("name the server");
    // A client that goes takes its server with it.
    drop(client.input);
    let ended = tokio::time::timeout(PATIENCE, client.process.wait()).await.unwrap().unwrap();
    assert!(ended.success(), "{ended}");
    let told = live.status().await["upstreams"][0].clone();
    assert_eq!(told["address"], "aegis wrap --server notes");
}

#[tokio::test]
async fn a_registered_command_that_cannot_start_is_told() {
    let document = registered(STDIO).replace("program: python3", "program: /nonexistent/server");
    let live = Live::start(&document, &[]).await;
    live.aegis(&["wrap", "--server", "notes"]).await.refuses("cannot start `/nonexistent/server`");
}
