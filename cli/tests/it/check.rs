//! `aegis check` on files, by a folder and by the daemon: what is allowed, refused and not judged, and in which form it is
//! told.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use serde_json::{Value, json};

use crate::{
    fixture::{Run, command, text},
    live::Live,
};

/// As OASIS publishes it, without most descriptions, and with a pattern for `language` that is a regular expression.
const SCHEMA: &str = include_str!("../sarif/schema.json");

/// What may be written, and what not.
pub(crate) const EDITOR: &str = "apiVersion: aegis.dev/v1alpha1
kind: AgentPolicy
metadata: { name: editor }
spec:
  match: { servers: [editor] }
  rules:
    - { name: files, effect: allow, methods: [file.write] }
    - name: no-keys
      effect: deny
      methods: [file.write]
      when: [{ argument: $.content, operator: matches, value: FORBIDDEN }]
      reason: Keys do not belong in files.
    - name: ask
      effect: require_approval
      methods: [file.write]
      when: [{ argument: $.content, operator: matches, value: ASKME }]
    - name: kept
      effect: deny
      methods: [file.write]
      when: [{ argument: $.path, operator: matches, value: '/kept/' }]
      reason: What is kept stays.
    - name: no-archives
      effect: deny
      methods: [file.write]
      when: [{ argument: $.unread, operator: equals, value: large }]
      reason: Large files do not belong here.
";
const IDENTITY: &str = "apiVersion: aegis.dev/v1alpha1
kind: AgentIdentity
metadata: { name: bot }
spec: { sponsor: ada@acme.example, selector: { unix: { uid: 1 } } }
---
apiVersion: aegis.dev/v1alpha1
kind: ClusterTrustThreshold
metadata: { name: all }
spec: { tMin: 1, tau: 1000 }
";

/// A folder with policies, and one with files.
struct Desk {
    folder: tempfile::TempDir,
}

impl Desk {
    fn new() -> Self {
        let desk = Self { folder: tempfile::tempdir().unwrap() };
        desk.write("aegis.d/identity.yaml", IDENTITY.as_bytes());
        desk.write("aegis.d/editor.yaml", EDITOR.as_bytes());
        desk
    }

    fn write(&self, name: &str, content: &[u8]) {
        let path = self.folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn check(&self, args: &[&str]) -> Run {
        let mut command = command(&[&["check", "--policies", "aegis.d"], args].concat());
        command.current_dir(self.folder.path()).stdin(Stdio::null());
        Run::of(&command.output().unwrap())
    }
}

#[test]
fn the_exit_code_says_how_it_came_out() {
    let desk = Desk::new();
    desk.write("src/a.txt", b"fine\n");
    desk.write("src/deep/b.txt", b"fine\n");
    let run = desk.check(&["src"]).exits(0);
    assert_eq!(run.stdout, "2 files, all allowed\n");
    desk.write("src/deep/c d.txt", b"FORBIDDEN\n");
    let run = desk.check(&["src"]).exits(1);
    for part in [
        "refused     src/deep/c d.txt: Keys do not belong in files (policy_denied, default/editor#no-keys)",
        "3 files, 1 refused",
    ] {
        assert!(run.stdout.contains(part), "{}", run.stdout);
    }
    desk.check(&["src/a.txt"]).exits(0);
    desk.write("src/d.txt", b"ASKME\n");
    let run = desk.check(&["src/d.txt"]).exits(1);
    assert!(run.stdout.contains("held back   src/d.txt"), "{}", run.stdout);
    // What no rule allows is denied here too.
    let run = desk.check(&["--server", "other", "src/a.txt"]).exits(1);
    assert!(run.stdout.contains("no_policy_allows"), "{}", run.stdout);
}

#[test]
fn what_cannot_be_judged_is_said_and_does_not_pass() {
    let desk = Desk::new();
    desk.write("src/image.png", b"\x89PNG\0FORBIDDEN");
    desk.write("src/large.txt", &vec![b'a'; (1 << 20) + 1]);
    // Small enough, and not once it is quoted.
    desk.write("src/quoted.txt", &vec![b'"'; 700_000]);
    desk.write("src/line\nend.txt", b"fine");
    let run = desk.check(&["src"]).exits(2);
    for part in [
        "not judged  src/image.png: it is binary",
        "not judged  src/large.txt: it is larger",
        "not judged  src/quoted.txt: it is larger",
        "not judged  src/line\\nend.txt: its name has control characters",
        "4 files, 0 refused, 4 not judged",
    ] {
        assert!(run.stdout.contains(part), "{part}: {}", run.stdout);
    }
    // By what is known of it, on request: a policy may speak of that, and it is said again.
    let run = desk.check(&["--by-path", "src/image.png"]).exits(0);
    assert!(run.stdout.contains("by path     src/image.png: it is binary"), "{}", run.stdout);
    let run = desk.check(&["--by-path", "src/large.txt"]).exits(1);
    assert!(run.stdout.contains("Large files do not belong here"), "{}", run.stdout);
    // A refusal beside it does not make it judged.
    desk.write("src/key.txt", b"FORBIDDEN");
    desk.check(&["src/key.txt", "src/image.png"]).exits(2);
    desk.check(&["src/nowhere.txt"]).exits(2);
    desk.check(&[]).exits(2);
}

/// Git in a folder, as its owner would run it.
fn git(folder: &Path, args: &[&str]) {
    let mut git = Command::new("git");
    git.current_dir(folder).args(args).env("GIT_CONFIG_GLOBAL", "/dev/null");
    assert!(git.output().unwrap().status.success(), "{args:?}");
}

/// What is judged may bring a repository with it: its configuration names a command, and files to be passed over.
#[test]
fn a_repository_within_what_is_judged_runs_nothing_and_hides_nothing() {
    let desk = Desk::new();
    let ran = desk.path().join("ran");
    let monitor = format!("touch {}; false", ran.display());
    // A folder that passes for a repository without a work tree.
    desk.write("bare/HEAD", b"ref: refs/heads/main\n");
    desk.write("bare/objects/kept", b"");
    desk.write("bare/refs/kept", b"");
    desk.write("bare/key.txt", b"FORBIDDEN\n");
    let config = format!(
        "[core]\n\trepositoryformatversion = 0\n\tbare = false\n\tworktree = ..\n\tfsmonitor = \"{monitor}\"\n"
    );
    desk.write("bare/config", config.as_bytes());
    let run = desk.check(&["bare"]).exits(1);
    assert!(run.stdout.contains("bare/key.txt"), "{}", run.stdout);
    assert!(!ran.exists(), "a command of the judged repository ran");

    // One below another.
    desk.write("src/a.txt", b"fine\n");
    git(&desk.path().join("src"), &["init", "-q"]);
    desk.write("src/sub/key.txt", b"FORBIDDEN\n");
    let sub = desk.path().join("src/sub");
    git(&sub, &["init", "-q"]);
    git(&sub, &["config", "core.fsmonitor", &monitor]);
    desk.write("src/sub/.git/info/exclude", b"*\n");
    let run = desk.check(&["src"]).exits(1);
    assert!(run.stdout.contains("src/sub/key.txt"), "{}", run.stdout);
    assert!(!ran.exists(), "a command of the repository below ran");
}

#[test]
fn a_folder_that_is_not_sound_judges_nothing() {
    let desk = Desk::new();
    desk.write("a.txt", b"fine");
    let fails = |part: &str| {
        let run = desk.check(&["a.txt"]).exits(2);
        assert!(run.stderr.contains(part), "{}", run.stderr);
        assert_eq!(run.stdout, "");
    };
    desk.write("aegis.d/more.yaml", EDITOR.replace("effect: deny", "efect: deny").as_bytes());
    fails("`efect`");
    desk.write("aegis.d/more.yaml", b"apiVersion: aegis.dev/v1alpha1\nkind: AgentPolicy\nmetadata: {name: r}\nspec:\n  rego: |\n    package x\n    nonsense\n");
    fails("does not compile");
    desk.write(
        "aegis.d/more.yaml",
        IDENTITY.split("---").next().unwrap().replace("bot", "second").as_bytes(),
    );
    fails("several AgentIdentities");
    desk.check(&["--agent", "second", "a.txt"]).exits(0);
    desk.check(&["--agent", "third", "a.txt"]).exits(2);
    fs::remove_file(desk.path().join("aegis.d/more.yaml")).unwrap();
    fs::remove_file(desk.path().join("aegis.d/identity.yaml")).unwrap();
    fails("there is no AgentIdentity");
    desk.write(
        "aegis.d/identity.yaml",
        IDENTITY.replace("{ sponsor", "{ suspended: true, sponsor").as_bytes(),
    );
    let run = desk.check(&["a.txt"]).exits(1);
    assert!(run.stdout.contains("agent_quarantined"), "{}", run.stdout);
    let run =
        Run::of(&command(&["check", "--policies", "/nonexistent", "Cargo.toml"]).output().unwrap());
    assert!(run.exits(2).stderr.contains("/nonexistent"));
}

fn assert_valid(log: &Value) {
    let schema: Value = serde_json::from_str(SCHEMA).unwrap();
    let validator = jsonschema::options().should_validate_formats(true).build(&schema).unwrap();
    let problems: Vec<String> =
        validator.iter_errors(log).map(|e| format!("{}: {e}", e.instance_path())).collect();
    assert!(problems.is_empty(), "{problems:?}\n{log:#}");
}

#[test]
fn the_log_is_what_the_sarif_schema_says() {
    let desk = Desk::new();
    desk.write("src/a.txt", b"fine");
    desk.write("src/z\u{f6} #1?.txt", b"FORBIDDEN");
    desk.write("src/also.txt", b"FORBIDDEN");
    desk.write("src/held.txt", b"ASKME");
    desk.write("src/image.png", b"\0");
    let log = desk.check(&["src", "-o", "sarif"]).exits(2).json();
    assert_valid(&log);
    let run = &log["runs"][0];
    assert_eq!(run["invocations"][0]["executionSuccessful"], false);
    assert_eq!(run["invocations"][0]["exitCode"], 2);
    let told = run["invocations"][0]["toolExecutionNotifications"][0]["message"]["text"].as_str();
    assert!(told.unwrap().contains("src/image.png: it is binary"), "{told:?}");
    let results = run["results"].as_array().unwrap();
    let seen: Vec<_> = results
        .iter()
        .map(|result| {
            let place = &result["locations"][0]["physicalLocation"]["artifactLocation"];
            assert_eq!(place["uriBaseId"], "%SRCROOT%");
            let rule =
                &run["tool"]["driver"]["rules"][result["ruleIndex"].as_u64().unwrap() as usize];
            assert_eq!(rule["id"], result["ruleId"]);
            (
                place["uri"].as_str().unwrap(),
                result["ruleId"].as_str().unwrap(),
                result["level"].as_str().unwrap(),
            )
        })
        .collect();
    assert_eq!(
        seen,
        [
            ("src/also.txt", "default/editor#no-keys", "error"),
            ("src/held.txt", "default/editor#ask", "warning"),
            ("src/z%C3%B6%20%231%3F.txt", "default/editor#no-keys", "error"),
        ]
    );
    assert!(!log.to_string().contains("FORBIDDEN"), "{log}");
    let clean = desk.check(&["src/a.txt", "-o", "sarif"]).exits(0).json();
    assert_valid(&clean);
    assert_eq!(clean["runs"][0]["results"], json!([]));
    // A schema that takes everything would prove nothing.
    let mut wrong = clean;
    wrong["runs"][0]["results"] = json!([{ "message": "text" }]);
    let schema: Value = serde_json::from_str(SCHEMA).unwrap();
    assert!(!jsonschema::is_valid(&schema, &wrong));
    let run = Run::of(&command(&["reasons", "-o", "sarif"]).output().unwrap());
    run.refuses("`-o sarif` is for `aegis check` alone");
}

#[tokio::test]
async fn a_folder_and_the_daemon_with_it_say_the_same() {
    let live = Live::start(EDITOR, &[]).await;
    let desk = Desk::new();
    let policy = fs::read(live.folder.path().join("aegis.d/policy.yaml")).unwrap();
    desk.write("aegis.d/policy.yaml", &policy);
    for (name, content) in [
        ("a.txt", "fine"),
        ("b.txt", "FORBIDDEN"),
        ("c.txt", "ASKME"),
        ("kept/d.txt", "fine"),
        ("e.txt", "-----BEGIN PRIVATE KEY-----"),
    ] {
        desk.write(name, content.as_bytes());
    }
    let names = ["a.txt", "b.txt", "c.txt", "kept/d.txt", "e.txt"];
    let alone = desk.check(&[&names[..], &["-o", "json"]].concat()).exits(1).json();
    let kernel = live.state().join("kernel.sock");
    let args = [&["check", "-o", "json", "--kernel-socket", text(&kernel)], &names[..]].concat();
    let mut asking = tokio::process::Command::from(command(&args));
    let output = asking.current_dir(desk.path()).output().await.unwrap();
    let told = Run::of(&output).exits(1).json();
    for index in 0..names.len() {
        let (one, other) = (&alone["files"][index], &told["files"][index]);
        for member in ["path", "verdict"] {
            assert_eq!(one[member], other[member], "{one} {other}");
        }
        if one["verdict"] != "allow" {
            assert_eq!((&one["reason"], &one["message"]), (&other["reason"], &other["message"]));
        }
        assert!(other["decision_id"].is_string(), "{other}");
    }
    assert!(told["files"][2]["approval"].is_string(), "{told}");
    // Recorded as what it was, with what was asked.
    let decisions = live.entries("decision").await;
    assert_eq!(decisions.len(), names.len());
    assert!(decisions.iter().all(|entry| entry["action"]["method"] == "file.write"));
    assert!(decisions.iter().all(|entry| entry["arguments"]["mode"] == "check"), "{decisions:?}");
}

#[test]
fn without_a_daemon_nothing_is_judged() {
    let run = Run::of(&command(&["check", "Cargo.toml"]).output().unwrap()).exits(2);
    for part in ["does not answer at /nonexistent/kernel.sock", "`aegis up`"] {
        assert!(run.stderr.contains(part), "{}", run.stderr);
    }
    assert_eq!(run.stdout, "");
}
