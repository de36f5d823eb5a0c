//! What a connection speaks, by its first bytes. Nothing is taken off the connection.

use std::{io, time::Duration};

use tokio::net::TcpStream;

/// How long whoever connects may take to speak. Where the server speaks first, nobody does.
const PATIENCE: Duration = Duration::from_secs(10);
/// The first byte of a TLS record with a handshake (RFC 8446 §5.1).
const HANDSHAKE: u8 = 0x16;

/// What a connection speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Spoken {
    /// TLS.
    Tls,
    /// HTTP/1.
    Http,
    /// HTTP/2 without an upgrade.
    Http2,
    /// Something else, or nothing in time.
    Other,
    /// It was closed before a byte was sent.
    Closed,
}

impl Spoken {
    /// What is recorded.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Tls => "tls",
            Self::Http => "http/1",
            Self::Http2 => "http/2",
            Self::Other => "unknown",
            Self::Closed => "nothing",
        }
    }
}

/// Waits for the first bytes.
pub(super) async fn spoken(stream: &TcpStream) -> Spoken {
    match tokio::time::timeout(PATIENCE, first(stream)).await {
        Ok(Ok(spoken)) => spoken,
        Ok(Err(_)) => Spoken::Closed,
        Err(_) => Spoken::Other,
    }
}

async fn first(stream: &TcpStream) -> io::Result<Spoken> {
    let mut bytes = [0; 4];
    let mut known = 0;
    loop {
        let count = stream.peek(&mut bytes).await?;
        let head = bytes.get(..count).unwrap_or_default();
        match head {
            [] => return Ok(Spoken::Closed),
            [HANDSHAKE, ..] => return Ok(Spoken::Tls),
            b"PRI " => return Ok(Spoken::Http2),
            [b'P', ..] if count < 4 && b"PRI ".starts_with(head) => {}
            [first, ..] if first.is_ascii_uppercase() => return Ok(Spoken::Http),
            _ => return Ok(Spoken::Other),
        }
        if count == known {
            // Peeking returns at once while there are bytes: wait until there are more.
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        known = count;
    }
}
