//! Agent2Agent, seen by a proxy that governs it: versions 0.3 and 1.0, in the JSON-RPC and the
//! HTTP+JSON binding.
//!
//! What a client asks for is one [`Operation`], whichever way it is spelled: a method of JSON-RPC
//! (specification 1.0 §9.4, 0.3 §7) or a path (1.0 §11.3, 0.3 §3.5.3). Its parameters are judged in
//! one form, that of 1.0 (`specification/a2a.proto`), so the same operation is the same action with
//! the same digest, and one policy holds for all of them. What is forwarded are the bytes as they
//! came. Refusals are in the words of the binding that was used (1.0 §5.4, §9.5, §11.6).
//!
//! Refused: other versions (§3.6), extensions that nobody has allowed (§4.6), methods and paths that
//! are none of these operations, paths with more than one reading, a body that names another task
//! than its path does, and members whose name another reader could take for a known one.

mod fields;
mod normal;
mod operation;
mod path;
mod refusal;
mod request;
mod version;

pub mod answer;
pub mod deny;
pub mod tasks;
pub mod webhook;

pub use deny::Form;
pub use operation::{Binding, Operation};
pub use path::base_of;
pub use refusal::{ProtocolError, Refusal};
pub use request::{Asked, ClientRequest, Received, binding_of, parse};
pub use version::Version;

/// Where an agent's card is (specification §8.2).
pub const CARD_PATH: &str = "/.well-known/agent-card.json";
/// The header, or the member of a query, that names the version (§3.6.1).
pub const VERSION_HEADER: &str = "a2a-version";
/// The header that names extensions (§3.2.6). Its name is also that of the argument under which the
/// extensions of a request are judged.
pub const EXTENSIONS_HEADER: &str = "a2a-extensions";
/// The same in version 0.3.
pub const LEGACY_EXTENSIONS_HEADER: &str = "x-a2a-extensions";
/// The media type of the HTTP+JSON binding (§14.1.1); `application/json` is accepted too.
pub const MEDIA_TYPE: &str = "application/a2a+json";
