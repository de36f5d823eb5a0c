//! Help, usage, exit codes, sentences, completions, reference.

use std::{fs, process::Stdio};

use aegis_core::decision::Reason;

use crate::fixture::{aegis, command, text};

#[test]
fn help_is_help() {
    for args in [vec!["--help"], vec!["audit", "verify", "--help"], vec!["policy", "try", "-h"]] {
        let run = aegis(&args).exits(0);
        assert!(run.stdout.contains("Example:\n  aegis "), "{}", run.stdout);
        assert_eq!(run.stderr, "");
    }
    assert!(aegis(&["--version"]).exits(0).stdout.starts_with("aegis 0."));
}

#[test]
fn wrong_usage_exits_with_two() {
    for args in [
        vec![],
        vec!["nonsense"],
        vec!["audit", "export"],
        vec!["audit", "export", "--jsonl", "--tiles", "x"],
        vec!["audit", "verify", "--tiles", "x"],
        vec!["audit", "prove", "1", "--disclose"],
        vec!["audit", "query", "--kind", "decisions"],
        vec!["audit", "query", "--since", "yesterday"],
        vec!["audit", "check-proof", "x", "--key", "no key"],
        vec!["explain", "--server", "files", "--arguments", "{"],
        vec!["explain", "--server", "files", "--tool", "a", "--method", "b"],
        vec!["trust", "adjust", "x", "--score", "1000", "--reason", "y"],
        vec!["trust", "adjust", "x", "--score", "500"],
        vec!["tools", "pin", "files", "read_file", "--digest", "abc"],
        vec!["policy", "check"],
        vec!["completions", "tcsh"],
    ] {
        let run = aegis(&args).exits(2);
        assert!(run.stderr.contains("Usage:") || run.stderr.contains("--help"), "{}", run.stderr);
    }
}

#[test]
fn without_a_daemon_the_sentence_says_what_to_do() {
    for args in [
        vec!["status"],
        vec!["approvals", "list"],
        vec!["approvals", "approve", "x", "--comment", "y"],
        vec!["audit", "tail"],
        vec!["audit", "verify"],
        vec!["trust", "show"],
        vec!["trust", "replay"],
        vec!["tools", "list"],
        vec!["agents", "list"],
        vec!["explain", "--server", "files", "--tool", "read_file"],
    ] {
        let run = aegis(&args).refuses("no Aegis daemon answers at /nonexistent/control.sock");
        assert!(run.stderr.contains("start one with `aegis up`"), "{}", run.stderr);
        assert_eq!(run.stderr.matches("os error").count(), 1, "told once: {}", run.stderr);
        assert_eq!(run.stdout, "");
    }
}

#[test]
fn the_socket_is_where_it_was_said_to_be() {
    let run = |set: &dyn Fn(&mut std::process::Command)| {
        let mut command = command(&["status"]);
        command.env_remove("AEGIS_SOCKET").env_remove("AEGIS_STATE").env_remove("XDG_STATE_HOME");
        set(&mut command);
        String::from_utf8(command.output().unwrap().stderr).unwrap()
    };
    let state = run(&|c| {
        c.env("AEGIS_STATE", "/nonexistent/state");
    });
    assert!(state.contains(" /nonexistent/state/control.sock "), "{state}");
    let xdg = run(&|c| {
        c.env("XDG_STATE_HOME", "/nonexistent/xdg");
    });
    assert!(xdg.contains(" /nonexistent/xdg/aegis/control.sock "), "{xdg}");
    let home = run(&|c| {
        c.env("HOME", "/nonexistent/home");
    });
    assert!(home.contains(" /nonexistent/home/.local/state/aegis/control.sock "), "{home}");
    let said = run(&|c| {
        c.env("AEGIS_STATE", "/x").args(["--socket", "/nonexistent/y"]);
    });
    assert!(said.contains(" /nonexistent/y "), "{said}");
}

#[test]
fn shells_get_their_completions() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let run = aegis(&["completions", shell]).exits(0);
        assert!(run.stdout.contains("approvals") && run.stdout.contains("check-proof"), "{shell}");
    }
}

#[test]
fn every_reason_is_in_the_table() {
    let table = aegis(&["reasons"]).exits(0).stdout;
    for reason in Reason::ALL {
        assert!(table.contains(&format!("| `{}` | {} |", reason.code(), reason.sentence())));
    }
    assert_eq!(table.lines().count(), Reason::ALL.len() + 2);
    let list = aegis(&["reasons", "-o", "json"]).exits(0).json();
    assert_eq!(list.as_array().unwrap().len(), Reason::ALL.len());
}

#[test]
fn the_reference_does_not_depend_on_who_writes_it() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, home: &str| {
        let folder = dir.path().join(name);
        let mut command = command(&["reference", text(&folder)]);
        command.env("HOME", home).env("COLUMNS", "40").env_remove("XDG_STATE_HOME");
        assert!(command.output().unwrap().status.success());
        ["cli.md", "reasons.md", "input-schema.json"]
            .map(|page| fs::read_to_string(folder.join(page)).unwrap())
    };
    let pages = write("a", "/home/ada");
    assert_eq!(pages, write("b", "/nonexistent"));
    assert!(pages[0].contains("### `aegis audit`") && pages[0].contains("`aegis audit verify`"));
    assert!(!pages[0].contains("/home/ada"), "the default must not name a home");
    assert!(pages[1].contains("`policy_denied`"));
    let schema: serde_json::Value = serde_json::from_str(&pages[2]).unwrap();
    assert!(schema["properties"]["principal"].is_object());
    assert_eq!(aegis(&["policy", "schema"]).exits(0).json(), schema);
}

#[test]
fn a_reader_that_leaves_is_no_failure() {
    let mut child = command(&["completions", "bash"]).stdout(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_second_factor_counts_once_a_code_has_confirmed_it() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    let enroll = |more: &[&str]| {
        let mut args = vec!["approvals", "enroll", "--state", text(dir.path()), "-o", "json"];
        args.extend(more);
        aegis(&args)
    };
    let (pending, file) = (dir.path().join("totp.pending"), dir.path().join("totp.secret"));
    enroll(&["--confirm", "123456"]).refuses("no secret waits to be confirmed");
    let first = enroll(&[]).exits(0).json();
    assert_eq!(fs::metadata(&pending).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(!file.exists(), "nobody has shown a code yet");
    // Begun again: the one that was never confirmed is no more.
    let told = enroll(&[]).exits(0).json();
    assert_ne!(told["secret"], first["secret"]);
    assert_eq!(told["secret"].as_str().unwrap().len(), 32);
    enroll(&["--confirm", "nonsense"]).refuses("the code is not one of this secret now");
    assert!(!file.exists());
    let code = crate::fixture::code(&pending, 0);
    let told = enroll(&["--confirm", &code]).exits(0).json();
    assert_eq!(told["confirmed"], true);
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let secret = fs::read_to_string(&file).unwrap();
    assert!(aegis_kernel::totp::Totp::new(&hex::decode(&secret).unwrap()).is_some());
    for more in [&[][..], &["--confirm", &code]] {
        enroll(more).refuses("enrolled already");
    }
    assert_eq!(fs::read_to_string(&file).unwrap(), secret);
}

#[test]
fn what_keeps_a_daemon_from_starting_is_told_line_by_line() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("aegis.d");
    fs::create_dir(&config).unwrap();
    let head = "apiVersion: aegis.dev/v1alpha1\nkind: AgentPolicy\nmetadata: { name: x }\nspec:\n";
    let file = config.join("a.yaml");
    fs::write(&file, format!("{head}  rules: [{{ name: a, effect: denny }}]\n")).unwrap();
    fs::write(config.join("b.yaml"), "nonsense").unwrap();
    let state = dir.path().join("state");
    let up = |config: &std::path::Path| {
        aegis(&["up", "--config", text(config), "--state", text(&state), "--admin", "127.0.0.1:0"])
    };
    let said = up(&config).exits(1).stderr;
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines.len(), 3, "{said}");
    assert!(lines[0].contains("a.yaml:5:30: AgentPolicy: spec.rules[0].effect: "), "{said}");
    assert!(lines[0].ends_with("did you mean `deny`?"), "{said}");
    assert!(
        lines[1].contains("b.yaml:1:1: is not a resource: ") && lines[2].contains("mend or remove"),
        "{said}"
    );
    assert!(!said.contains("\\n"), "{said}");
    // A file instead of its folder.
    up(&file).refuses(&format!("--config takes a folder, and {} is a file", text(&file)));
    up(&dir.path().join("none")).refuses("does not exist; write one with `aegis init");
}
