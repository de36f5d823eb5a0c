//! The sidecar's side: follows the operator, takes what passes, and keeps what it has.

use std::time::Duration;

use aegis_core::Timestamp;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

use super::{
    MAX_STATEMENT_BYTES, Statement, Verifier,
    proto::{FollowRequest, distribution_client::DistributionClient},
};

/// The shortest and the longest wait before connecting again.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));

/// What a sidecar does with what it follows.
pub trait Followed: Send {
    /// Puts a statement in force: a new state, the word that the one in force is the newest, or how
    /// much agents are trusted.
    ///
    /// # Errors
    /// When it cannot; then the state before stays in force, and the statement counts as not taken.
    fn put(&mut self, statement: &Statement) -> Result<(), String>;

    /// The operator cannot be reached, or says what does not count. What was in force stays.
    fn lost(&mut self, why: &str);
}

/// Follows the operator until `stop`. Loses nothing when the operator is away: the state in force
/// stays, and its age grows.
pub async fn follow(
    channel: Channel,
    mut verifier: Verifier,
    clock: impl Fn() -> Timestamp + Send + Sync,
    followed: &mut impl Followed,
    stop: CancellationToken,
) -> Verifier {
    let (shortest, longest) = BACKOFF;
    let mut wait = shortest;
    loop {
        let ended = tokio::select! {
            () = stop.cancelled() => return verifier,
            ended = one_stream(channel.clone(), &mut verifier, &clock, followed, &mut wait) => ended,
        };
        followed.lost(&ended);
        tokio::select! {
            () = stop.cancelled() => return verifier,
            () = tokio::time::sleep(wait) => {}
        }
        wait = wait.saturating_mul(2).min(longest);
    }
}

/// Follows one stream; returns why it ended.
async fn one_stream(
    channel: Channel,
    verifier: &mut Verifier,
    clock: &(impl Fn() -> Timestamp + Send + Sync),
    followed: &mut impl Followed,
    wait: &mut Duration,
) -> String {
    let mut client =
        DistributionClient::new(channel).max_decoding_message_size(MAX_STATEMENT_BYTES + 1024);
    let request = FollowRequest { serial: verifier.serial(), trust: Some(verifier.trust()) };
    let mut stream = match client.follow(request).await {
        Ok(response) => response.into_inner(),
        Err(status) => return format!("the operator does not answer: {}", status.message()),
    };
    loop {
        let signed = match stream.message().await {
            Ok(Some(signed)) => signed,
            Ok(None) => return "the operator has ended the stream".to_owned(),
            Err(status) => return format!("the stream broke: {}", status.message()),
        };
        let statement = match verifier.check(&signed, clock()) {
            Ok(statement) => statement,
            // Whoever answers here is not the operator as it is now; another try may reach it.
            Err(refused) => return refused.to_string(),
        };
        if let Err(message) = followed.put(&statement) {
            return format!("what the operator sent cannot be put in force: {message}");
        }
        verifier.take(&statement);
        *wait = BACKOFF.0;
    }
}
