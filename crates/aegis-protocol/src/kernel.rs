//! Questions that reach the kernel API: AuthZEN 1.0 access evaluations and OPA's data queries, each
//! bytes → [`Question`] with the [`Action`](aegis_core::action::Action) that is judged.
//!
//! The mapping is closed. An AuthZEN action's name is one of the [`METHODS`], with the type of
//! resource that goes with it; or the resource is a `server`, and the action's name the tool. The
//! arguments are the action's `properties`. Members that are not named here say nothing about the
//! action: AuthZEN has them ignored, so they are neither judged nor recorded. In OPA's shape, which has
//! no such rule, they are refused.
//!
//! What a question says of its subject is a claim. Whoever serves it compares it with who was
//! attested.

mod authzen;
mod opa;
mod target;

use aegis_core::{action::Action, decision::Reason};

use crate::{
    json::JsonError,
    mcp::{name::NameError, uri::UriError},
};

pub use authzen::{Asked, Semantic, evaluation, evaluations};
pub use opa::query;
pub use target::{LOCAL, METHODS};

/// The most questions of one batch.
pub const MAX_EVALUATIONS: usize = 100;

/// One question.
#[derive(Clone, Debug, PartialEq)]
pub struct Question {
    /// Who the caller says that it is; `None` if it says nothing, or `self`.
    pub subject: Option<String>,
    /// The action.
    pub action: Action,
    /// The namespace of the server, if the caller names one.
    pub namespace: Option<String>,
    /// The approval that the caller was told to wait for.
    pub approval: Option<String>,
}

/// Why bytes are no question. Content is never quoted, as it may be secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuestionError {
    /// Not JSON, or refused as such.
    #[error(transparent)]
    Json(#[from] JsonError),
    /// A member is missing or of another type.
    #[error("`{member}` must be {expected}")]
    Member {
        /// Which.
        member: &'static str,
        /// What it must be.
        expected: &'static str,
    },
    /// A member that would not be judged.
    #[error("`{within}` has a member that is not judged; leave it out")]
    Unjudged {
        /// Where.
        within: &'static str,
    },
    /// The action is not one that Aegis knows.
    #[error(
        "no action of this name is known for this type of resource; name one of the reference's, such as `tools/call` on a `tool`"
    )]
    Method,
    /// The name of a tool, prompt or server.
    #[error("{what}: {error}")]
    Name {
        /// Whose.
        what: &'static str,
        /// Why.
        error: NameError,
    },
    /// A URI.
    #[error(transparent)]
    Uri(#[from] UriError),
    /// A path.
    #[error(
        "a file is named by an absolute path of at most 4096 bytes, without empty segments, `.`, `..` and control characters"
    )]
    Path,
    /// Too many questions at once.
    #[error("a batch has at most {MAX_EVALUATIONS} evaluations; send several")]
    Batch,
}

impl QuestionError {
    /// The reason it is refused for.
    #[must_use]
    pub const fn reason(&self) -> Reason {
        match self {
            Self::Json(error) => error.reason(),
            Self::Method => Reason::MethodUnknown,
            Self::Name { error: NameError::TooLong, .. } | Self::Uri(UriError::TooLong) => {
                Reason::NameTooLong
            }
            Self::Batch => Reason::BatchRefused,
            Self::Member { .. }
            | Self::Unjudged { .. }
            | Self::Name { .. }
            | Self::Uri(_)
            | Self::Path => Reason::MalformedMessage,
        }
    }
}

#[cfg(test)]
mod tests;
