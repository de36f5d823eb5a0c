//! Notices of approvals, by webhook: one when something begins to wait for a person, and one of how it ended.
//!
//! A notice leaves this machine, so it says no more than a person needs to know that they are asked: who, which tool,
//! the rule's own sentence, the risk, and how to look. Never what is acted on, and never arguments. It goes to public
//! places by TLS, or to a host that was named; nothing follows a redirect. Notices wait in bounded queues of their own,
//! and no decision waits for them: a webhook that is away loses notices and nothing else.

use std::{collections::BTreeMap, fs, os::unix::fs::PermissionsExt as _, path::Path, sync::Arc};

use aegis_core::{Timestamp, approval::ApprovalState};
use aegis_kernel::{Kernel, approvals::Case};
use aegis_protocol::redact;
use anyhow::Context as _;
use serde_json::json;
use tokio::{
    sync::mpsc,
    time::{Duration, sleep},
};
use tokio_util::sync::CancellationToken;

use crate::mcp::fetch::{PostError, Reach, post, webhook};

/// The most webhooks.
const MAX_PLACES: usize = 16;
/// How many notices wait for a webhook that is slow; beyond, they are lost and that is logged.
const QUEUE: usize = 256;
/// How often one is tried.
const TRIES: u32 = 5;
/// How long after the first try the second is; each next takes twice as long.
const BACKOFF: Duration = Duration::from_secs(1);
/// How often it is looked at what has expired, while something waits.
const TICK: Duration = Duration::from_secs(1);

/// Where notices go.
#[derive(Default)]
pub(super) struct Notices {
    places: Vec<Place>,
    reach: Arc<[Reach]>,
}

/// One webhook. Its address is a secret: only the host is ever shown.
struct Place {
    url: String,
    host: String,
}

impl Notices {
    /// Reads the file; without one there is nobody to tell.
    pub(super) fn read(file: Option<&Path>, reach: &[Reach]) -> anyhow::Result<Self> {
        let Some(file) = file else { return Ok(Self::default()) };
        let shown = file.display();
        let text = fs::read_to_string(file).with_context(|| format!("cannot read {shown}"))?;
        let mode = fs::metadata(file)?.permissions().mode();
        anyhow::ensure!(
            mode & 0o077 == 0,
            "{shown} can be read by others, and the addresses in it are secrets; run `chmod 600 {shown}`"
        );
        let mut places = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let url = line.trim();
            if url.is_empty() || url.starts_with('#') {
                continue;
            }
            let line = index + 1;
            let host = webhook(url, reach).map_err(|error| match error {
                PostError::Plain => anyhow::anyhow!(
                    "line {line} of {shown}: a webhook must be https://, or of a host that --notify-reach names"
                ),
                error => anyhow::anyhow!("line {line} of {shown}: {error}"),
            })?;
            places.push(Place { url: url.to_owned(), host });
        }
        anyhow::ensure!(!places.is_empty(), "there is no webhook in {shown}; write one a line");
        anyhow::ensure!(
            places.len() <= MAX_PLACES,
            "there are more than {MAX_PLACES} webhooks in {shown}"
        );
        Ok(Self { places, reach: reach.into() })
    }

    /// Tells until `stop`. What waited before is not told again, but how it ends is.
    pub(super) async fn keep_telling(self, kernel: Arc<Kernel>, stop: CancellationToken) {
        if self.places.is_empty() {
            return;
        }
        let mut queues = Vec::new();
        for place in self.places {
            let (queue, waiting) = mpsc::channel(QUEUE);
            let reach = Arc::clone(&self.reach);
            queues.push((place.host.clone(), queue));
            let stop = stop.clone();
            tokio::spawn(async move {
                tokio::select! {
                    () = deliver(place, reach, waiting) => {}
                    () = stop.cancelled() => {}
                }
            });
        }
        let mut changes = kernel.changes();
        let mut waits = Waiting::default();
        let _ = waits.news(&kernel);
        loop {
            let idle = waits.0.is_empty();
            tokio::select! {
                changed = changes.changed() => if changed.is_err() { return },
                () = sleep(TICK), if !idle => {}
                () = stop.cancelled() => return,
            }
            for text in waits.news(&kernel) {
                for (host, queue) in &queues {
                    if queue.try_send(text.clone()).is_err() {
                        tracing::warn!(host, "a notice is lost: too many wait for this webhook");
                    }
                }
            }
        }
    }
}

/// The approvals that were told of and have not ended.
#[derive(Default)]
struct Waiting(BTreeMap<String, ()>);

impl Waiting {
    /// What has happened since the last time, in words.
    fn news(&mut self, kernel: &Kernel) -> Vec<String> {
        let (now, mut told) = (kernel.now(), Vec::new());
        self.0.retain(|id, ()| {
            let end = match kernel.approval_state(id) {
                Some(ApprovalState::Pending) => return true,
                // It may be used by the time that anybody looks.
                Some(ApprovalState::Approved | ApprovalState::Consumed) => "was approved",
                Some(ApprovalState::Denied) => "was denied",
                Some(ApprovalState::Expired) => {
                    "has expired: nobody answered in time, which denies"
                }
                None => "has ended",
            };
            told.push(format!("Aegis: approval {id} {end}."));
            false
        });
        let new = |case: &Case| {
            case.approval.state(now) == ApprovalState::Pending
                && !self.0.contains_key(&case.approval.request.id)
        };
        for case in kernel.approvals_where(new).iter().rev() {
            told.push(asked(case, now));
            self.0.insert(case.approval.request.id.clone(), ());
        }
        told
    }
}

/// That something waits, without what it is about.
fn asked(case: &Case, now: Timestamp) -> String {
    let (request, question) = (&case.approval.request, &case.question);
    let word = |name: &str| question.action.get(name).and_then(serde_json::Value::as_str);
    let what = word("tool").or(word("method")).map_or("an action", |name| named(name, "a tool"));
    let server = word("server").map_or("its server", |name| named(name, "its server"));
    let minutes = request.expires_at.since(now).as_secs().div_ceil(60);
    let text = format!(
        "Aegis: {agent} waits for approval {id}: {what} at {server} ({tier}, risk {risk} of 1000). {message} Unanswered it is denied in {minutes} min. Look: aegis approvals show {id}",
        agent = request.requester,
        id = request.id,
        tier = question.tier,
        risk = question.risk,
        // A policy may put into it what it was asked about.
        message = redact::text(&question.message),
    );
    escaped(&text)
}

/// A name that can be nothing else, such as a sentence or an address that its giver wants to be read.
fn named<'n>(name: &'n str, otherwise: &'n str) -> &'n str {
    let plain = |letter: char| letter.is_ascii_alphanumeric() || "_-./".contains(letter);
    let is_name = name.len() <= 64 && !name.contains("//") && name.chars().all(plain);
    if is_name { name } else { otherwise }
}

/// What Slack takes for markup, and what steers a terminal, is plain text.
fn escaped(text: &str) -> String {
    crate::output::clean(text).replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// Sends what waits, one after another.
async fn deliver(place: Place, reach: Arc<[Reach]>, mut waiting: mpsc::Receiver<String>) {
    while let Some(text) = waiting.recv().await {
        let body = json!({ "text": text }).to_string();
        let mut pause = BACKOFF;
        for left in (0..TRIES).rev() {
            let again = match post(&place.url, body.clone(), &reach).await {
                Ok(status) if status.is_success() => break,
                Ok(status) => {
                    let host = &place.host;
                    tracing::warn!(host, %status, "a webhook did not take a notice");
                    status.is_server_error() || status == http::StatusCode::TOO_MANY_REQUESTS
                }
                Err(error) => {
                    let host = &place.host;
                    tracing::warn!(host, %error, "a webhook could not be told");
                    matches!(error, PostError::Fetch(_))
                }
            };
            if !again || left == 0 {
                tracing::warn!(host = place.host, "a notice is lost");
                break;
            }
            sleep(pause).await;
            pause = pause.saturating_mul(2);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, mode: u32, reach: &[Reach]) -> Result<usize, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), text).unwrap();
        fs::set_permissions(file.path(), fs::Permissions::from_mode(mode)).unwrap();
        let read = Notices::read(Some(file.path()), reach);
        read.map(|notices| notices.places.len()).map_err(|error| error.to_string())
    }

    #[test]
    fn addresses_of_webhooks_are_secret_and_encrypted() {
        let https = "# ours\n\nhttps://hooks.example/services/T0/B0/of-the-address\n";
        assert_eq!(read(https, 0o600, &[]), Ok(1));
        assert!(read(https, 0o640, &[]).unwrap_err().contains("chmod 600"));
        let http = "http://127.0.0.1:9/of-the-address\n";
        let error = read(http, 0o600, &[]).unwrap_err();
        assert!(error.contains("line 1") && error.contains("--notify-reach"), "{error}");
        assert_eq!(read(http, 0o600, &["127.0.0.1:9".parse().unwrap()]), Ok(1));
        for wrong in ["", "# none\n", "ftp://hooks.example/of-the-address", "hooks.example"] {
            let error = read(wrong, 0o600, &[]).unwrap_err();
            assert!(!error.contains("of-the-address"), "{error}");
        }
        assert!(read(&https.repeat(17), 0o600, &[]).is_err());
    }

    #[test]
    fn a_notice_holds_no_markup() {
        assert_eq!(escaped("<!channel> a&b\u{202e}\n"), "&lt;!channel&gt; a&amp;b\\u{202e}\\n");
    }

    #[test]
    fn a_name_is_a_name_and_no_message() {
        for name in ["read_file", "files", "tasks/get", "a.b-c"] {
            assert_eq!(named(name, "a tool"), name);
        }
        for said in
            ["Reviewed; approve", "https://evil.example/a", "@channel", "[x](y)", &"a".repeat(65)]
        {
            assert_eq!(named(said, "a tool"), "a tool");
        }
    }

    #[tokio::test]
    async fn nothing_private_is_told_unless_it_was_named() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let port = listener.local_addr().unwrap().port();
        for host in ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]"] {
            let sent = post(&format!("https://{host}:{port}/"), "{}".into(), &[]).await;
            assert!(matches!(sent, Err(PostError::Fetch(_) | PostError::Request(_))), "{host}");
        }
        // Nobody has even connected.
        assert_eq!(listener.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    }
}
