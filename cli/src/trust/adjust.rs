//! `aegis trust adjust`: setting a posterior by hand, with a reason that is recorded.

use aegis_api::control::{TrustAdjustment, TrustView};
use aegis_core::trust::{OBSERVATION, Trust};

use crate::{
    Context, Outcome, agents,
    approvals::SecondFactor,
    output::{self, Format, Text, Tone},
};

/// Set the trust in an agent by hand; recorded with who and why
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  aegis trust adjust buyer --score 500 --reason 'fixed after the incident review'"
)]
pub(crate) struct Args {
    /// The agent: a SPIFFE ID or a name
    agent: String,
    /// The new score; the weight of the evidence stays as it is
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=999))]
    score: u16,
    /// Why; recorded in the ledger
    #[arg(long)]
    reason: String,
    #[command(flatten)]
    factor: SecondFactor,
}

/// The most evidence that an adjustment can leave, so that neither side meets its own limit.
const MAX_MASS: u64 = 500 * OBSERVATION;

pub(crate) async fn run(args: Args, cx: &Context) -> anyhow::Result<Outcome> {
    let agent = agents::find(&args.agent, cx).await?;
    let views: Vec<TrustView> = cx.client.get("/v1/trust").await?;
    let known = views.iter().find(|view| view.agent == agent);
    let mass = known.map_or_else(
        || Trust::default().a.saturating_add(Trust::default().b),
        |view| view.a.saturating_add(view.b),
    );
    let (a, b) = posterior(args.score, mass);
    let request = TrustAdjustment { agent, a, b, reason: args.reason, totp: args.factor.totp };
    let view: TrustView = cx.client.post("/v1/trust", &request).await?;
    match cx.format {
        Format::Json => output::json(&view)?,
        Format::Text => {
            let mut text = Text::new();
            let said = format!("the trust in {} is {}; recorded", view.agent, view.score);
            text.toned(Tone::Good, said);
            text.print()?;
        }
    }
    Ok(Outcome::Done)
}

/// The posterior of this score and about this mass.
fn posterior(score: u16, mass: u64) -> (u64, u64) {
    let mass = mass.clamp(2 * OBSERVATION, MAX_MASS);
    let a = (u64::from(score) * mass).div_ceil(1000);
    (a, mass - a)
}

#[cfg(test)]
mod tests {
    use aegis_core::{Timestamp, thresholds::Thresholds, trust::Observation};

    use super::*;

    #[test]
    fn every_score_can_be_set_and_survives_the_fold() {
        for mass in [0, 2 * OBSERVATION, 7_654_321, 999 * OBSERVATION] {
            for score in 1..=999 {
                let (a, b) = posterior(score, mass);
                let set = Trust::default().after(
                    Observation::Adjusted { a, b },
                    Timestamp::from_secs(0),
                    &Thresholds::default(),
                );
                assert_eq!(set.score().get(), score, "mass {mass}");
            }
        }
    }
}
