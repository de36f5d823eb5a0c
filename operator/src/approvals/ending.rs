//! What nobody answered in time, and what has been shown long enough.
//!
//! A sidecar that has gone says nothing about its cases any more; the time says it for it.

use std::{sync::Arc, time::Duration};

use aegis_core::Timestamp;
use aegis_resources::approval::ApprovalState;
use tokio_util::sync::CancellationToken;

use super::{Desk, Request, Requests, state_of};
use crate::clock;

/// How long the sidecar may take to say itself that a request has expired.
const GRACE: Duration = Duration::from_secs(2);
/// How long a request is shown after it has expired or could have.
const SHOWN: Duration = Duration::from_secs(3600);
/// The longest wait between looks; clocks are not trusted to sleep for days.
const LONGEST_WAIT: Duration = Duration::from_secs(3600);
/// The wait after the API server did not do what was asked.
const RETRY: Duration = Duration::from_secs(5);

/// What is due of a request, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Due {
    Expires(Timestamp),
    Goes(Timestamp),
}

fn due(request: &Request) -> Due {
    let expires_at = request.spec.as_ref().ok().and_then(|spec| spec.0.expires_at.parse().ok());
    // What cannot be read is nobody's.
    let Some(expires_at): Option<Timestamp> = expires_at else {
        return Due::Goes(Timestamp::from_secs(0));
    };
    match state_of(request) {
        ApprovalState::Pending | ApprovalState::Approved => Due::Expires(expires_at.plus(GRACE)),
        _ => Due::Goes(expires_at.plus(SHOWN)),
    }
}

impl<R: Requests> Desk<R> {
    /// Ends what is over, until `stop`.
    pub async fn keep_ending(self, stop: CancellationToken) {
        let mut listed = self.0.listed.subscribe();
        tokio::select! {
            () = stop.cancelled() => return,
            listed = listed.wait_for(|listed| *listed) => if listed.is_err() { return },
        }
        loop {
            let wait = self.end_what_is_over(clock::now()).await;
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.0.sooner.notified() => {}
                () = tokio::time::sleep(wait.min(LONGEST_WAIT)) => {}
            }
        }
    }

    /// Returns how long nothing is due.
    async fn end_what_is_over(&self, now: Timestamp) -> Duration {
        let all: Vec<Arc<Request>> = self.0.known.lock().values().cloned().collect();
        let mut wait = LONGEST_WAIT;
        for request in all {
            let (at, ended) = match due(&request) {
                Due::Expires(at) if at <= now => {
                    (at, self.conclude(&request, ApprovalState::Expired).await)
                }
                Due::Goes(at) if at <= now => (at, self.0.requests.delete(&request).await),
                Due::Expires(at) | Due::Goes(at) => (at, Ok(())),
            };
            if let Err(error) = ended {
                tracing::warn!(?request, error, "what is over could not be ended; trying again");
                wait = wait.min(RETRY);
            }
            // What has just been ended comes back as a change, or is tried again after a while.
            wait = wait.min(if at > now { at.since(now) } else { RETRY });
        }
        wait
    }
}

#[cfg(test)]
mod tests {
    use aegis_resources::{
        approval::{ApprovalRequestSpec, ApprovalStatus},
        kinds::ApprovalRequestObjectSpec,
    };
    use parking_lot::Mutex;
    use serde_json::json;

    use super::*;

    /// What was asked of the API server.
    #[derive(Clone, Default)]
    struct Asked(Arc<Mutex<Vec<String>>>);

    impl Requests for Asked {
        async fn create(
            &self,
            _: &str,
            _: &str,
            _: ApprovalRequestSpec,
        ) -> Result<Request, String> {
            Err("nothing is made here".into())
        }

        async fn write_status(&self, _: &Request, status: ApprovalStatus) -> Result<(), String> {
            self.0.lock().push(format!("{:?}", status.state.unwrap()));
            Ok(())
        }

        async fn delete(&self, _: &Request) -> Result<(), String> {
            self.0.lock().push("deleted".into());
            Ok(())
        }
    }

    fn request(state: Option<ApprovalState>) -> Request {
        let spec = serde_json::from_value(json!({
            "enforcedBy": "spiffe://acme.example/ns/shop/sa/tools/agent/notes",
            "requester": "spiffe://acme.example/ns/shop/sa/bot/agent/buyer",
            "action": aegis_core::Digest::of(b"").to_string(), "server": "notes",
            "method": "tools/call", "reason": "", "risk": 400, "tier": "L2", "quorum": 1,
            "expiresAt": "2027-01-15T08:00:00Z",
        }));
        Request {
            metadata: Default::default(),
            spec: Ok(ApprovalRequestObjectSpec(spec.unwrap())),
            status: Some(ApprovalStatus { state, ..ApprovalStatus::default() }),
        }
    }

    #[tokio::test]
    async fn what_nobody_answers_expires_and_goes() {
        let expires_at: Timestamp = "2027-01-15T08:00:00Z".parse().unwrap();
        let asked = Asked::default();
        let desk = Desk::new(asked.clone());
        desk.all_listed(vec![request(None)]);
        let wait = desk.end_what_is_over(expires_at).await;
        assert_eq!((wait, asked.0.lock().len()), (GRACE, 0));
        desk.end_what_is_over(expires_at.plus(GRACE)).await;
        assert_eq!(*asked.0.lock(), ["Expired"]);
        for state in [ApprovalState::Expired, ApprovalState::Denied, ApprovalState::Used] {
            asked.0.lock().clear();
            desk.all_listed(vec![request(Some(state))]);
            desk.end_what_is_over(expires_at.plus(GRACE)).await;
            assert_eq!(asked.0.lock().len(), 0);
            desk.end_what_is_over(expires_at.plus(SHOWN)).await;
            assert_eq!(*asked.0.lock(), ["deleted"]);
        }
    }
}
