//! Who is at the other end of a connection. The answer comes from the operating system, never from
//! the connection's own bytes.

use std::net::SocketAddr;

use aegis_core::{AgentId, Timestamp, decision::Reason};
use tokio::net::UnixStream;

/// A proven identity and how long the proof lasts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attested {
    /// Who.
    pub id: AgentId,
    /// Until when.
    pub not_after: Timestamp,
}

/// Proves who is at the other end.
pub trait Attest: Send + Sync + 'static {
    /// The process behind the remote end of a loopback TCP connection.
    ///
    /// # Errors
    /// `identity_missing` when the process cannot be told, `identity_unknown` when it is nobody
    /// registered.
    fn tcp(&self, local: SocketAddr, remote: SocketAddr) -> Result<Attested, Reason>;

    /// The process behind a unix socket.
    ///
    /// # Errors
    /// As [`Attest::tcp`].
    fn unix(&self, stream: &UnixStream) -> Result<Attested, Reason>;
}
