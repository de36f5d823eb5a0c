//! A daemon under a user of its own, and an agent under another: needs root, which alone can be both.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, chown},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};

use crate::fixture::text;

const DAEMON: u32 = 64_001;
const AGENT: u32 = 64_002;
const STRANGER: u32 = 64_003;
const PATIENCE: Duration = Duration::from_secs(60);

const DOCUMENTS: &str = "apiVersion: aegis.dev/v1alpha1
kind: AgentIdentity
metadata: { name: bot }
spec: { sponsor: ada@acme.example, selector: { unix: { uid: 64002 } } }
---
apiVersion: aegis.dev/v1alpha1
kind: AgentPolicy
metadata: { name: all }
spec:
  rules:
    - { name: look, effect: allow, tools: [look] }
    - { name: change, effect: require_approval, tools: [change] }
---
apiVersion: aegis.dev/v1alpha1
kind: ClusterTrustThreshold
metadata: { name: all }
spec: { tMin: 1, tau: 1000 }
---
apiVersion: aegis.dev/v1alpha1
kind: AgentUpstream
metadata: { name: notes }
spec:
  command: { program: python3, args: ['-c', @SCRIPT@] }
";
const SCRIPT: &str = "import json,os,sys
for line in sys.stdin:
    m=json.loads(line)
    r={'tools':[{'name':n,'inputSchema':{}} for n in ('look','change')]} if m['method']=='tools/list' else {'content':[{'type':'text','text':'%d %s'%(os.getuid(),[l for l in open('/proc/self/status') if l.startswith('CapEff')])}]}
    print(json.dumps({'jsonrpc':'2.0','id':m['id'],'result':r}),flush=True)
";

struct World {
    folder: tempfile::TempDir,
    daemon: Child,
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

/// A command as another user.
fn run_as(uid: u32, capabilities: &str, program: &Path, args: &[&str]) -> Command {
    let mut command = Command::new("setpriv");
    let user = uid.to_string();
    command.args(["--reuid", &user, "--regid", &user, "--clear-groups", "--no-new-privs"]);
    command.args(["--inh-caps", capabilities, "--ambient-caps", capabilities, "--"]);
    command.arg(program).args(args);
    command.env_clear().env("PATH", "/usr/local/bin:/usr/bin:/bin").env("HOME", "/nonexistent");
    command
}

impl World {
    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let open = fs::Permissions::from_mode(0o755);
        fs::set_permissions(folder.path(), open.clone()).unwrap();
        // Where every user can run them.
        let opa = std::env::var_os("AEGIS_OPA")
            .map_or_else(|| PathBuf::from("/usr/bin/opa"), PathBuf::from);
        for (from, to) in [(Path::new(env!("CARGO_BIN_EXE_aegis")), at("aegis")), (&opa, at("opa"))]
        {
            if fs::hard_link(from, &to).is_err() {
                fs::copy(from, &to).unwrap();
            }
        }
        for name in ["config", "run", "state"] {
            fs::create_dir(at(name)).unwrap();
            fs::set_permissions(at(name), open.clone()).unwrap();
        }
        fs::set_permissions(at("state"), fs::Permissions::from_mode(0o700)).unwrap();
        for name in ["run", "state"] {
            chown(at(name), Some(DAEMON), Some(DAEMON)).unwrap();
        }
        let script = serde_json::to_string(SCRIPT).unwrap();
        fs::write(at("config/all.yaml"), DOCUMENTS.replace("@SCRIPT@", &script)).unwrap();
        let (config, state, run) = (at("config"), at("state"), at("run"));
        let args = [
            "up",
            "--config",
            text(&config),
            "--state",
            text(&state),
            "--sockets",
            text(&run),
            "--admin",
            "127.0.0.1:0",
        ];
        let capabilities = "-all,+sys_ptrace,+dac_read_search";
        let mut daemon = run_as(DAEMON, capabilities, &at("aegis"), &args);
        let log = fs::File::create(at("log")).unwrap();
        daemon.env("AEGIS_OPA", at("opa")).stdout(Stdio::null()).stderr(log);
        let daemon = daemon.spawn().unwrap();
        let mut world = Self { folder, daemon };
        let deadline = Instant::now() + PATIENCE;
        while !world.aegis(0, &["status"]).await.status.success() {
            let ended = world.daemon.try_wait().unwrap();
            let log = fs::read_to_string(world.path("log")).unwrap();
            assert!(ended.is_none() && Instant::now() < deadline, "{ended:?}: {log}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        world
    }

    fn command(&self, uid: u32, args: &[&str]) -> tokio::process::Command {
        let mut command = run_as(uid, "-all", &self.path("aegis"), args);
        command.env("AEGIS_SOCKET", self.path("run/control.sock"));
        command.into()
    }

    async fn aegis(&self, uid: u32, args: &[&str]) -> Output {
        self.command(uid, args).stdin(Stdio::null()).output().await.unwrap()
    }

    async fn refuses(&self, uid: u32, args: &[&str], part: &str) {
        let output = self.aegis(uid, args).await;
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && said.contains(part), "{args:?} as {uid}: {said}");
    }

    async fn json(&self, args: &[&str]) -> Value {
        let output = self.aegis(0, args).await;
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Whether a user who asks a socket for a path gets an answer that holds `part`.
    fn answers(&self, uid: u32, socket: &str, path: &str, part: &str) -> bool {
        self.can(uid, &["python3", "-c", GET, socket, path, part])
    }

    /// Whether a user can do this to a file of the world.
    fn can(&self, uid: u32, words: &[&str]) -> bool {
        let (program, args) = words.split_first().unwrap();
        let mut command = run_as(uid, "-all", Path::new(program), args);
        command.current_dir(self.folder.path()).stdout(Stdio::null()).stderr(Stdio::null());
        command.status().unwrap().success()
    }
}

/// Asks a socket for a path, until the answer holds what is expected or ends.
const GET: &str = "import socket,sys,time
end=time.monotonic()+30
s=socket.socket(socket.AF_UNIX); s.settimeout(60); s.connect(sys.argv[1])
s.sendall(b'GET %s HTTP/1.1\\r\\nhost: localhost\\r\\nconnection: close\\r\\n\\r\\n' % sys.argv[2].encode())
answer=b''
while sys.argv[3].encode() not in answer:
    part=s.recv(4096)
    if not part or time.monotonic()>end: sys.exit(1)
    answer+=part
";

#[tokio::test]
async fn an_agent_of_another_user_is_governed_and_cannot_govern() {
    let privileged = nix::unistd::getuid().is_root()
        && Command::new("setpriv").arg("--version").output().is_ok();
    if !privileged {
        eprintln!("skipped: only root with setpriv can be two users");
        return;
    }
    let world = World::start().await;
    let status = world.json(&["status", "-o", "json"]).await;
    assert_eq!(status["advisory"], json!([]), "nothing here is advisory");

    // Its calls are governed; the server runs as the daemon's user, without its capabilities.
    let mut agent = world.command(AGENT, &["wrap", "--server", "notes"]);
    agent.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
    let mut agent = agent.spawn().unwrap();
    let mut input = agent.stdin.take().unwrap();
    let mut lines = BufReader::new(agent.stdout.take().unwrap()).lines();
    let mut ask = async |tool: &str| {
        let call = json!({ "jsonrpc": "2.0", "id": tool, "method": "tools/call",
            "params": { "name": tool, "arguments": {} } });
        input.write_all(format!("{call}\n").as_bytes()).await.unwrap();
    };
    let mut answered = async || {
        let line = tokio::time::timeout(PATIENCE, lines.next_line()).await.unwrap();
        let answer: Value = serde_json::from_str(&line.unwrap().unwrap()).unwrap();
        (answer["id"].clone(), answer["result"]["content"][0]["text"].as_str().unwrap().to_owned())
    };
    ask("look").await;
    let (id, said) = answered().await;
    assert_eq!(id, "look");
    assert!(said.starts_with("64001 ") && said.contains("0000000000000000"), "{said}");

    // A call that needs a human: the agent's user cannot be that human.
    ask("change").await;
    let mut waiting = json!([]);
    let deadline = Instant::now() + PATIENCE;
    while waiting[0]["id"].is_null() && Instant::now() < deadline {
        waiting = world.json(&["approvals", "list", "-o", "json"]).await;
    }
    let id = waiting[0]["id"].as_str().unwrap();
    let only = "this daemon answers its own user";
    for uid in [AGENT, STRANGER] {
        world.refuses(uid, &["approvals", "approve", id], only).await;
        world.refuses(uid, &["approvals", "list"], only).await;
        world.refuses(uid, &["audit", "query"], only).await;
        assert!(world.answers(uid, "run/control.sock", "/v1/events", "HTTP/1.1 403 "));
        world.refuses(uid, &["agents", "release", "bot", "--reason", "x"], only).await;
        let glass = ["agents", "break-glass", "bot", "--reason", "because I would like to"];
        world.refuses(uid, &glass, only).await;
        for file in ["state", "state/ledger.key", "state/ca", "state/ledger.db"] {
            assert!(!world.can(uid, &["ls", "-l", &format!("{file}/.")]), "{uid} {file}");
            assert!(!world.can(uid, &["cat", file]), "{uid} can read {file}");
        }
        assert!(!world.can(uid, &["sh", "-c", "echo x >> config/all.yaml"]));
        assert!(!world.can(uid, &["touch", "config/more.yaml"]));
        assert!(!world.can(uid, &["rm", "-f", "run/control.sock"]));
    }
    assert!(world.answers(0, "run/control.sock", "/v1/events", "event: open"));
    assert!(world.answers(AGENT, "run/kernel.sock", "/v1/self", "\"mode\":\"enforced\""));
    assert!(world.answers(STRANGER, "run/kernel.sock", "/v1/self", "HTTP/1.1 403 "));
    world.refuses(STRANGER, &["wrap", "--server", "notes"], "AgentIdentity").await;
    // A stranger makes no route, whatever it calls it.
    world.refuses(STRANGER, &["wrap", "--server", "made-up", "--", "true"], "AgentIdentity").await;
    let status = world.json(&["status", "-o", "json"]).await;
    assert!(!status["upstreams"].to_string().contains("made-up"), "{status}");
    // Root is not the agent: that its account differs is on record.
    let done = world.aegis(0, &["approvals", "approve", id]).await;
    assert!(done.status.success(), "{done:?}");
    assert_eq!(answered().await.0, "change");
    let shown = world.json(&["approvals", "show", id, "-o", "json"]).await;
    assert_eq!(shown["votes"][0]["factor"], "account");
}

/// Opens a connection as one user, goes on as another, and sends a request.
const HANDED_ON: &str = "import os,socket,sys
host,port,maker,user=sys.argv[1],*map(int,sys.argv[2:5])
os.seteuid(maker)
s=socket.socket(); s.connect((host,port))
os.seteuid(0)
os.setgroups([]); os.setgid(user); os.setuid(user)
body=b'{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"ping\"}'
s.sendall(b'POST /mcp HTTP/1.1\\r\\nhost: %s:%d\\r\\nconnection: close\\r\\naccept: application/json\\r\\ncontent-type: application/json\\r\\ncontent-length: %d\\r\\n\\r\\n' % (host.encode(),port,len(body))+body)
answer=b''
while True:
    part=s.recv(4096)
    if not part: break
    answer+=part
print(answer.decode())
";

/// A socket that one user has made does not speak for a program of another that holds it now.
#[tokio::test]
async fn a_socket_speaks_for_the_user_who_made_it() {
    let privileged = nix::unistd::getuid().is_root()
        && Command::new("setpriv").arg("--version").output().is_ok();
    if !privileged {
        eprintln!("skipped: only root with setpriv can be two users");
        return;
    }
    let world = World::start().await;
    // What it leads to does not matter: who asks is settled before.
    let upstream = "apiVersion: aegis.dev/v1alpha1\nkind: AgentUpstream\nmetadata: { name: web }\nspec: { url: 'http://127.0.0.1:1/mcp' }\n";
    fs::write(world.path("config/web.yaml"), upstream).unwrap();
    let deadline = Instant::now() + PATIENCE;
    let address = loop {
        let status = world.json(&["status", "-o", "json"]).await;
        let found = status["upstreams"].as_array().unwrap().iter().find(|u| u["name"] == "web");
        if let Some(found) = found {
            break found["address"].as_str().unwrap().to_owned();
        }
        assert!(Instant::now() < deadline, "the upstream does not come up");
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    let host = address.strip_prefix("http://").unwrap().strip_suffix("/mcp").unwrap();
    let (host, port) = host.split_once(':').unwrap();
    let ask = |maker: u32, user: u32| {
        let (maker, user) = (maker.to_string(), user.to_string());
        let output = Command::new("python3")
            .args(["-c", HANDED_ON, host, port, &maker, &user])
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let own = ask(AGENT, AGENT);
    assert!(!own.contains("identity_"), "{own}");
    let handed_on = ask(STRANGER, AGENT);
    assert!(handed_on.contains("identity_missing"), "{handed_on}");
    let lent = ask(AGENT, STRANGER);
    assert!(lent.contains("identity_missing"), "{lent}");
}

#[test]
fn the_unit_is_printed() {
    let run = crate::fixture::aegis(&["up", "--as-service", "--operator", "ada"]).exits(0);
    assert!(run.stdout.contains("--sockets /run/aegis") && run.stdout.contains("--operator ada"));
    assert!(run.stdout.contains("StateDirectoryMode=0700"), "{}", run.stdout);
    assert!(run.stdout.contains("\nLimitNOFILE=65536\n"), "{}", run.stdout);
}

/// Asks the console: method, path, token, body; prints the status.
const ASK: &str = "import http.client,sys
address,method,path,token,body=sys.argv[1:6]
c=http.client.HTTPConnection(address,timeout=60)
c.request(method,'/console/api/'+path,body or None,{'authorization':'Bearer '+token,'content-type':'application/json'})
r=c.getresponse(); print(r.status,r.read().decode())
";

/// A code and a token are worth nothing in the hands of another user, least of all an agent's.
#[tokio::test]
async fn a_session_of_the_console_is_its_users() {
    let privileged = nix::unistd::getuid().is_root()
        && Command::new("setpriv").arg("--version").output().is_ok();
    if !privileged {
        eprintln!("skipped: only root with setpriv can be two users");
        return;
    }
    let world = World::start().await;
    let link = world.json(&["console", "-o", "json"]).await;
    let url = link["url"].as_str().unwrap().strip_prefix("http://").unwrap().to_owned();
    let (address, code) = url.split_once("/console/#").unwrap();
    let ask = |uid: u32, method: &str, path: &str, token: &str, body: &str| {
        let args = ["-c", ASK, address, method, path, token, body];
        let output = run_as(uid, "-all", Path::new("python3"), &args).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let enter = json!({ "token": code }).to_string();
    for uid in [AGENT, STRANGER] {
        world.refuses(uid, &["console"], "this daemon answers its own user").await;
        let said = ask(uid, "POST", "session", "", &enter);
        assert!(said.starts_with("403 ") && said.contains("its own user"), "{said}");
    }
    let session = ask(0, "POST", "session", "", &enter);
    let session: Value = serde_json::from_str(session.strip_prefix("200 ").unwrap()).unwrap();
    let token = session["token"].as_str().unwrap();
    assert!(ask(0, "GET", "v1/status", token, "").starts_with("200 "));
    for (uid, status) in [(AGENT, "403 "), (STRANGER, "403 "), (DAEMON, "401 ")] {
        let said = ask(uid, "GET", "v1/status", token, "");
        assert!(said.starts_with(status), "{uid}: {said}");
    }
}
