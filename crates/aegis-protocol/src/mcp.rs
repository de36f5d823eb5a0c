//! The Model Context Protocol, both eras, seen by a proxy that governs it.
//!
//! "Legacy" are the revisions up to 2025-11-25, which open a session with `initialize`; "modern" is
//! 2026-07-28, where every request carries its version and capabilities in `_meta` and mirrors its
//! method and name in HTTP headers (basic/versioning, basic/transports/streamable-http). A proxy
//! passes the era through: it translates nothing, and answers neither `initialize` nor
//! `server/discover` itself.

mod client;
mod header;
mod method;
mod refusal;
mod retry;
mod version;

pub mod capabilities;
pub mod deny;
pub mod list;
pub mod listing;
pub mod name;
pub mod server;
pub mod tools;
pub mod uri;

pub use client::{ClientKind, ClientMessage, Transport, parse_client};
pub use header::{HeaderError, HeaderParam};
pub use method::{ClientMethod, ListKind, ServerMethod};
pub use refusal::{ProtocolError, Refusal};
pub use retry::{OwnRetry, take_own_retry};
pub use version::{Era, LegacyVersion, MODERN_VERSION, SUPPORTED_VERSIONS};

/// The prefix of the protocol's own members of `_meta`, and of the keys under which an action's
/// arguments hold what is judged beside the arguments proper (see [`parse_client`]).
pub const RESERVED_PREFIX: &str = "io.modelcontextprotocol/";
/// The member of `_meta` that names the protocol version of a modern request.
pub const META_VERSION: &str = "io.modelcontextprotocol/protocolVersion";
/// The member of `_meta` that declares what the client of a modern request can do.
pub const META_CAPABILITIES: &str = "io.modelcontextprotocol/clientCapabilities";
