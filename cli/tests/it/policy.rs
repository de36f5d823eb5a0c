//! `aegis policy` and `aegis init`.

use std::{fs, path::Path};

use aegis_policy::{Bundle, Opa, PolicyEngine};
use serde_json::json;

use crate::fixture::{Run, aegis, command, text};

fn init(dir: &Path) -> std::path::PathBuf {
    let folder = dir.join("aegis.d");
    let run = aegis(&["init", text(&folder)]).exits(0);
    assert!(run.stdout.contains("aegis up --config "), "{}", run.stdout);
    folder
}

#[test]
fn what_init_writes_is_sound_and_tested() {
    let dir = tempfile::tempdir().unwrap();
    let folder = init(dir.path());
    let run = aegis(&["policy", "check", text(&folder), "-o", "json"]).exits(0);
    let told = run.json();
    assert_eq!((&told["ok"], &told["other_resources"]), (&json!(true), &json!(3)), "{told}");
    assert_eq!(told["policies"][0]["policy"], "default/starter");
    let run = aegis(&["policy", "test", text(dir.path())]).exits(0);
    assert!(run.stdout.contains("ok     ") && run.stdout.contains(": 10 cases"), "{}", run.stdout);
    let identity = fs::read_to_string(folder.join("identity.yaml")).unwrap();
    assert!(identity.contains(&format!("uid: {}", nix::unistd::getuid())));
    let upstream = fs::read_to_string(folder.join("upstream.yaml")).unwrap();
    let data = dir.path().join("agent-files");
    assert!(upstream.contains(text(&data)) && data.is_dir(), "{upstream}");
}

#[test]
fn init_takes_the_sponsor_from_git_where_it_is_an_address() {
    for (email, expected) in
        [("ada@acme.example", "ada@acme.example"), ("a \" b", "you@example.com")]
    {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("x");
        let mut command = command(&["init", text(&folder)]);
        command.env("GIT_CONFIG_COUNT", "1").env("GIT_CONFIG_KEY_0", "user.email");
        Run::of(&command.env("GIT_CONFIG_VALUE_0", email).output().unwrap()).exits(0);
        let identity = fs::read_to_string(folder.join("identity.yaml")).unwrap();
        assert!(identity.contains(&format!("sponsor: \"{expected}\"")), "{identity}");
    }
}

#[test]
fn init_overwrites_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let folder = init(dir.path());
    fs::remove_file(folder.join("identity.yaml")).unwrap();
    fs::write(folder.join("policy.yaml"), "mine").unwrap();
    aegis(&["init", text(&folder)]).refuses("exists already");
    assert_eq!(fs::read_to_string(folder.join("policy.yaml")).unwrap(), "mine");
    assert!(!folder.join("identity.yaml").exists(), "all or nothing");
}

const HEAD: &str =
    "apiVersion: aegis.dev/v1alpha1\nkind: AgentPolicy\nmetadata: { name: x }\nspec:\n";

#[test]
fn check_says_what_is_wrong_and_where() {
    let dir = tempfile::tempdir().unwrap();
    let cases = [
        ("  rulez: []\n", "unknown field `rulez`"),
        (
            "  rules: [{ name: a, effect: allow, when: [{ argument: path, operator: exists }] }]\n",
            "must start with `$`",
        ),
        ("  rego: |\n    package x\n\n    allow if nonsense(1)\n", "2.yaml:8: "),
        ("  rego: |\n    package x\n\n    allow if http.send({})\n", "http.send"),
    ];
    for (number, (spec, expected)) in cases.into_iter().enumerate() {
        let file = dir.path().join(format!("{number}.yaml"));
        fs::write(&file, format!("{HEAD}{spec}")).unwrap();
        let run = aegis(&["policy", "check", text(&file)]).exits(1);
        assert!(run.stdout.contains("wrong") && run.stdout.contains(expected), "{}", run.stdout);
    }
    let file = dir.path().join("words.yaml");
    fs::write(&file, format!("{HEAD}  rules:\n    - name: a\n      effect: denny\n")).unwrap();
    let run = aegis(&["policy", "check", text(&file)]).exits(1);
    let expected = format!(
        "wrong  {}:7:15: AgentPolicy: spec.rules[0].effect: unknown value `denny`; expected `allow`, `require_approval`, `deny`; did you mean `deny`?",
        text(&file)
    );
    assert!(run.stdout.contains(&expected), "{}", run.stdout);
    let run = aegis(&["policy", "check", text(dir.path()), "-o", "json"]).exits(1);
    assert_eq!(run.json()["ok"], false);
    aegis(&["policy", "check", "/nonexistent/policy.yaml"]).refuses("/nonexistent/policy.yaml");
    let empty = tempfile::tempdir().unwrap();
    aegis(&["policy", "check", text(empty.path())]).refuses("`aegis init`");
}

#[test]
fn a_misspelt_server_is_doubted() {
    let dir = tempfile::tempdir().unwrap();
    let folder = init(dir.path());
    let doubted =
        HEAD.to_owned() + "  match: { servers: [fils] }\n  rules: [{ name: a, effect: deny }]\n";
    fs::write(folder.join("more.yaml"), doubted).unwrap();
    let run = aegis(&["policy", "check", text(&folder)]).exits(0);
    let expected = "doubt  policy default/x: no server is called `fils`, which its `match.servers` names; did you mean `files`?";
    assert!(run.stdout.contains(expected), "{}", run.stdout);
    let told = aegis(&["policy", "check", text(&folder), "-o", "json"]).exits(0).json();
    assert_eq!(told["warnings"].as_array().unwrap().len(), 1, "{told}");
}

#[test]
fn a_name_in_aegis_opa_that_is_not_there_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let folder = init(dir.path());
    let mut command = command(&["policy", "check", text(&folder)]);
    command.env("AEGIS_OPA", "/nonexistent/opa");
    let run = Run::of(&command.output().unwrap());
    run.refuses("AEGIS_OPA names `/nonexistent/opa`, and there is no such program");
}

#[test]
fn without_opa_the_sentence_says_how_to_get_it() {
    let dir = tempfile::tempdir().unwrap();
    let folder = init(dir.path());
    let mut command = command(&["policy", "check", text(&folder)]);
    command.env("PATH", "/nonexistent").env("HOME", "/nonexistent").env_remove("AEGIS_OPA");
    Run::of(&command.output().unwrap()).refuses("the program `opa` is not installed");
}

#[test]
fn a_failing_case_fails_the_test() {
    let dir = tempfile::tempdir().unwrap();
    let folder = init(dir.path());
    let sandbox = folder.join("sandbox/starter.yaml");
    let cases = fs::read_to_string(&sandbox).unwrap();
    fs::write(&sandbox, cases.replace("effect: none", "effect: allow")).unwrap();
    let run = aegis(&["policy", "test", text(&folder)]).exits(1);
    assert!(run.stdout.contains("an unknown tool is denied: expected Allow"), "{}", run.stdout);
    aegis(&["policy", "test", text(&dir.path().join("agent-files"))]).refuses("no pack to test");
}

#[test]
fn try_tells_the_verdict_of_one_request() {
    let dir = tempfile::tempdir().unwrap();
    let folder = init(dir.path());
    let request = dir.path().join("request.yaml");
    let verdict = |body: &str| {
        fs::write(&request, body).unwrap();
        aegis(&["policy", "try", text(&folder), "--request", text(&request), "-o", "json"])
            .exits(0)
            .json()
    };
    let told = verdict("{ server: files, tool: write_file, arguments: { path: /srv/a } }");
    assert_eq!((&told["verdict"], &told["approvals"]), (&json!("require_approval"), &json!(1)));
    let told = verdict(
        "{\"server\": \"files\", \"tool\": \"read_file\", \"arguments\": {\"path\": \"/a/.ssh/x\"}}",
    );
    assert_eq!(told["verdict"], "deny", "{told}");
    assert!(told["findings"].as_array().unwrap().iter().any(|f| f["rule"] == "secrets"));
    fs::write(&request, "{ tol: write_file }").unwrap();
    aegis(&["policy", "try", text(&folder), "--request", text(&request)]).refuses("unknown field");
}

#[test]
fn a_bundle_is_what_an_engine_loads() {
    let dir = tempfile::tempdir().unwrap();
    let folder = init(dir.path());
    let out = dir.path().join("bundle.json");
    let run = aegis(&["policy", "build", text(&folder), "-O", text(&out), "-o", "json"]).exits(0);
    let bundle: Bundle = serde_json::from_slice(&fs::read(&out).unwrap()).unwrap();
    assert_eq!(run.json()["digest"], bundle.digest().to_string());
    PolicyEngine::with_defaults().unwrap().load(&bundle).unwrap();
}

#[test]
fn eval_runs_any_module() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        fs::write(&path, bytes).unwrap();
        path
    };
    let rego =
        "package example\n\nallow if input.user in data.users\n\nlevel := count(data.users)\n";
    let wasm = Opa::locate()
        .unwrap()
        .build(&[rego.to_owned()], &["example/allow".to_owned(), "example/level".to_owned()])
        .unwrap();
    let wasm = file("policy.wasm", &wasm);
    let data = file("data.json", br#"{"users": ["ada"]}"#);
    let input = file("input.json", br#"{"user": "ada"}"#);
    let eval = |more: &[&str]| {
        let mut args = vec!["policy", "eval", "--wasm", text(&wasm), "--data", text(&data)];
        args.extend(more);
        aegis(&args)
    };
    let run = eval(&["--input", text(&input), "--entrypoint", "example/allow"]).exits(0);
    assert_eq!(run.json(), json!([{ "result": true }]));
    assert_eq!(eval(&["--entrypoint", "example/allow"]).exits(0).json(), json!([]));
    assert_eq!(eval(&["--entrypoint", "/example/level"]).exits(0).json(), json!([{ "result": 1 }]));
    eval(&["--entrypoint", "example/other"]).refuses("no entry point `example/other`");
    eval(&["--input", text(&wasm)]).refuses("policy.wasm");
    aegis(&["policy", "eval", "--wasm", text(&data)]).refuses("not a usable WebAssembly module");
}
