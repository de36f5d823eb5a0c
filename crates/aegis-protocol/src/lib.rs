//! The protocols that Aegis governs: bytes → message → [`Action`](aegis_core::action::Action), and
//! the rewriting of what goes back.
//!
//! Pure: no I/O, no clock, no runtime. A message is parsed once and strictly ([`json`]); what was
//! parsed is judged, and exactly the bytes that were parsed are forwarded, so no server behind the
//! proxy can read another message than the one that was decided. Whatever is unknown here is an
//! error value and never a string that travels on.

pub mod a2a;
pub mod hooks;
pub mod json;
pub mod jsonrpc;
pub mod kernel;
pub mod mcp;
pub mod redact;
pub mod sse;
pub mod stdio;
