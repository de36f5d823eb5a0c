//! Capabilities: what an identity may ever do, as `action:resource`.
//!
//! Matched by whole segments, never by prefix: `read:data` does not cover `read:database`.

use std::{fmt, str::FromStr};

/// The most that one agent is registered for, or one link of a delegation lends. Who shows more is refused: each
/// decision compares them.
pub const MAX_CAPABILITIES: usize = 256;

/// A grant of the form `action:resource`, such as `call:sqlite/read_query` or `read:files/**`.
///
/// The action is one word or `*`. The resource is segments separated by `/`; a segment `*` stands
/// for exactly one segment, a final `**` for one or more.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Capability {
    action: String,
    resource: Vec<String>,
}

/// Why a text is not a capability.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not a capability: expected `action:segment/segment`, where a segment may be `*` and the last one `**`"
)]
pub struct InvalidCapability(String);

impl FromStr for Capability {
    type Err = InvalidCapability;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidCapability(text.chars().take(120).collect());
        let (action, resource) = text.split_once(':').ok_or_else(invalid)?;
        let word = |s: &str| {
            !s.is_empty()
                && s.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'))
        };
        if action != "*" && !word(action) {
            return Err(invalid());
        }
        let resource: Vec<String> = resource.split('/').map(str::to_owned).collect();
        let last = resource.len() - 1;
        for (i, segment) in resource.iter().enumerate() {
            let wild = segment == "*" || (segment == "**" && i == last);
            if !wild && (segment.is_empty() || segment.contains('*') || segment.len() > 253) {
                return Err(invalid());
            }
        }
        Ok(Self { action: action.to_owned(), resource })
    }
}

impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.action, self.resource.join("/"))
    }
}

crate::serde_text!(
    Capability,
    "A capability: `action:resource`, matched by segments",
    "maxLength": 1024,
    "pattern": r"^(\*|[A-Za-z0-9_.-]+):([^/*]+|\*)(/([^/*]+|\*))*(/\*\*)?$|^(\*|[A-Za-z0-9_.-]+):\*\*$",
);

impl Capability {
    /// Whether this grants `action` on the resource with these `segments`.
    #[must_use]
    pub fn covers(&self, action: &str, segments: &[&str]) -> bool {
        (self.action == "*" || self.action == action)
            && segments_cover(&self.resource, segments.iter().copied())
    }

    /// Whether everything that `narrower` grants is granted by this too. Delegation may only shrink.
    #[must_use]
    pub fn includes(&self, narrower: &Self) -> bool {
        (self.action == "*" || self.action == narrower.action)
            && segments_cover(&self.resource, narrower.resource.iter().map(String::as_str))
    }
}

/// Whether whoever holds `wider` holds all of `narrower`. No capabilities at all stand for whatever
/// policies allow.
#[must_use]
pub fn holds_all(wider: &[Capability], narrower: &[Capability]) -> bool {
    wider.is_empty()
        || (!narrower.is_empty()
            && narrower.iter().all(|one| wider.iter().any(|wide| wide.includes(one))))
}

/// What both hold; `None` if that is nothing, because no capabilities at all stand for whatever
/// policies allow. Where two overlap and neither includes the other, neither counts.
#[must_use]
pub fn narrowed(one: &[Capability], other: &[Capability]) -> Option<Vec<Capability>> {
    if one.is_empty() || other.is_empty() {
        return Some([one, other].concat());
    }
    let within = |inner: &[Capability], outer: &[Capability]| {
        let held = |c: &&Capability| outer.iter().any(|wide| wide.includes(c));
        inner.iter().filter(held).cloned().collect::<Vec<_>>()
    };
    let mut both = within(one, other);
    both.extend(within(other, one));
    both.sort();
    both.dedup();
    (!both.is_empty()).then_some(both)
}

/// A wildcard in `candidate` is only covered by a wildcard at least as wide.
fn segments_cover<'a>(pattern: &[String], candidate: impl Iterator<Item = &'a str>) -> bool {
    let mut pattern = pattern.iter().map(String::as_str);
    let mut candidate = candidate.peekable();
    loop {
        match (pattern.next(), candidate.next()) {
            (None, None) => return true,
            (Some("**"), Some(_)) => return true,
            (Some("*"), Some(segment)) if segment != "**" => {}
            (Some(wanted), Some(segment)) if wanted == segment => {}
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn cap(text: &str) -> Capability {
        text.parse().unwrap()
    }

    #[test]
    fn segments_match_whole() {
        let cases = [
            ("read:data", "read", "data", true),
            ("read:data", "read", "database", false),
            ("read:data", "read", "data/x", false),
            ("read:data/*", "read", "data/x", true),
            ("read:data/*", "read", "data/x/y", false),
            ("read:data/**", "read", "data/x/y", true),
            ("read:data/**", "read", "data", false),
            ("*:data", "write", "data", true),
            ("read:**", "write", "data", false),
        ];
        for (grant, action, resource, expected) in cases {
            let segments: Vec<&str> = resource.split('/').collect();
            assert_eq!(
                cap(grant).covers(action, &segments),
                expected,
                "{grant} {action}:{resource}"
            );
        }
    }

    #[test]
    fn malformed_grants_are_refused() {
        for text in ["", "read", ":x", "read:", "read:a//b", "read:**/a", "read:a*", "re ad:x"] {
            assert!(text.parse::<Capability>().is_err(), "{text}");
        }
    }

    #[test]
    fn narrowing_never_widens() {
        let caps =
            |list: &[&str]| -> Vec<Capability> { list.iter().map(|text| cap(text)).collect() };
        let (all, some) = (caps(&[]), caps(&["call:calc/*", "read:a"]));
        assert!(holds_all(&all, &some) && holds_all(&all, &all) && holds_all(&some, &some));
        assert!(holds_all(&some, &caps(&["call:calc/echo"])));
        assert!(!holds_all(&some, &all), "none at all are all");
        assert!(!holds_all(&some, &caps(&["call:calc/echo", "read:b"])));
        assert_eq!(narrowed(&all, &some), Some(some.clone()));
        assert_eq!(narrowed(&some, &all), Some(some.clone()));
        assert_eq!(narrowed(&some, &caps(&["call:**"])), Some(caps(&["call:calc/*"])));
        assert_eq!(narrowed(&caps(&["call:**"]), &some), Some(caps(&["call:calc/*"])));
        assert_eq!(narrowed(&some, &caps(&["read:b"])), None, "nothing is not everything");
    }

    proptest! {
        /// What is left of two lists is covered by both.
        #[test]
        fn what_is_narrowed_is_held_by_both(
            one in "(\\*|read|call):([ab*]/){0,2}([ab*]|\\*\\*)",
            other in "(\\*|read|call):([ab*]/){0,2}([ab*]|\\*\\*)",
        ) {
            let (one, other) = ([cap(&one)], [cap(&other)]);
            if let Some(both) = narrowed(&one, &other) {
                prop_assert!(holds_all(&one, &both) && holds_all(&other, &both));
            }
        }

        /// What a narrower capability covers, the wider one covers: inclusion is sound.
        #[test]
        fn inclusion_is_sound(
            wide in "(\\*|read|call):([ab*]/){0,2}([ab*]|\\*\\*)",
            narrow in "(\\*|read|call):([ab*]/){0,2}([ab*]|\\*\\*)",
            action in "(read|call|write)",
            resource in "([abc]/){0,3}[abc]",
        ) {
            let (wide, narrow) = (cap(&wide), cap(&narrow));
            let segments: Vec<&str> = resource.split('/').collect();
            if wide.includes(&narrow) && narrow.covers(&action, &segments) {
                prop_assert!(wide.covers(&action, &segments));
            }
        }
    }
}
