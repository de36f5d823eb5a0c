//! Who is signed in to the console: links that work once, and the sessions they open.
//!
//! Only digests of codes and tokens are kept, and they are compared as digests: how long that takes tells
//! nothing. All of it ends with the daemon.

use std::time::Duration;

use aegis_core::{Digest, Timestamp};
use parking_lot::Mutex;

/// How long a link works.
const LINK: Duration = Duration::from_secs(60 * 60);
/// How long a session lasts.
const SESSION: Duration = Duration::from_secs(12 * 60 * 60);
/// How many of each there are; the oldest makes room.
const MOST: usize = 64;

/// What a session may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// Answers approvals too.
    Operator,
    /// Reads.
    Reader,
}

/// A code or a token that is good for something, for a while.
#[derive(Debug)]
struct Held {
    secret: Digest,
    role: Role,
    expires: Timestamp,
    /// Whose it is; `None` for a link that nobody has followed.
    uid: Option<u32>,
}

/// The links and the sessions.
#[derive(Debug, Default)]
pub(in crate::up) struct Sessions {
    links: Mutex<Vec<Held>>,
    open: Mutex<Vec<Held>>,
}

impl Sessions {
    /// A code for a new link, and until when it works.
    pub(super) fn link(&self, role: Role, now: Timestamp) -> (String, Timestamp) {
        let expires = now.plus(LINK);
        (put(&self.links, role, None, expires, now), expires)
    }

    /// Uses a code up: the token of the session that it opens for a user, and what that may.
    pub(super) fn open(&self, code: &str, uid: u32, now: Timestamp) -> Option<(String, Role)> {
        let secret = Digest::of(code.as_bytes());
        let mut links = self.links.lock();
        let place = links.iter().position(|link| link.secret == secret)?;
        let link = links.remove(place);
        if link.expires <= now {
            return None;
        }
        let token = put(&self.open, link.role, Some(uid), now.plus(SESSION), now);
        Some((token, link.role))
    }

    /// What the session with this token may, if it is this user's and has not ended.
    pub(super) fn role(&self, token: &str, uid: u32, now: Timestamp) -> Option<Role> {
        let secret = Digest::of(token.as_bytes());
        let open = self.open.lock();
        let own =
            |held: &&Held| held.secret == secret && held.uid == Some(uid) && held.expires > now;
        open.iter().find(own).map(|held| held.role)
    }

    /// Ends a session.
    pub(super) fn end(&self, token: &str) {
        let secret = Digest::of(token.as_bytes());
        self.open.lock().retain(|held| held.secret != secret);
    }
}

/// Keeps the digest of a new secret, and returns the secret.
fn put(
    into: &Mutex<Vec<Held>>,
    role: Role,
    uid: Option<u32>,
    expires: Timestamp,
    now: Timestamp,
) -> String {
    let text = hex::encode(rand::random::<[u8; 32]>());
    let mut all = into.lock();
    all.retain(|held| held.expires > now);
    if all.len() >= MOST {
        all.remove(0);
    }
    all.push(Held { secret: Digest::of(text.as_bytes()), role, expires, uid });
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Timestamp = Timestamp::from_secs(1_700_000_000);

    #[test]
    fn a_link_works_once_and_for_a_while() {
        let sessions = Sessions::default();
        let (code, until) = sessions.link(Role::Operator, START);
        assert_eq!(until, START.plus(LINK));
        assert!(sessions.open("another", 7, START).is_none());
        let (token, role) = sessions.open(&code, 7, START).unwrap();
        assert_eq!(role, Role::Operator);
        assert!(sessions.open(&code, 7, START).is_none(), "it is used up");
        assert!(sessions.role(&code, 7, START).is_none(), "a code is no token");
        assert_eq!(sessions.role(&token, 7, START), Some(Role::Operator));
        let (late, _) = sessions.link(Role::Operator, START);
        assert!(sessions.open(&late, 7, START.plus(LINK)).is_none(), "it is too old");
    }

    #[test]
    fn a_session_is_its_users_for_a_while() {
        let sessions = Sessions::default();
        let (code, _) = sessions.link(Role::Reader, START);
        let (token, _) = sessions.open(&code, 7, START).unwrap();
        assert_eq!(sessions.role(&token, 7, START), Some(Role::Reader));
        assert_eq!(sessions.role(&token, 8, START), None, "another user's");
        assert_eq!(sessions.role(&token, 7, START.plus(SESSION)), None, "it has ended");
        sessions.end(&token);
        assert_eq!(sessions.role(&token, 7, START), None, "it was left");
    }

    #[test]
    fn there_are_so_many_and_the_oldest_makes_room() {
        let sessions = Sessions::default();
        let codes: Vec<String> = (0..=MOST).map(|_| sessions.link(Role::Reader, START).0).collect();
        assert!(sessions.open(&codes[0], 7, START).is_none());
        assert!(sessions.open(&codes[1], 7, START).is_some());
    }
}
