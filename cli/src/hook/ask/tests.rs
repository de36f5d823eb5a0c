//! What a hook says when its daemon answers, hangs, lies or is away.

use std::os::unix::net::UnixListener;

use super::*;

const PAYLOAD: &str = r#"{"hook_event_name":"PreToolUse","cwd":"/w","tool_name":"Bash","tool_input":{"command":"ls"}}"#;

fn http(status: &str, body: &str) -> Vec<u8> {
    format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

fn allow() -> &'static str {
    r#"{"decision":true,"context":{"verdict":"allow","reason":"allowed","message":"x","decision_id":"d","index":1}}"#
}

/// What the hook says when a daemon answers so; one that answers nothing keeps the connection open.
fn told(answer: Option<Vec<u8>>) -> Answer {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("kernel.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let daemon = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        if let Some(answer) = answer {
            let mut request = [0; 4096];
            let _ = stream.read(&mut request).unwrap();
            stream.write_all(&answer).unwrap();
            drop(stream);
            return None;
        }
        Some(stream)
    });
    let ask = Ask { agent: Agent::ClaudeCode, socket, wait: 0 };
    let answer = within(ask, |ask| consult(&ask, PAYLOAD.as_bytes()));
    drop(daemon.join().unwrap());
    answer
}

#[test]
fn a_well_formed_permission_is_no_objection() {
    assert_eq!(
        told(Some(http("200 OK", allow()))),
        hooks::allowed(Agent::ClaudeCode, hooks::Event::Tool)
    );
}

#[test]
fn an_answer_that_is_none_permits_nothing() {
    let whole = http("200 OK", allow());
    let cut = whole[..whole.len() - 1].to_vec();
    let more = [whole.clone(), b"}".to_vec()].concat();
    let changed = |from: &str, to: &str| http("200 OK", &allow().replace(from, to));
    let cases = [
        Vec::new(),
        b"yes".to_vec(),
        cut,
        more,
        http("500 Internal Server Error", allow()),
        http("200 OK", "true"),
        http("200 OK", r#"{"decision":true}"#),
        changed("true", "1"),
        changed("true", "\"true\""),
        changed("true", "false"),
        changed("\"verdict\":\"allow\"", "\"verdict\":\"deny\""),
        changed("\"verdict\":\"allow\"", "\"verdict\":\"require_approval\""),
        changed(",\"decision_id\":\"d\"", ""),
        changed("{\"decision\":true,", "{\"decision\":true,\"decision\":true,"),
        http("403 Forbidden", r#"{"message":"who are you","reason":"identity_unknown"}"#),
    ];
    for case in cases {
        let shown = String::from_utf8_lossy(&case).into_owned();
        let answer = told(Some(case));
        assert_eq!(answer.code, 2, "{shown}");
        assert!(answer.stdout.contains("\"deny\"") && !answer.stderr.is_empty(), "{shown}");
    }
}

#[test]
fn nobody_at_the_socket_means_no() {
    let folder = tempfile::tempdir().unwrap();
    let ask = Ask { agent: Agent::Codex, socket: folder.path().join("none"), wait: 0 };
    let answer = consult(&ask, PAYLOAD.as_bytes());
    assert_eq!(answer.code, 2);
    assert!(answer.stderr.contains("does not answer") && answer.stderr.contains("`aegis up`"));
}

#[test]
fn a_daemon_that_hangs_means_no() {
    let answer = told(None);
    assert_eq!(answer.code, 2);
    assert!(answer.stderr.contains("no answer within"), "{}", answer.stderr);
}

#[test]
fn a_permission_for_what_is_no_payload_is_none() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("kernel.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let daemon = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = [0; 4096];
        let _ = stream.read(&mut request).unwrap();
        stream.write_all(&http("200 OK", allow())).unwrap();
    });
    let ask = Ask { agent: Agent::ClaudeCode, socket, wait: 0 };
    assert_eq!(consult(&ask, b"{}".as_slice()).code, 2);
    daemon.join().unwrap();
}

#[test]
fn an_answer_that_nobody_hears_refuses() {
    struct Closed;
    impl Write for Closed {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let allowed = hooks::allowed(Agent::Gemini, hooks::Event::Tool);
    assert_eq!(say(&allowed, &mut Closed, &mut Vec::new()), 2);
    let mut err = Vec::new();
    let denied = hooks::denied(Agent::Gemini, None, "a\u{1b}[31m\nb");
    assert_eq!(say(&denied, &mut Vec::new(), &mut err), 2);
    assert_eq!(err, b"a [31m b\n");
}
