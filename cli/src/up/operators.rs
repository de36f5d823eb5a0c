//! Who may ask and order something over the control socket: people, not agents.
//!
//! A daemon under a user of its own has a socket that others reach, because agents' wrappers must.
//! Who connects is told by the kernel. Agents get what a wrapper needs and nothing else.

use std::collections::BTreeSet;

use anyhow::Context as _;
use nix::unistd::User;

/// The users who may.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Operators(BTreeSet<u32>);

impl Operators {
    /// The daemon's own user, root, and those named.
    pub(super) fn new(named: &[String]) -> anyhow::Result<Self> {
        let mut uids = BTreeSet::from([0, nix::unistd::getuid().as_raw()]);
        for name in named {
            uids.insert(uid_of(name)?);
        }
        Ok(Self(uids))
    }

    pub(super) fn includes(&self, uid: Option<u32>) -> bool {
        uid.is_some_and(|uid| self.0.contains(&uid))
    }
}

fn uid_of(name: &str) -> anyhow::Result<u32> {
    if let Ok(uid) = name.parse() {
        return Ok(uid);
    }
    let user = User::from_name(name).with_context(|| format!("cannot look up user `{name}`"))?;
    let user = user.with_context(|| {
        format!("there is no user `{name}`; give --operator a user of this machine")
    })?;
    Ok(user.uid.as_raw())
}

/// The user's name, or its number where it has none.
pub(super) fn name_of(uid: u32) -> String {
    match User::from_uid(uid.into()) {
        Ok(Some(user)) => format!("user:{}", user.name),
        _ => format!("uid:{uid}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operators_are_users_of_this_machine() {
        let own = nix::unistd::getuid().as_raw();
        let operators = Operators::new(&["4711".into(), "root".into()]).unwrap();
        for (uid, expected) in [
            (Some(0), true),
            (Some(own), true),
            (Some(4711), true),
            (Some(4712), false),
            (None, false),
        ] {
            assert_eq!(operators.includes(uid), expected, "{uid:?}");
        }
        let unknown = Operators::new(&["nobody-of-this-name".into()]).unwrap_err();
        assert!(unknown.to_string().contains("there is no user"), "{unknown}");
        assert_eq!(
            (name_of(0).as_str(), name_of(4_000_000_000).as_str()),
            ("user:root", "uid:4000000000")
        );
    }
}
