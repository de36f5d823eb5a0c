//! The MCP server behind everything: answers every call at once, and counts what it sees. It has a
//! thread and a poll of its own, like a server in another process.

use std::{
    collections::HashMap,
    io::Write as _,
    net::{TcpListener, TcpStream},
    os::fd::AsRawFd as _,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use memchr::memmem;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use crate::wire;

/// The key of the listener among the events; descriptors are smaller.
const LISTENER: u64 = u64::MAX;

/// A running upstream. It ends with the process.
#[derive(Debug)]
pub struct Upstream {
    /// Where it listens.
    pub port: u16,
    seen: Arc<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    calls: AtomicU64,
    forbidden: AtomicU64,
}

impl Upstream {
    /// Starts one on a free port.
    pub fn start() -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        listener.set_nonblocking(true)?;
        let port = listener.local_addr()?.port();
        let seen = Arc::new(Seen::default());
        let counting = Arc::clone(&seen);
        std::thread::Builder::new().name("upstream".into()).spawn(move || {
            if let Err(error) = serve(&listener, &counting) {
                eprintln!("bench-proxy: the upstream has ended: {error}");
            }
        })?;
        Ok(Self { port, seen })
    }

    /// The calls it has seen, and how many of them are forbidden.
    pub fn seen(&self) -> (u64, u64) {
        (self.seen.calls.load(Ordering::SeqCst), self.seen.forbidden.load(Ordering::SeqCst))
    }
}

/// The answer to a request for the list of tools, which Aegis sends once before the first call.
fn list_of_tools(body: &[u8]) -> Option<Vec<u8>> {
    memmem::find(body, b"\"tools/list\"")?;
    let request: serde_json::Value = serde_json::from_slice(body).ok()?;
    let tools: Vec<_> = [wire::ALLOWED, wire::FORBIDDEN]
        .iter()
        .map(|name| serde_json::json!({ "name": name, "inputSchema": { "type": "object" } }))
        .collect();
    let result = serde_json::json!({ "tools": tools, "resultType": "complete", "ttlMs": 0, "cacheScope": "private" });
    let body =
        serde_json::json!({ "jsonrpc": "2.0", "id": request.get("id")?, "result": result }).to_string();
    let head = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    Some([head.into_bytes(), body.into_bytes()].concat())
}

fn serve(listener: &TcpListener, seen: &Seen) -> anyhow::Result<()> {
    let poll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    poll.add(listener, EpollEvent::new(EpollFlags::EPOLLIN, LISTENER))?;
    let mut connections: HashMap<u64, (TcpStream, Vec<u8>)> = HashMap::new();
    let mut answer = wire::answer();
    let forbidden = memmem::Finder::new(wire::FORBIDDEN);
    let mut events = [EpollEvent::empty(); 64];
    loop {
        let ready = poll.wait(&mut events, EpollTimeout::NONE)?;
        for event in events.iter().take(ready) {
            if event.data() == LISTENER {
                while let Ok((stream, _)) = listener.accept() {
                    stream.set_nodelay(true)?;
                    stream.set_nonblocking(true)?;
                    let key = u64::try_from(stream.as_raw_fd())?;
                    poll.add(&stream, EpollEvent::new(EpollFlags::EPOLLIN, key))?;
                    connections.insert(key, (stream, Vec::with_capacity(4_096)));
                }
                continue;
            }
            let Some((stream, buffer)) = connections.get_mut(&event.data()) else { continue };
            let mut open = wire::fill(&*stream, buffer).unwrap_or(false);
            while open && let Some(frame) = wire::frame(buffer)? {
                let body = buffer.get(frame.body..frame.end).unwrap_or_default();
                if let Some(list) = list_of_tools(body) {
                    open = stream.write_all(&list).is_ok();
                    buffer.drain(..frame.end);
                    continue;
                }
                seen.calls.fetch_add(1, Ordering::SeqCst);
                if forbidden.find(body).is_some() {
                    seen.forbidden.fetch_add(1, Ordering::SeqCst);
                }
                let id =
                    wire::id_of(body).and_then(|id| std::str::from_utf8(id).ok()?.parse().ok());
                // An id is ten digits: its number is what exceeds the first.
                let bytes = answer.with_id(id.unwrap_or(0_u64).saturating_sub(1_000_000_000));
                open = stream.write_all(bytes).is_ok();
                buffer.drain(..frame.end);
            }
            if !open {
                // Dropping the stream takes it out of the poll too.
                connections.remove(&event.data());
            }
        }
    }
}
