//! Delegations between sidecars: on whose behalf an agent acts, and what it lends to whom it calls.
//!
//! Nothing is guessed from what an application receives and sends. An agent lends by saying so with a
//! call ([`LEND`]); its sidecar signs the link. The callee's checks the chain and gives it to its
//! application ([`LENT`]), which acts on it by showing it with a call of its own ([`HEADER`]); its
//! sidecar checks it, takes it away, decides by it and tells the next one. Who acts on a delegation holds
//! no more for it: what its own identity holds, as far as every delegator has lent it.

use std::{io, sync::Arc, time::Duration};

use aegis_core::{
    AgentId, Timestamp,
    capability::{Capability, holds_all},
    decision::Reason,
    delegation::{InvalidDelegation, MAX_DEPTH},
};
use aegis_identity::{
    Delegation, Identity, Revocations, SvidSource, delegation::MAX_DELEGATION_BYTES, lend,
    verify_delegation,
};
use aegis_kernel::{Kernel, Principal};
use http::{HeaderMap, HeaderName, HeaderValue};
use tokio::sync::watch;

use crate::{inbound::one, manifest::Unfit};

/// The delegation on which a call is made: from an application to its sidecar, and from there to the
/// callee's.
pub(crate) static HEADER: HeaderName = HeaderName::from_static("x-aegis-delegation");
/// Capabilities, with commas between, that an application lends to whom it calls.
pub(crate) static LEND: HeaderName = HeaderName::from_static("x-aegis-lend");
/// The delegation to whom is called: from the caller's sidecar to the callee's, and from there to the
/// application.
pub(crate) static LENT: HeaderName = HeaderName::from_static("x-aegis-lent");
/// For how long an agent lends.
const LENT_FOR: Duration = Duration::from_secs(300);
/// How many capabilities it lends at once.
const MAX_LENT: usize = 32;

/// What goes along with a message besides itself.
#[derive(Clone, Debug, Default)]
pub struct Carried {
    /// On what its sender acts.
    acts: Option<Arc<Delegation>>,
    /// What its sender lends to whom gets it.
    lends: Vec<Capability>,
    /// What its sender has lent to this agent.
    lent: Option<Arc<Delegation>>,
}

/// How delegations are checked in this pod.
pub(crate) struct Delegations {
    kernel: Arc<Kernel>,
    agent: AgentId,
    source: Arc<SvidSource>,
    revocations: watch::Receiver<Arc<Revocations>>,
}

impl From<InvalidDelegation> for Unfit {
    fn from(problem: InvalidDelegation) -> Self {
        let reason = match problem {
            // What somebody else did, or no longer may, does not count against who holds it.
            InvalidDelegation::Expired(_)
            | InvalidDelegation::Unregistered(_)
            | InvalidDelegation::Unheld { .. }
            | InvalidDelegation::Svid(_) => Reason::DelegationEnded,
            _ => Reason::DelegationInvalid,
        };
        Self { reason, problem: Some(("delegation", problem.code())) }
    }
}

impl Delegations {
    pub(crate) const fn new(
        kernel: Arc<Kernel>,
        agent: AgentId,
        source: Arc<SvidSource>,
        revocations: watch::Receiver<Arc<Revocations>>,
    ) -> Self {
        Self { kernel, agent, source, revocations }
    }

    /// A call of this pod's application to `callee`, which is an agent or can hold nothing.
    ///
    /// # Errors
    /// When it acts on a delegation that does not hold, or lends what it does not hold.
    pub(crate) fn going_out(
        &self,
        headers: &HeaderMap,
        own: Principal,
        callee: Option<&AgentId>,
    ) -> Result<(Principal, Arc<Carried>), Unfit> {
        let acts = self.shown(headers, &HEADER, &own.id)?;
        let own = acting(own, acts.as_deref())?;
        let lends = lending(headers)?;
        if !lends.is_empty() {
            let callee = callee.ok_or(InvalidDelegation::NoDelegate)?;
            let before = own.delegation.len();
            if before >= MAX_DEPTH {
                return Err(InvalidDelegation::Depth(before + 1).into());
            }
            if *callee == own.id || own.delegation.contains(callee) {
                return Err(InvalidDelegation::Cycle(before).into());
            }
            let held = |one: &&Capability| !holds_all(&own.capabilities, std::slice::from_ref(one));
            if let Some(capability) = lends.iter().find(held).cloned() {
                return Err(InvalidDelegation::Widened { link: before, capability }.into());
            }
        }
        Ok((own, Arc::new(Carried { acts, lends, lent: None })))
    }

    /// A call of another agent, told by its sidecar.
    ///
    /// # Errors
    /// When a delegation that came with it does not hold.
    pub(crate) fn coming_in(
        &self,
        headers: &HeaderMap,
        caller: Principal,
    ) -> Result<(Principal, Arc<Carried>), Unfit> {
        let acts = self.shown(headers, &HEADER, &caller.id)?;
        let lent = self.shown(headers, &LENT, &self.agent)?;
        // Nobody hands over what somebody else has lent.
        if lent.as_ref().is_some_and(|lent| lent.delegators().last() != Some(&caller.id)) {
            return Err(InvalidDelegation::Broken(0).into());
        }
        let caller = acting(caller, acts.as_deref())?;
        Ok((caller, Arc::new(Carried { acts, lends: Vec::new(), lent })))
    }

    /// The delegation in a header, which has to end at `holder`.
    fn shown(
        &self,
        headers: &HeaderMap,
        name: &HeaderName,
        holder: &AgentId,
    ) -> Result<Option<Arc<Delegation>>, InvalidDelegation> {
        let token = one(headers, name.as_str()).map_err(|_| InvalidDelegation::Malformed)?;
        let Some(token) = token else { return Ok(None) };
        if token.len() > MAX_DELEGATION_BYTES {
            return Err(InvalidDelegation::Malformed);
        }
        let (bundle, revocations) = (self.source.bundle(), Arc::clone(&self.revocations.borrow()));
        let now = (self.source.clock())();
        let state = self.kernel.state();
        let held =
            |agent: &AgentId| state.registry.find(agent).map(|known| known.capabilities.to_vec());
        let verified = verify_delegation(token, holder, (&bundle, &revocations), now, held)?;
        Ok(Some(Arc::new(verified)))
    }
}

/// The principal as it acts on a delegation.
fn acting(principal: Principal, acts: Option<&Delegation>) -> Result<Principal, Unfit> {
    let Some(acts) = acts else { return Ok(principal) };
    let delegators = Arc::clone(acts.delegators());
    let acting = principal.acting_for(delegators, acts.capabilities(), acts.not_after());
    acting.ok_or(Unfit { reason: Reason::DelegationInsufficient, problem: None })
}

/// What an application wants to lend.
fn lending(headers: &HeaderMap) -> Result<Vec<Capability>, InvalidDelegation> {
    let named = one(headers, LEND.as_str()).map_err(|_| InvalidDelegation::Malformed)?;
    let Some(named) = named else { return Ok(Vec::new()) };
    let read: Result<Vec<Capability>, _> =
        named.split(',').take(MAX_LENT + 1).map(|one| one.trim().parse()).collect();
    let read = read.map_err(|_| InvalidDelegation::Malformed)?;
    if read.len() > MAX_LENT { Err(InvalidDelegation::Malformed) } else { Ok(read) }
}

impl Carried {
    /// Tells the sidecar of `callee`, in the name of whose identity that is.
    ///
    /// # Errors
    /// When what is lent cannot be signed.
    pub(crate) fn tell_peer(
        &self,
        headers: &mut HeaderMap,
        identity: &Identity,
        callee: &AgentId,
        now: Timestamp,
    ) -> io::Result<()> {
        if let Some(acts) = &self.acts {
            insert(headers, &HEADER, acts.token())?;
        }
        if !self.lends.is_empty() {
            let (by, until) = (self.acts.as_deref(), now.plus(LENT_FOR));
            let lent = lend(&identity.svid, by, callee, &self.lends, until);
            insert(headers, &LENT, &lent.map_err(io::Error::other)?)?;
        }
        Ok(())
    }

    /// Tells this pod's application.
    ///
    /// # Errors
    /// When it is no header.
    pub(crate) fn tell_application(&self, headers: &mut HeaderMap) -> io::Result<()> {
        self.lent.as_ref().map_or(Ok(()), |lent| insert(headers, &LENT, lent.token()))
    }

    /// Until when its sender may act so.
    pub(crate) fn until(&self) -> Timestamp {
        self.acts.as_ref().map_or(Timestamp::from_micros(u64::MAX), |acts| acts.not_after())
    }

    /// Whether there is anything to tell another sidecar.
    pub(crate) fn is_for_peers(&self) -> bool {
        self.acts.is_some() || !self.lends.is_empty()
    }
}

fn insert(headers: &mut HeaderMap, name: &HeaderName, value: &str) -> io::Result<()> {
    headers.insert(name.clone(), HeaderValue::from_str(value).map_err(io::Error::other)?);
    Ok(())
}
