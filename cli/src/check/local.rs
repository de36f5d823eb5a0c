//! The kernel of this process, on a folder of resources and an empty ledger that is thrown away: as a daemon would
//! decide that has just started with that folder.

use std::{path::Path, sync::Arc, time::Duration};

use aegis_audit::{Durability, Journal, Location, Options, Signer};
use aegis_core::policy::Scope;
use aegis_kernel::{Context, Kernel, Principal, trust_book};
use aegis_protocol::{
    json::Limits,
    kernel::{QuestionError, evaluation},
};
use anyhow::{Context as _, bail};

use super::{Args, MAX_QUESTION, Said};
use crate::{
    output::Several,
    policy::{check::is_ready, folder},
    up::{Configuration, now},
};

/// How long an identity is good for here.
const VALIDITY: Duration = Duration::from_secs(24 * 60 * 60);
/// As the daemon reads a question.
const LIMITS: Limits = Limits { size: MAX_QUESTION, depth: 64 };

/// A kernel and who asks it.
pub(super) struct Local {
    kernel: Kernel,
    principal: Principal,
    _ledger: tempfile::TempDir,
}

impl Local {
    /// Reads the folder. Everything in it must be sound: there is no last good version here.
    pub(super) async fn open(folder: &Path, args: &Args) -> anyhow::Result<Self> {
        let configuration = Configuration::read(folder, &args.trust_domain)
            .with_context(|| format!("cannot read the folder {}", folder.display()))?;
        if !configuration.problems.is_empty() {
            let advice = "nothing is judged by a folder that is not sound".into();
            return Err(Several { problems: configuration.problems, advice }.into());
        }
        let engine = folder::engines()?();
        let statuses = engine.reload(&folder::compiler()?, &configuration.policies)?;
        if let Some(broken) = statuses.iter().find(|status| !is_ready(status)) {
            bail!("policy {} does not compile: {}", broken.policy, broken.message);
        }
        let ledger = tempfile::tempdir().context("cannot make a temporary folder")?;
        let (book, observer) = trust_book();
        let signer = Signer::from_seed("check/ledger", &rand::random())?;
        let mut options = Options::new("check", signer);
        options.observers.push(observer);
        let place = Location::Sqlite(ledger.path().join("ledger.db"));
        let journal = Journal::open(&place, options).await?;
        let (state, clock) = (configuration.state, Arc::new(now));
        let engine = Arc::new(engine);
        let kernel =
            Kernel::start(journal, Durability::Buffered, engine, book, state, clock).await?;
        let principal = principal(&kernel, args.agent.as_deref(), folder)?;
        Ok(Self { kernel, principal, _ledger: ledger })
    }

    /// What would be decided.
    pub(super) fn judge(&self, body: &[u8]) -> Result<Said, QuestionError> {
        let question = evaluation(body, LIMITS)?;
        let namespace = self.principal.id.namespace().unwrap_or("default");
        let context = Context::new(&self.principal, Scope::Kernel, namespace);
        let decision = self.kernel.preview(&context.about(&question.action)).decision;
        let effect = decision.findings.first().map(|finding| finding.effect);
        let spoke = decision
            .findings
            .iter()
            .filter(|finding| Some(finding.effect) == effect)
            .filter(|finding| finding.mode == aegis_core::policy::Mode::Enforce);
        Ok(Said {
            allowed: decision.verdict == aegis_core::decision::Verdict::Allow,
            verdict: decision.verdict.as_str().into(),
            reason: decision.reason.code().into(),
            message: decision.message.clone(),
            rules: spoke.map(|finding| format!("{}#{}", finding.policy, finding.rule)).collect(),
            ..Said::default()
        })
    }
}

/// Who writes: the agent of that name, or the only one there is.
fn principal(kernel: &Kernel, named: Option<&str>, folder: &Path) -> anyhow::Result<Principal> {
    let (state, shown) = (kernel.state(), folder.display());
    let mut agents: Vec<_> = state.registry.agents().map(|(id, _)| id).collect();
    agents.sort();
    if let Some(named) = named {
        agents.retain(|id| id.name() == named || id.as_str() == named);
    }
    let id = match (agents.as_slice(), named) {
        ([id], _) => id,
        ([], Some(named)) => bail!("there is no AgentIdentity `{named}` in {shown}"),
        ([], None) => bail!(
            "there is no AgentIdentity in {shown}, and nobody's actions are judged; `aegis init` writes one"
        ),
        _ => bail!("there are several AgentIdentities in {shown}; name one with --agent"),
    };
    let principal = state.registry.principal(id, now().plus(VALIDITY));
    principal.with_context(|| format!("{id} is not registered"))
}
