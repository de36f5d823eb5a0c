//! Who orders something over the control socket, and what confirms it: people, with the second factor
//! where one is enrolled, and never an agent.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    time::Duration,
};

use aegis_core::{Timestamp, approval::Factor};
use aegis_kernel::{ByHand, totp::Totp};
use anyhow::Context as _;
use axum::{
    extract::{ConnectInfo, Request, State},
    http::StatusCode,
    middleware::Next,
    response::{IntoResponse as _, Response},
};

use super::{Asker, Failure, Shared};
use crate::up::{
    attest::now,
    daemon::{Daemon, files_of},
    guesses::Confirms,
    operators::name_of,
};

/// What is not a wrapper's business is for people who may.
pub(super) async fn for_operators(
    State(daemon): Shared,
    ConnectInfo(asker): ConnectInfo<Asker>,
    request: Request,
    next: Next,
) -> Response {
    if daemon.operators.includes(asker.uid) {
        return next.run(request).await;
    }
    let message =
        "this daemon answers its own user, root, and users named by `aegis up --operator`";
    Failure(StatusCode::FORBIDDEN, message.into()).into_response()
}

/// How long a code for a stop waits while somebody guesses.
const PRESSED: Duration = Duration::from_secs(1);

/// What confirms who asks.
pub(super) async fn factor(
    daemon: &Daemon,
    asker: &Asker,
    code: Option<&str>,
    confirms: Confirms,
) -> Result<Factor, Failure> {
    let Some(code) = code else {
        // An agent that is recognised otherwise than by its user may be of any.
        let agents = daemon.attest.uids();
        if asker.uid.is_some() && !agents.contains(&None) && !agents.contains(&asker.uid) {
            return Ok(Factor::Account);
        }
        // Under one user for all, nothing better can be had, and status says so.
        if shares_user(daemon) {
            return Ok(Factor::None);
        }
        let message = "agents run under your account; confirm with --totp and its code, or ask as another user";
        return Err(Failure(StatusCode::FORBIDDEN, message.into()));
    };
    let stops = confirms == Confirms::Stop;
    if stops && daemon.totp.lock().as_ref().is_some_and(|totp| totp.is_pressed(now())) {
        // A stop is never locked out. Each guess at one costs a second instead.
        tokio::time::sleep(PRESSED).await;
    }
    let right = daemon.totp.lock().as_mut().map(|totp| totp.verify(code, confirms, now()));
    let Some(right) = right else {
        let message =
            "no second factor is enrolled; run `aegis approvals enroll` as the daemon's user";
        return Err(Failure(StatusCode::CONFLICT, message.into()));
    };
    if !right {
        let who = asker.uid.map_or_else(|| "unknown".to_owned(), name_of);
        daemon.guesses.count(who, confirms);
        let message = if stops {
            "the code is not valid now, or was used before; try the next one"
        } else {
            "the code is not valid now, or was used before, or too many were wrong; wait for the next one"
        };
        return Err(Failure(StatusCode::FORBIDDEN, message.into()));
    }
    Ok(Factor::Totp)
}

/// Who orders something: no agent, and with the second factor where one is enrolled.
pub(super) async fn by_hand(
    daemon: &Daemon,
    asker: &Asker,
    code: Option<&str>,
    why: Option<&str>,
    confirms: Confirms,
) -> Result<ByHand, Failure> {
    refuse_agents(daemon, asker)?;
    want_code(daemon, code)?;
    if why.is_some_and(|why| why.trim().is_empty()) {
        let message = "say why with --reason; it is recorded";
        return Err(Failure(StatusCode::BAD_REQUEST, message.into()));
    }
    let factor = factor(daemon, asker, code, confirms).await?;
    Ok(ByHand { who: approver(asker)?, factor, why: why.map(str::to_owned) })
}

/// Once a second factor is enrolled, nothing is ordered or approved without it.
pub(super) fn want_code(daemon: &Daemon, code: Option<&str>) -> Result<(), Failure> {
    if code.is_none() && daemon.totp.lock().is_some() {
        let message = "a second factor is enrolled; confirm with --totp and its code";
        return Err(Failure(StatusCode::FORBIDDEN, message.into()));
    }
    Ok(())
}

/// A caller that is recognised as an agent by more than its user is that agent, and no agent decides
/// about agents: neither about itself nor about another.
pub(super) fn refuse_agents(daemon: &Daemon, asker: &Asker) -> Result<(), Failure> {
    let agent = asker.attested.as_ref().is_ok_and(|who| daemon.attest.is_specific(&who.id));
    if agent {
        let message = "an agent cannot decide about agents; let a person do it".to_owned();
        return Err(Failure(StatusCode::FORBIDDEN, message));
    }
    Ok(())
}

pub(super) fn approver(asker: &Asker) -> Result<String, Failure> {
    let Some(uid) = asker.uid else {
        return Err(Failure(StatusCode::FORBIDDEN, "the kernel does not say who asks".into()));
    };
    Ok(name_of(uid))
}

/// Why an agent could do here what only a human should.
pub(in crate::up) fn advisory(daemon: &Daemon) -> Vec<String> {
    let agents = daemon.attest.uids();
    if shares_user(daemon) {
        let mut reasons = vec![
            "agents run as the same user as this daemon: they could read its keys, edit its policies and answer approvals; run the daemon under a user of its own (`aegis up --as-service`)".to_owned(),
        ];
        if daemon.totp.lock().is_none() {
            reasons.push("no second factor is enrolled: `aegis approvals enroll`".to_owned());
        }
        return reasons;
    }
    let writable = |path: &Path| {
        std::fs::metadata(path).is_ok_and(|meta| {
            let owner = std::os::unix::fs::MetadataExt::uid(&meta);
            let mode = std::os::unix::fs::PermissionsExt::mode(&meta.permissions());
            agents.contains(&Some(owner)) || mode & 0o002 != 0
        })
    };
    let files = files_of(&daemon.config).unwrap_or_default();
    let editable = writable(&daemon.config) || files.iter().any(|path| writable(path));
    let said = format!("an agent's user can edit policies in {}", daemon.config.display());
    editable.then_some(said).into_iter().collect()
}

/// Whether an agent may run under the daemon's own user.
fn shares_user(daemon: &Daemon) -> bool {
    let own = own_uid();
    daemon.attest.uids().iter().any(|uid| uid.is_none_or(|uid| uid == own))
}

fn own_uid() -> u32 {
    nix::unistd::getuid().as_raw()
}

/// The second factor, if one is enrolled, and the file that says which codes were used: a code does not work
/// again because the daemon was started again.
#[derive(Debug)]
pub(in crate::up) struct Enrolled {
    totp: Totp,
    used: PathBuf,
}

impl Enrolled {
    /// Whether a code confirms that now. What permits more counts once it is noted as used; nothing keeps
    /// anybody from a stop.
    fn verify(&mut self, code: &str, confirms: Confirms, now: Timestamp) -> bool {
        let right = match confirms {
            Confirms::More => self.totp.verify(code, now),
            Confirms::Stop => self.totp.verify_stop(code, now),
        };
        if !right {
            return false;
        }
        let noted = self.note();
        if let Err(error) = &noted {
            tracing::error!(%error, file = %self.used.display(), "a used code could not be noted");
        }
        noted.is_ok() || confirms == Confirms::Stop
    }

    fn note(&self) -> std::io::Result<()> {
        let folder = self.used.parent().unwrap_or(Path::new("/"));
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        write!(file, "{}", self.totp.last_step())?;
        file.as_file().sync_all()?;
        file.persist(&self.used)?;
        Ok(())
    }

    fn is_pressed(&self, now: Timestamp) -> bool {
        self.totp.is_pressed(now)
    }
}

/// The second factor, if one is enrolled: its secret is hex in a file that only the daemon's user reads.
pub(in crate::up) fn read_totp(state: &Path) -> anyhow::Result<Option<Enrolled>> {
    let file = state.join("totp.secret");
    if !file.exists() {
        return Ok(None);
    }
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&file)?.permissions());
    anyhow::ensure!(
        mode & 0o077 == 0,
        "{} can be read by others; run `chmod 600 {}`",
        file.display(),
        file.display()
    );
    let text = std::fs::read_to_string(&file)?;
    let secret =
        hex::decode(text.trim()).with_context(|| format!("{} is not hex", file.display()))?;
    let totp = Totp::new(&secret)
        .with_context(|| format!("{} holds fewer than 16 bytes", file.display()))?;
    let used = state.join("totp.used");
    let step = match std::fs::read_to_string(&used) {
        Ok(text) => text.trim().parse().with_context(|| {
            format!("{} is no number; delete it if no code was used lately", used.display())
        })?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => 0,
        Err(error) => {
            return Err(error).with_context(|| format!("{} cannot be read", used.display()));
        }
    };
    Ok(Some(Enrolled { totp: totp.used_until(step), used }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_works_once_also_after_a_restart() {
        let state = tempfile::tempdir().unwrap();
        let file = state.path().join("totp.secret");
        std::fs::write(&file, hex::encode(b"12345678901234567890")).unwrap();
        let private = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(&file, private).unwrap();
        // RFC 6238, appendix B.
        let at = Timestamp::from_secs(1_111_111_109);
        for confirms in [Confirms::More, Confirms::Stop] {
            let first = || read_totp(state.path()).unwrap().unwrap();
            let mut enrolled = first();
            assert!(enrolled.verify("081804", confirms, at));
            assert!(!enrolled.verify("081804", confirms, at));
            assert!(!first().verify("081804", Confirms::More, at));
            assert!(!first().verify("081804", Confirms::Stop, at));
            std::fs::remove_file(state.path().join("totp.used")).unwrap();
        }
        // What cannot be noted permits nothing, and stops all the same.
        let nowhere = || {
            let mut enrolled = read_totp(state.path()).unwrap().unwrap();
            enrolled.used = state.path().join("none/totp.used");
            enrolled
        };
        assert!(!nowhere().verify("081804", Confirms::More, at));
        assert!(nowhere().verify("081804", Confirms::Stop, at));
    }
}
