//! The Workload API as go-spiffe sees it: the reference client, in a process of its own.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
};

use crate::fixture::{AGENT, registration, soon, start};
use aegis_ca::{Kind, Selector};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
};

struct Workload {
    _child: Child,
    commands: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
}

/// Builds the workload, or says why it cannot be: a machine without Go cannot run this test.
async fn build(into: &Path) -> PathBuf {
    let program = into.join("spiffe-workload");
    let module = Path::new(env!("CARGO_MANIFEST_DIR")).join("../e2e/spiffe");
    let output = Command::new("go")
        .arg("build")
        .arg("-o")
        .arg(&program)
        .arg(".")
        .current_dir(module)
        .output()
        .await;
    let output = output.expect("this test needs Go on the PATH");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    program.canonicalize().unwrap()
}

fn run(program: &Path, endpoint: &str) -> Workload {
    let mut child = Command::new(program)
        .arg(endpoint)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let commands = child.stdin.take().unwrap();
    let answers = BufReader::new(child.stdout.take().unwrap()).lines();
    Workload { _child: child, commands, answers }
}

impl Workload {
    async fn ask(&mut self, command: &str) -> String {
        self.commands.write_all(format!("{command}\n").as_bytes()).await.unwrap();
        soon(self.answers.next_line()).await.unwrap().expect("the workload has ended")
    }
}

#[tokio::test]
async fn go_spiffe_fetches_validates_and_watches_a_rotation() {
    let ca = start().await;
    let program = build(ca.directory.path()).await;
    // Launched by this process, which the registration demands.
    let launcher = std::env::current_exe().unwrap().canonicalize().unwrap();
    let selectors = vec![Selector::Path(program.clone()), Selector::Launcher(launcher)];
    ca.manager.register(vec![registration(selectors)]).unwrap();
    let mut workload = run(&program, &ca.endpoint);

    let own = format!("{AGENT}/workload");
    let fetched = workload.ask("fetch").await;
    assert!(fetched.starts_with(&format!("ok {own} ")) && fetched.ends_with(" 1"), "{fetched}");
    assert_eq!(workload.ask("jwt ledger").await, format!("ok {own}"));

    let watched = workload.ask("watch").await;
    assert_eq!(watched, fetched, "the same SVID");
    ca.manager.rotate(Kind::Root).unwrap();
    let rotated = workload.ask("rotated").await;
    assert!(rotated.starts_with(&format!("ok {own} ")) && rotated.ends_with(" 2"), "{rotated}");
    assert_ne!(rotated, watched);
    ca.manager.rotate(Kind::Jwt).unwrap();
    assert_eq!(workload.ask("jwt ledger").await, format!("ok {own}"));

    // The same program under another launcher, and another program, are strangers.
    let elsewhere = vec![Selector::Path(program), Selector::Launcher("/usr/bin/env".into())];
    for selectors in [elsewhere, vec![Selector::Path("/usr/bin/env".into())]] {
        ca.manager.register(vec![registration(selectors)]).unwrap();
        for command in ["fetch", "jwt ledger"] {
            let refusal = workload.ask(command).await;
            assert!(refusal.starts_with("error PermissionDenied"), "{refusal}");
        }
    }
}
