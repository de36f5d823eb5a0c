//! Rotation on demand: an annotation of the CA's Secret names the authority, and an Event about that
//! Secret says what has become of it.
//!
//! Who may write that Secret could write other keys into it anyway, so nobody is asked who they are.

use std::time::Duration;

use k8s_openapi::api::core::v1::Secret;
use kube::{
    Client, Resource as _,
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use tokio_util::sync::CancellationToken;

use super::store::ROTATE;
use crate::{Asked, IdentityManager, Kind};

/// How often a request is tried, and the wait between; the next change of the Secret tries again.
const TRIES: u32 = 30;
const RETRY: Duration = Duration::from_secs(1);
/// How much of what was asked for is quoted.
const QUOTED: usize = 64;

/// Answers requests and tells of them.
pub struct Rotation(Recorder);

impl std::fmt::Debug for Rotation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Rotation")
    }
}

impl Rotation {
    /// Tells in the name of this replica.
    #[must_use]
    pub fn new(client: Client, instance: &str) -> Self {
        let reporter =
            Reporter { controller: "aegis-ca".into(), instance: Some(instance.to_owned()) };
        Self(Recorder::new(client, reporter))
    }

    /// Does what the annotation of `secret` asks for, unless another replica has.
    pub async fn answer(
        &self,
        manager: &IdentityManager,
        secret: &Secret,
        stop: &CancellationToken,
    ) {
        for _ in 0..TRIES {
            let rotating = manager.clone();
            // The store waits for the API server.
            match tokio::task::spawn_blocking(move || rotating.rotate_as_asked()).await {
                Ok(Ok(asked)) => return self.tell(manager, secret, asked).await,
                Ok(Err(error)) => {
                    tracing::warn!(%error, "what {ROTATE} asks for is not done yet; it is tried again");
                }
                Err(error) => tracing::error!(%error, "rotating was interrupted"),
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(RETRY) => {}
            }
        }
        tracing::error!(
            "what {ROTATE} asks for could not be done; annotate the Secret again once the API server answers"
        );
    }

    async fn tell(&self, manager: &IdentityManager, secret: &Secret, asked: Asked) {
        let event = match asked {
            Asked::Nothing => return,
            Asked::Rotated(kind) => {
                let sequence = manager.bundle().sequence();
                tracing::info!(%kind, sequence, "rotated as {ROTATE} asked");
                if let Err(error) = manager.record_changes().await {
                    tracing::error!(%error, "the rotation is not recorded yet; nothing is issued until it is");
                }
                rotated(kind, sequence)
            }
            Asked::Unknown(value) => unknown(&value),
        };
        if let Err(error) = self.0.publish(&event, &secret.object_ref(&())).await {
            tracing::warn!(%error, "an Event about a rotation could not be written");
        }
    }
}

fn event(type_: EventType, reason: &str, note: String) -> Event {
    Event {
        type_,
        reason: reason.into(),
        note: Some(note),
        action: "Rotate".into(),
        secondary: None,
    }
}

fn rotated(kind: Kind, sequence: u64) -> Event {
    let what = match kind {
        Kind::Jwt => "JWT-SVIDs",
        Kind::Root | Kind::Intermediate => "X.509-SVIDs",
    };
    let note = format!(
        "A new authority signs {what}; what the old one signed stays valid until it expires. The trust bundle has sequence {sequence}."
    );
    event(EventType::Normal, "Rotated", note)
}

fn unknown(value: &str) -> Event {
    let value: String = value.chars().take(QUOTED).collect();
    tracing::warn!(value, "{ROTATE} names no authority");
    let note = format!("{ROTATE} is {value:?}, which names no authority; use x509 or jwt.");
    event(EventType::Warning, "UnknownAuthority", note)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_says_what_has_become_of_it() {
        let told = rotated(Kind::Jwt, 7).note.unwrap();
        assert!(told.contains("JWT-SVIDs") && told.contains("sequence 7"), "{told}");
        let told = unknown(&"x".repeat(5000)).note.unwrap();
        assert!(told.contains("use x509 or jwt") && told.len() < 200, "{told}");
    }
}
