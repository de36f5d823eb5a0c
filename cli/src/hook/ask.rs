//! One question of a coding agent's hook: payload in, the daemon's verdict, the agent's own form of answer out.
//!
//! An agent runs this before every action, so it is one blocking exchange over the kernel socket, without a
//! runtime. The daemon attests this process by the socket, reads the payload itself and decides; here
//! only the event is read, for the form of the answer. Whatever else happens than a well-formed permission (nobody
//! listens, no answer in time, an answer that is none) is a refusal with one sentence.

use std::{
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    sync::mpsc,
    thread,
    time::Duration,
};

use aegis_api::kernel::{Evaluation, MAX_WAIT_SECS, Refused};
use aegis_protocol::{
    hooks::{self, Agent, Answer},
    json::{self, Limits},
    mcp::name::is_invisible,
};
use serde_json::Value;

/// How long the daemon has, beside the time that a human has. An agent that gives its hook less than this may
/// go on without it.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(5);
/// How much is read of a payload: the daemon refuses what is as large as this.
const PAYLOAD: u64 = (4 << 20) + 1;
/// How much is read of an answer.
const ANSWER: u64 = 64 << 10;
/// What an answer may hold.
const ANSWER_LIMITS: Limits = Limits { size: 64 << 10, depth: 16 };

/// What is asked, and whom.
#[derive(Clone, Debug)]
pub(crate) struct Ask {
    /// Whose hook this is.
    pub(crate) agent: Agent,
    /// The daemon's kernel socket.
    pub(crate) socket: PathBuf,
    /// How long a human may take. Seconds.
    pub(crate) wait: u64,
}

/// Why there is no verdict.
#[derive(Debug, thiserror::Error)]
enum AskError {
    #[error("the hook's payload cannot be read: {0}")]
    Payload(io::Error),
    #[error(
        "the Aegis daemon does not answer at {socket} ({source}), and without it nothing is allowed; start it with `aegis up`"
    )]
    Away { socket: String, source: io::Error },
    #[error(
        "the Aegis daemon at {socket} gave no answer within {seconds} s, and without one nothing is allowed; see `aegis status`"
    )]
    Slow { socket: String, seconds: u64 },
    #[error(
        "what answers at {socket} is no Aegis daemon of this version ({what}), and without one nothing is allowed"
    )]
    Foreign { socket: String, what: &'static str },
    #[error("{0}")]
    Refused(String),
}

/// Answers standard input on standard output and error, and returns the exit code.
pub(crate) fn run(ask: Ask) -> u8 {
    let answer = within(ask, |ask| consult(&ask, io::stdin().lock()));
    say(&answer, &mut io::stdout().lock(), &mut io::stderr().lock())
}

/// Whatever hangs, this does not: connecting, writing and reading happen on a thread of their own.
fn within(ask: Ask, consult: impl FnOnce(Ask) -> Answer + Send + 'static) -> Answer {
    let patience = TIMEOUT + Duration::from_secs(ask.wait.min(MAX_WAIT_SECS));
    let (agent, socket) = (ask.agent, ask.socket.display().to_string());
    let (told, heard) = mpsc::channel();
    let asking = thread::Builder::new().spawn(move || told.send(consult(ask)));
    let answered = asking.ok().and_then(|_| heard.recv_timeout(patience).ok());
    answered.unwrap_or_else(|| {
        let error = AskError::Slow { socket, seconds: patience.as_secs() };
        hooks::denied(agent, None, &error.to_string())
    })
}

/// An answer that cannot be given is none.
fn say(answer: &Answer, out: &mut impl Write, err: &mut impl Write) -> u8 {
    let told = out.write_all(answer.stdout.as_bytes()).and_then(|()| out.flush());
    if !answer.stderr.is_empty() {
        let plain: String = answer
            .stderr
            .chars()
            .map(|c| if c != ' ' && is_invisible(c) { ' ' } else { c })
            .collect();
        // The exit code refuses also where nobody listens.
        let _ = writeln!(err, "{plain}");
    }
    if told.is_ok() { answer.code } else { 2 }
}

fn consult(ask: &Ask, from: impl Read) -> Answer {
    let mut payload = Vec::new();
    let read = from.take(PAYLOAD).read_to_end(&mut payload);
    let limits = Limits::default();
    let event = hooks::read(ask.agent, &payload, limits).ok().map(|hook| hook.event);
    let verdict = match read {
        Ok(_) => exchange(ask, &payload),
        Err(error) => Err(AskError::Payload(error)),
    };
    match (verdict, event) {
        (Ok(evaluation), Some(event)) if permits(&evaluation) => hooks::allowed(ask.agent, event),
        (Ok(evaluation), event) => hooks::denied(ask.agent, event, &sentence(&evaluation)),
        (Err(error), event) => hooks::denied(ask.agent, event, &error.to_string()),
    }
}

/// Whether an answer is a permission: all of it says so.
fn permits(evaluation: &Evaluation) -> bool {
    let context = &evaluation.context;
    evaluation.decision && context.verdict == "allow" && context.decision_id.is_some()
}

/// What the agent and its user are told.
fn sentence(evaluation: &Evaluation) -> String {
    let context = &evaluation.context;
    let message = context.message.trim_end_matches('.');
    let entry = context.index.map(|index| format!(", entry {index}")).unwrap_or_default();
    match &context.approval {
        Some(id) if context.verdict == "require_approval" => format!(
            "Aegis holds this back: {message}; once a person has run `aegis approvals approve {id}`, do exactly the same again ({}{entry})",
            context.reason
        ),
        _ => format!("Aegis refuses this: {message} ({}{entry})", context.reason),
    }
}

fn exchange(ask: &Ask, payload: &[u8]) -> Result<Evaluation, AskError> {
    let away = |source| AskError::Away { socket: shown(&ask.socket), source };
    let mut stream = UnixStream::connect(&ask.socket).map_err(away)?;
    let head = format!(
        "POST /v1/hooks/{} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {}\r\nprefer: wait={}\r\nconnection: close\r\n\r\n",
        ask.agent.as_str(),
        payload.len(),
        ask.wait.min(MAX_WAIT_SECS),
    );
    // A daemon that refuses the size says so without reading on: its answer is what counts.
    let written = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(payload));
    let mut bytes = Vec::new();
    let read = stream.take(ANSWER).read_to_end(&mut bytes);
    if bytes.is_empty() {
        let silent = || io::Error::from(io::ErrorKind::UnexpectedEof);
        return Err(away(written.and(read.map(drop)).err().unwrap_or_else(silent)));
    }
    answered(&bytes).map_err(|what| match what {
        NoVerdict::Foreign(what) => AskError::Foreign { socket: shown(&ask.socket), what },
        NoVerdict::Refused(message) => AskError::Refused(format!("Aegis refuses this: {message}")),
    })
}

fn shown(socket: &Path) -> String {
    socket.display().to_string()
}

/// Why an answer holds no verdict.
#[derive(Debug, PartialEq)]
enum NoVerdict {
    Foreign(&'static str),
    Refused(String),
}

/// Reads a whole HTTP answer, strictly: what is cut or continued is none.
fn answered(bytes: &[u8]) -> Result<Evaluation, NoVerdict> {
    let foreign = NoVerdict::Foreign;
    let text = std::str::from_utf8(bytes).map_err(|_| foreign("its answer is not UTF-8"))?;
    let (head, body) = text.split_once("\r\n\r\n").ok_or(foreign("its answer is not HTTP"))?;
    let mut lines = head.split("\r\n");
    let status = lines.next().and_then(|line| line.strip_prefix("HTTP/1.1 "));
    let status =
        status.and_then(|rest| rest.split(' ').next()).ok_or(foreign("its answer is not HTTP"))?;
    let lengths: Vec<&str> = lines
        .filter_map(|line| line.split_once(':'))
        .filter(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .map(|(_, value)| value.trim())
        .collect();
    if lengths != [body.len().to_string().as_str()] {
        return Err(foreign("its answer is not whole"));
    }
    let value: Value = json::parse(body.as_bytes(), ANSWER_LIMITS)
        .map_err(|_| foreign("its answer is not JSON"))?;
    if status == "200" {
        return serde_json::from_value(value).map_err(|_| foreign("its answer is no verdict"));
    }
    match serde_json::from_value::<Refused>(value) {
        Ok(refused) => Err(NoVerdict::Refused(format!("{} ({})", refused.message, refused.reason))),
        Err(_) => Err(foreign("its answer is no verdict")),
    }
}

#[cfg(test)]
#[path = "ask/tests.rs"]
mod tests;
