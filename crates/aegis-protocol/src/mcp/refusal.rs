//! Why a client's message is not taken: the closed list, and what is needed to answer it.

use aegis_core::{Digest, decision::Reason};

use super::{Era, HeaderError, name::NameError, uri::UriError};
use crate::jsonrpc::{Id, RpcError};

/// Why a client's message is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// Not one JSON-RPC message.
    #[error(transparent)]
    Rpc(#[from] RpcError),
    /// Headers and body differ.
    #[error(transparent)]
    Header(#[from] HeaderError),
    /// A method that this era does not have. The name is the client's own.
    #[error("the method is unknown in this protocol version")]
    MethodUnknown,
    /// A protocol version that Aegis does not know.
    #[error("the protocol version is not supported")]
    VersionUnsupported {
        /// What was asked for, shortened.
        requested: String,
    },
    /// A modern request without a required member of `_meta`.
    #[error("`_meta` lacks `{0}` or holds it with a wrong type")]
    MetaMissing(&'static str),
    /// A parameter is absent or of a wrong type.
    #[error("the parameter `{0}` is missing or of a wrong type")]
    Param(&'static str),
    /// The name of the tool or prompt could be taken for another.
    #[error("{error}")]
    Name {
        /// What is wrong with it.
        error: NameError,
        /// What it names: `tool` or `prompt`.
        what: &'static str,
    },
    /// A name or URI is longer than it may be. It is told by its digest, never by a part of it.
    #[error("the {what} is longer than it may be; it has {bytes} bytes")]
    TooLong {
        /// What it names: `tool`, `prompt` or `resource`.
        what: &'static str,
        /// Its length.
        bytes: usize,
        /// Its digest.
        digest: Digest,
    },
    /// The resource's URI is not canonical.
    #[error(transparent)]
    Uri(UriError),
    /// An argument's name is reserved.
    #[error("an argument's name starts with `io.modelcontextprotocol/`, which is reserved")]
    ReservedArgument,
    /// A modern client sent a response.
    #[error("responses are not sent by clients in this protocol version")]
    ResponseUnexpected,
}

impl ProtocolError {
    /// Why a tool's or prompt's name is refused.
    pub(super) fn of_name(error: NameError, what: &'static str, name: &str) -> Self {
        match error {
            NameError::TooLong => Self::too_long(what, name),
            error => Self::Name { error, what },
        }
    }

    /// Why a resource's URI is refused.
    pub(super) fn of_uri(error: UriError, uri: &str) -> Self {
        match error {
            UriError::TooLong => Self::too_long("resource", uri),
            error => Self::Uri(error),
        }
    }

    fn too_long(what: &'static str, name: &str) -> Self {
        Self::TooLong { what, bytes: name.len(), digest: Digest::of(name.as_bytes()) }
    }

    /// The reason it is refused for.
    #[must_use]
    pub const fn reason(&self) -> Reason {
        match self {
            Self::Rpc(error) => error.reason(),
            Self::Header(_) => Reason::HeaderMismatch,
            Self::MethodUnknown => Reason::MethodUnknown,
            Self::VersionUnsupported { .. } => Reason::ProtocolUnsupported,
            Self::Name { .. } => Reason::ToolUnknown,
            Self::TooLong { .. } => Reason::NameTooLong,
            Self::MetaMissing(_)
            | Self::Param(_)
            | Self::Uri(_)
            | Self::ReservedArgument
            | Self::ResponseUnexpected => Reason::MalformedMessage,
        }
    }
}

/// A refused message: enough to answer it in its sender's words ([`deny::refuse`](super::deny::refuse)).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{error}")]
pub struct Refusal {
    /// What is wrong.
    pub error: ProtocolError,
    /// The id to answer, if one could be read.
    pub id: Option<Id>,
    /// The sender's era, if it could be told.
    pub era: Option<Era>,
    /// Whether the message was a notification or response, which gets no JSON-RPC answer.
    pub one_way: bool,
}
