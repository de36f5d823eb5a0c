//! An MCP server to be governed: conforming where it should be, misbehaving where it is told to.
//!
//! It serves both eras of MCP (2026-07-28 without sessions, and 2025-11-25 and before with them)
//! over Streamable HTTP and over standard streams, answers every tool, prompt and resource that the
//! official conformance suite asks for, and counts each message that reaches it, so that a test can
//! compare what arrived with what was recorded. It binds to loopback only.

mod calls;
mod catalogue;
mod http;
mod jobs;
mod misconduct;
mod rounds;
mod server;
mod stdio;
mod talk;

use std::{io, net::SocketAddr, path::PathBuf};

pub use calls::{Calls, Counts};
use server::Server;
use tokio_util::sync::CancellationToken;

/// How the fixture behaves.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Offers the `misconduct_*` tools.
    pub misconduct: bool,
    /// Offers `fixture_shifting`, whose definition changes after it was listed so many times.
    pub shift_after: Option<u64>,
    /// The most tools that one page of a list holds.
    pub page_size: Option<usize>,
    /// A file to which each call of a tool adds a line with its name and arguments.
    pub journal: Option<PathBuf>,
}

/// A fixture that is not served yet.
#[derive(Debug)]
pub struct Fixture {
    server: Server,
}

/// A fixture that has its address.
#[derive(Debug)]
pub struct Bound {
    listener: tokio::net::TcpListener,
    address: SocketAddr,
    server: Server,
}

impl Fixture {
    /// Reads the catalogue and opens the journal.
    ///
    /// # Errors
    /// When the journal cannot be opened.
    pub fn new(options: Options) -> io::Result<Self> {
        Ok(Self { server: Server::new(options)? })
    }

    /// What has reached the fixture so far, also while it is served.
    #[must_use]
    pub fn calls(&self) -> Calls {
        self.server.calls()
    }

    /// Binds to a port of 127.0.0.1; 0 takes a free one.
    ///
    /// # Errors
    /// When the port is taken.
    pub async fn bind(self, port: u16) -> io::Result<Bound> {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await?;
        let address = listener.local_addr()?;
        Ok(Bound { listener, address, server: self.server })
    }

    /// Serves one client on the standard streams until it closes them.
    ///
    /// # Errors
    /// When a stream breaks.
    pub async fn serve_stdio(self) -> io::Result<()> {
        stdio::serve(self.server, tokio::io::stdin(), tokio::io::stdout()).await
    }
}

impl Bound {
    /// The endpoint, such as `http://127.0.0.1:40123/mcp`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}/mcp", self.address)
    }

    /// What has reached the fixture so far, also while it is served.
    #[must_use]
    pub fn calls(&self) -> Calls {
        self.server.calls()
    }

    /// Serves until `stop` is cancelled.
    ///
    /// # Errors
    /// When the listener breaks.
    pub async fn serve(self, stop: CancellationToken) -> io::Result<()> {
        http::serve(self.listener, self.server, stop).await
    }
}
