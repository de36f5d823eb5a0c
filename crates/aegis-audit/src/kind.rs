//! The closed words of an entry: what it records and how that ended.

use serde::{Deserialize, Serialize};

/// A closed set of words with their text forms.
macro_rules! words {
    ($(#[$meta:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident => $text:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum $name {
            $($(#[$doc])* #[serde(rename = $text)] $variant,)+
        }

        impl $name {
            /// Every word of the set.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// The word as it is recorded.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)+
                }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl std::str::FromStr for $name {
            type Err = UnknownWord;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                match text {
                    $($text => Ok(Self::$variant),)+
                    other => Err(UnknownWord {
                        word: other.chars().take(80).collect(),
                        expected: [$($text,)+].join(", "),
                    }),
                }
            }
        }
    };
}

/// A text outside a closed set.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{word}` is unknown here: expected one of {expected}")]
pub struct UnknownWord {
    word: String,
    expected: String,
}

words! {
    /// What an entry records.
    Kind {
        /// A verdict on an action.
        Decision => "decision",
        /// A request of a server to its client, within an exchange.
        ServerRequest => "server_request",
        /// What became of an allowed action.
        Outcome => "outcome",
        /// A human is asked.
        ApprovalRequested => "approval_requested",
        /// A human answered.
        ApprovalVote => "approval_vote",
        /// An approval was used up.
        ApprovalConsumed => "approval_consumed",
        /// An approval ran out unused.
        ApprovalExpired => "approval_expired",
        /// A policy took effect.
        PolicyLoaded => "policy_loaded",
        /// A policy was rejected.
        PolicyRefused => "policy_refused",
        /// An SVID was issued.
        IdentityIssued => "identity_issued",
        /// An identity was revoked.
        IdentityRevoked => "identity_revoked",
        /// Somebody changed a trust score by hand.
        TrustAdjusted => "trust_adjusted",
        /// A tool definition was pinned.
        ToolPinned => "tool_pinned",
        /// A tool definition changed and waits for approval.
        ToolQuarantined => "tool_quarantined",
        /// A journal began.
        JournalOpened => "journal_opened",
        /// A journal ended in order.
        JournalClosed => "journal_closed",
        /// Entries were lost, and how many.
        Gap => "gap",
        /// Unauthenticated refusals, counted per second.
        Refusals => "refusals",
        /// The configuration of a component.
        Configuration => "configuration",
    }
}

words! {
    /// How what is recorded ended.
    Outcome {
        /// Permitted.
        Allow => "allow",
        /// Refused.
        Deny => "deny",
        /// Waits for a human.
        RequireApproval => "require_approval",
        /// Done, and well.
        Success => "success",
        /// Done, and badly.
        Failure => "failure",
        /// Nobody knows how it ended.
        Unknown => "unknown",
        /// A fact without a verdict.
        Recorded => "recorded",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn words_round_trip() {
        for kind in Kind::ALL {
            assert_eq!(kind.as_str().parse::<Kind>().unwrap(), *kind);
            assert_eq!(json!(kind), json!(kind.as_str()));
        }
        assert!("Decision".parse::<Kind>().is_err());
    }
}
