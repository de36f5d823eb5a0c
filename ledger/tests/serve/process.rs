//! A running `aegis-ledger serve`, ended with the test.

use std::{
    io::{BufRead as _, BufReader},
    process::{Child, Command, ExitStatus, Stdio},
    sync::Arc,
    time::Duration,
};

use aegis_audit::Location;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use parking_lot::Mutex;
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::{ca::World, fixture::PATIENCE};

pub(crate) struct Process {
    child: Child,
    lines: Arc<Mutex<Vec<Value>>>,
}

impl Process {
    /// Starts a replica that remembers checkpoints in the folder `state`.
    pub(crate) fn start(world: &World, state: &str, store: &Location, ca: &str) -> Self {
        std::fs::create_dir_all(world.path(state)).unwrap();
        let path = |name: &str| world.path(name).display().to_string();
        let place = match store {
            Location::Sqlite(path) => path.display().to_string(),
            Location::Postgres(url) => url.clone(),
        };
        let mut child = Command::new(env!("CARGO_BIN_EXE_aegis-ledger"))
            .env_clear()
            .env("AEGIS_LEDGER_STORE", place)
            .args(["serve", "--trust-domain=acme.example", "--listen=127.0.0.1:0"])
            .args(["--ship-listen=127.0.0.1:0", &format!("--state={}", path(state))])
            .args([&format!("--key={}", path("seed")), &format!("--ca={ca}")])
            .args([&format!("--ca-roots={}", path("roots.pem"))])
            .args([&format!("--token={}", path("token"))])
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = Arc::<Mutex<Vec<Value>>>::default();
        let (told, stderr) = (Arc::clone(&lines), child.stderr.take().unwrap());
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                let line = serde_json::from_str(&line).unwrap_or(Value::String(line));
                told.lock().push(line);
            }
        });
        Self { child, lines }
    }

    /// Waits for a line of the log and returns a field of it.
    pub(crate) async fn told(&self, message: &str, field: &str) -> String {
        let found = || {
            let lines = self.lines.lock();
            let line = lines.iter().find(|line| line["message"] == message)?;
            Some(line[field].as_str().unwrap_or_default().to_owned())
        };
        eventually(message, async || found())
            .await
            .unwrap_or_else(|| panic!("`{message}` is not in the log: {:#?}", self.lines.lock()))
    }

    /// Where it takes journals, once it writes.
    pub(crate) async fn writes(&self) -> String {
        self.told("writing the log; journals are taken", "ship_listen").await
    }

    pub(crate) fn has_told(&self, message: &str) -> bool {
        self.lines.lock().iter().any(|line| line["message"] == message)
    }

    /// Asks it over HTTP: the status and the body.
    pub(crate) async fn get(&self, path: &str) -> (u16, String) {
        let address = self.told("the ledger is up", "listen").await;
        let mut stream = TcpStream::connect(address).await.unwrap();
        let asked = format!("GET {path} HTTP/1.0\r\nhost: ledger\r\n\r\n");
        stream.write_all(asked.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, body.to_owned())
    }

    /// Waits until `/readyz` says this.
    pub(crate) async fn is(&self, ready: bool, role: &str) {
        let wanted = serde_json::json!({ "ready": ready, "role": role });
        let mut told = Value::Null;
        let reached = eventually(role, async || {
            let (status, body) = self.get("/readyz").await;
            told = serde_json::from_str(&body).unwrap();
            (told == wanted && (status == 200) == ready).then_some(())
        });
        assert!(reached.await.is_some(), "not {wanted}: {told}");
    }

    /// The entries of a source that it serves.
    pub(crate) async fn entries(&self, of: &str) -> Vec<Value> {
        let (status, body) = self.get("/v1/entries?order=oldest&limit=500").await;
        assert_eq!(status, 200, "{body}");
        let page: Value = serde_json::from_str(&body).unwrap();
        let entries = page["entries"].as_array().unwrap().iter().map(|one| one["entry"].clone());
        entries.filter(|entry| entry["source"] == of).collect()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), signal).unwrap();
    }

    pub(crate) async fn ended(&mut self) -> ExitStatus {
        let child = &mut self.child;
        let ended = eventually("its end", async || child.try_wait().unwrap()).await;
        ended.expect("it does not end")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Asks until there is an answer, within the patience of tests.
pub(crate) async fn eventually<T>(
    _what: &str,
    mut asked: impl AsyncFnMut() -> Option<T>,
) -> Option<T> {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = asked().await {
            return Some(answer);
        }
        if tokio::time::Instant::now() > deadline {
            return None;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
