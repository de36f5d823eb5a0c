//! Why a client's request is not taken: the closed list, and what is needed to answer it.

use aegis_core::decision::Reason;

use super::Form;
use crate::{json::JsonError, jsonrpc::RpcError};

/// Why a client's request is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// The body of an HTTP+JSON request is not strict JSON.
    #[error(transparent)]
    Json(#[from] JsonError),
    /// Not one JSON-RPC request.
    #[error(transparent)]
    Rpc(#[from] RpcError),
    /// A JSON-RPC message that asks for nothing.
    #[error("only requests are sent to an agent; give the message an `id` and a `method`")]
    NotRequest,
    /// No operation of this version. What was asked for is not repeated.
    #[error("the operation is unknown in this protocol version")]
    OperationUnknown,
    /// A version that Aegis does not know.
    #[error("the protocol version is not supported; Aegis knows 0.3 and 1.0")]
    VersionUnsupported,
    /// Header, query and path do not name the same version.
    #[error("`A2A-Version` in the header, the query and the path name different versions")]
    VersionMismatch,
    /// An extension that the upstream's owner has not allowed.
    #[error("the request asks for an extension that is not allowed for this agent")]
    ExtensionUnknown,
    /// The two headers for extensions say different things.
    #[error("`A2A-Extensions` and `X-A2A-Extensions` name different extensions")]
    ExtensionMismatch,
    /// A header that speaks for the request is there twice, or is no text.
    #[error("the header `{0}` must be there once, as text")]
    Header(&'static str),
    /// A path with more than one reading.
    #[error(
        "the path must be percent-encoded once, without `.`, `..`, empty segments or encoded slashes"
    )]
    Path,
    /// A parameter of the query is malformed, or there twice.
    #[error("the query must name each parameter once and be percent-encoded as UTF-8")]
    Query,
    /// Path and body differ.
    #[error("`{0}` in the body differs from the path")]
    PathMismatch(&'static str),
    /// A parameter is absent or of a wrong type.
    #[error("the parameter `{0}` is missing or of a wrong type")]
    Param(&'static str),
    /// Another reader could take a member for a known one, or reads one of two spellings.
    #[error("a member's name differs from that of `{0}` by its spelling alone, or is there twice")]
    Ambiguous(&'static str),
    /// A body where there must be none.
    #[error("a request of this method has no body")]
    BodyUnexpected,
    /// An argument's name is Aegis' own.
    #[error("the parameter name `a2a-extensions` is reserved")]
    Reserved,
}

impl ProtocolError {
    /// The reason it is refused for.
    #[must_use]
    pub const fn reason(&self) -> Reason {
        match self {
            Self::Json(error) => error.reason(),
            Self::Rpc(error) => error.reason(),
            Self::OperationUnknown => Reason::MethodUnknown,
            Self::VersionUnsupported | Self::ExtensionUnknown => Reason::ProtocolUnsupported,
            Self::VersionMismatch
            | Self::ExtensionMismatch
            | Self::Header(_)
            | Self::PathMismatch(_) => Reason::HeaderMismatch,
            Self::NotRequest
            | Self::Path
            | Self::Query
            | Self::Param(_)
            | Self::Ambiguous(_)
            | Self::BodyUnexpected
            | Self::Reserved => Reason::MalformedMessage,
        }
    }
}

/// A refused request: enough to answer it in its sender's words ([`deny::refuse`](super::deny::refuse)).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{error}")]
pub struct Refusal {
    /// What is wrong.
    pub error: ProtocolError,
    /// How it is answered.
    pub form: Form,
}
