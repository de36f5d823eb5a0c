//! How much agents are trusted: followed from the ledger, told to sidecars, shown in AgentIdentities.
//!
//! Trust may move with every call and a status may not. It is written at once where the agent's
//! standing changes or its quarantine begins or ends; a score that moves within its standing is
//! written ten seconds later at most, with whatever has changed until then.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use aegis_api::trust::{
    Weighing,
    proto::{self, Changes, FollowRequest, Posterior, trust_client::TrustClient},
};
use aegis_core::{AgentId, trust::Trust};
use aegis_mesh::channel;
use aegis_resources::status::{IdentityStatus, TrustStatus};
use parking_lot::Mutex;
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

use crate::{distribution::Publisher, mesh::Member, metrics::Metrics};

/// The shortest and the longest wait before the ledger is asked again.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(10));
/// How long a score that moves within its standing may go unwritten, and the shortest time between
/// two such writes.
const EVERY: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(5));

/// Follows the ledger at `address` and tells sidecars and AgentIdentities, until `stop`.
pub async fn follow(
    address: String,
    mut members: watch::Receiver<Option<Member>>,
    (publisher, term): (Publisher, u32),
    pace: Arc<Pace>,
    metrics: Metrics,
    stop: CancellationToken,
) {
    let followed = metrics.mesh.with_label_values(&["ledger"]);
    let (shortest, longest) = BACKOFF;
    let mut wait = shortest;
    loop {
        followed.set(0);
        let member = tokio::select! {
            () = stop.cancelled() => return,
            member = members.wait_for(Option::is_some) => match member {
                Ok(member) => member.clone(),
                Err(_) => return,
            },
        };
        let Some(member) = member else { return };
        members.mark_unchanged();
        let mut heard = |told: Vec<_>, as_of, all| {
            followed.set(1);
            wait = shortest;
            let changed = publisher.tell_trust(term, as_of, told, all);
            pace.moved(&publisher, changed);
        };
        let weighing = publisher.weighing();
        let why = tokio::select! {
            () = stop.cancelled() => return,
            // Another SVID of another CA: the connection is made anew with it.
            Ok(()) = members.changed() => continue,
            why = one_stream(&address, &member, weighing, &mut heard) => why,
        };
        tracing::warn!(
            why,
            "the ledger does not tell what agents are trusted; what it said last counts"
        );
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(wait) => {}
        }
        wait = wait.saturating_mul(2).min(longest);
    }
}

/// Follows one stream; why it ended.
async fn one_stream(
    address: &str,
    member: &Member,
    mut weighing: watch::Receiver<Option<Weighing>>,
    heard: &mut impl FnMut(Vec<(AgentId, Trust)>, u64, bool),
) -> String {
    let channel = match channel(address, "ledger", &member.source, member.authority.revocations()) {
        Ok(channel) => channel,
        Err(error) => return error.to_string(),
    };
    let mut client = TrustClient::new(channel);
    // It may be another ledger than before, or one that has started anew.
    weighing.mark_changed();
    let mut stream = match client.follow(FollowRequest {}).await {
        Ok(response) => response.into_inner(),
        Err(status) => return format!("it does not answer: {}", status.message()),
    };
    let (mut told, mut all) = (Vec::new(), true);
    loop {
        let message = tokio::select! {
            message = stream.message() => message,
            Ok(()) = weighing.changed() => {
                let now = weighing.borrow_and_update().clone();
                if let Err(why) = weigh(&mut client, now).await {
                    return why;
                }
                continue;
            }
        };
        let Changes { as_of, agents, more } = match message {
            Ok(Some(changes)) => changes,
            Ok(None) => return "it has ended the stream".to_owned(),
            Err(status) => return format!("the stream broke: {}", status.message()),
        };
        match agents.iter().map(Posterior::read).collect::<Result<Vec<_>, _>>() {
            Ok(read) => told.extend(read),
            Err(error) => return format!("it names somebody who is no agent: {error}"),
        }
        if !more {
            heard(std::mem::take(&mut told), as_of, all);
            all = false;
        }
    }
}

/// Tells the ledger by what it is to weigh agents' evidence.
async fn weigh(client: &mut TrustClient<Channel>, now: Option<Weighing>) -> Result<(), String> {
    let Some(weighing) = now else { return Ok(()) };
    let told = proto::Weighing::of(&weighing).map_err(|error| error.to_string())?;
    match client.weigh(told).await {
        Ok(_) => Ok(()),
        Err(status) => Err(format!("it does not take thresholds: {}", status.message())),
    }
}

/// When which AgentIdentity is looked at again because of its agent's trust.
#[derive(Debug)]
pub struct Pace {
    /// Who is looked at now.
    due: mpsc::UnboundedSender<AgentId>,
    /// Whose score has moved and is not written yet.
    waiting: Mutex<BTreeSet<AgentId>>,
    /// What is known of each agent whose trust was shown.
    shown: Mutex<HashMap<AgentId, Shown>>,
}

/// What was shown of an agent last.
#[derive(Clone, Debug)]
struct Shown {
    band: Band,
    at: Instant,
}

/// What is shown at once when it changes: the standing, and whether the agent is quarantined.
type Band = (Option<aegis_core::trust::Standing>, bool);

fn band(status: Option<&TrustStatus>) -> Band {
    (status.map(|one| one.standing), status.is_some_and(|one| one.quarantined.is_some()))
}

impl Pace {
    /// Nothing is shown yet; the receiver names who is to be looked at.
    #[must_use]
    pub fn new() -> (Arc<Self>, mpsc::UnboundedReceiver<AgentId>) {
        let (due, looked_at) = mpsc::unbounded_channel();
        (Arc::new(Self { due, waiting: Mutex::default(), shown: Mutex::default() }), looked_at)
    }

    /// The trust in these agents has changed.
    fn moved(&self, publisher: &Publisher, agents: Vec<AgentId>) {
        for agent in agents {
            let now = band(trust_status(publisher, &agent).as_ref());
            let known = self.shown.lock().get(&agent).map(|shown| shown.band);
            if known.is_none_or(|known| known != now) {
                // Nobody may be registered under this name: then it is not asked for at every call.
                let shown = Shown { band: now, at: Instant::now() };
                self.shown.lock().insert(agent.clone(), shown);
                let _ = self.due.send(agent);
            } else {
                self.waiting.lock().insert(agent);
            }
        }
    }

    /// Has those looked at whose score has moved, again and again, until `stop`.
    pub async fn keep(self: Arc<Self>, stop: CancellationToken) {
        let mut ticks = tokio::time::interval(EVERY.0);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = ticks.tick() => {}
            }
            for agent in std::mem::take(&mut *self.waiting.lock()) {
                let _ = self.due.send(agent);
            }
        }
    }

    /// Puts into a status what is to be shown of the agent's trust at `now`: what was shown before
    /// stays unless the band has changed or it is time.
    pub fn show(
        &self,
        publisher: &Publisher,
        agent: &AgentId,
        status: &mut IdentityStatus,
        now: Instant,
    ) {
        // Before the ledger has said anything, what was shown stays.
        let Some(current) = trust_status(publisher, agent) else { return };
        let mut shown = self.shown.lock();
        let same_band = band(status.trust.as_ref()) == band(Some(&current));
        let fresh = shown.get(agent).is_some_and(|last| now.duration_since(last.at) < EVERY.1);
        let same_score = status.trust.as_ref().is_some_and(|old| old.score == current.score);
        if same_band && (fresh || same_score) {
            if !same_score {
                self.waiting.lock().insert(agent.clone());
            }
            let band = band(Some(&current));
            shown.entry(agent.clone()).or_insert(Shown { band, at: now }).band = band;
            return;
        }
        shown.insert(agent.clone(), Shown { band: band(Some(&current)), at: now });
        status.trust = Some(current);
    }
}

/// What there is to show of an agent's trust; `None` for one without a history.
fn trust_status(publisher: &Publisher, agent: &AgentId) -> Option<TrustStatus> {
    let known = publisher.trust_of(agent)?;
    let thresholds = publisher.thresholds_of(agent.namespace().unwrap_or_default());
    let score = known.trust.score();
    let quarantined = known.trust.is_critical(&thresholds).then(|| {
        let (below, sure) = (thresholds.critical_score.get(), thresholds.critical_confidence.get());
        format!("with {sure} per mille certainty or more, its trust lies below the critical score {below}")
    });
    Some(TrustStatus {
        score: score.get(),
        standing: score.standing(),
        as_of: known.as_of,
        quarantined,
    })
}

#[cfg(test)]
#[path = "trust/tests.rs"]
mod tests;
