//! Attestation on one machine: the kernel says which process is at the other end of a socket, and
//! the registrations say which agent that process is.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use aegis_ca::{Attestor, Peer, Registration, Selector};
use aegis_core::{AgentId, Timestamp, decision::Reason};
use aegis_sidecar::{Attest, Attested};
use arc_swap::ArcSwap;
use tokio::net::UnixStream;

/// How long an attestation is good for; a connection is attested when it opens.
const VALIDITY: Duration = Duration::from_secs(24 * 60 * 60);

/// Recognises processes of this machine.
#[derive(Debug, Default)]
pub(super) struct LocalAttest {
    attestor: Attestor,
    registrations: ArcSwap<Vec<Registration>>,
}

impl LocalAttest {
    /// Replaces the registrations.
    pub(super) fn register(&self, registrations: Vec<Registration>) {
        self.registrations.store(Arc::new(registrations));
    }

    /// The users that agents are recognised by; `None` for one that is recognised otherwise.
    pub(super) fn uids(&self) -> Vec<Option<u32>> {
        let uid = |registration: &Registration| {
            registration.selectors.iter().find_map(|selector| match selector {
                Selector::Uid(uid) => Some(*uid),
                _ => None,
            })
        };
        self.registrations.load().iter().map(uid).collect()
    }

    /// Whether an agent is recognised by more than its user and group.
    pub(super) fn is_specific(&self, id: &AgentId) -> bool {
        self.registrations.load().iter().filter(|r| r.id == *id).any(|registration| {
            let more = |s: &Selector| !matches!(s, Selector::Uid(_) | Selector::Gid(_));
            registration.selectors.iter().any(more)
        })
    }

    /// The user who made the remote end of a loopback TCP connection, if the kernel knows.
    pub(super) fn user(&self, local: SocketAddr, remote: SocketAddr) -> Option<u32> {
        socket_of(remote, local).map(|(_, maker)| maker)
    }

    fn process(&self, peer: &Peer) -> Result<AgentId, Reason> {
        match self.attestor.attest(peer, &self.registrations.load()) {
            Ok(registration) => Ok(registration.id),
            Err(error) => {
                tracing::warn!(%error, "a caller is not recognised");
                Err(Reason::IdentityUnknown)
            }
        }
    }
}

fn attested(id: AgentId) -> Attested {
    Attested { id, not_after: now().plus(VALIDITY) }
}

/// The time of this machine.
pub(crate) fn now() -> Timestamp {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    Timestamp::from_micros(u64::try_from(since.unwrap_or_default().as_micros()).unwrap_or(u64::MAX))
}

impl Attest for LocalAttest {
    fn tcp(&self, local: SocketAddr, remote: SocketAddr) -> Result<Attested, Reason> {
        // The remote end's own socket: its local address is our remote one.
        let (inode, maker) = socket_of(remote, local).ok_or(Reason::IdentityMissing)?;
        let holders = holders_of(inode);
        let mut found: Option<AgentId> = None;
        for pid in holders {
            let peer = Peer::of_process(pid).map_err(|_| Reason::IdentityMissing)?;
            // A socket can be handed on to another user's program, which then speaks for nobody. One
            // that runs with somebody else's rights is not its user either.
            if peer.uid() != maker || !has_one_user(pid, maker) {
                return Err(Reason::IdentityMissing);
            }
            let id = self.process(&peer)?;
            // A socket shared by two agents speaks for neither.
            if found.as_ref().is_some_and(|other| *other != id) {
                return Err(Reason::IdentityMissing);
            }
            found = Some(id);
        }
        // Whether it still holds the connection: otherwise its id may be somebody else's by now.
        if socket_of(remote, local) != Some((inode, maker)) {
            return Err(Reason::IdentityMissing);
        }
        found.map(attested).ok_or(Reason::IdentityMissing)
    }

    fn unix(&self, stream: &UnixStream) -> Result<Attested, Reason> {
        let peer = Peer::of(stream).map_err(|error| {
            tracing::warn!(%error, "a caller cannot be examined");
            Reason::IdentityMissing
        })?;
        self.process(&peer).map(attested)
    }
}

/// Whether real, effective and saved user of a process are all `uid` (proc_pid_status(5)).
fn has_one_user(pid: i32, uid: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"));
    line.is_some_and(|line| line.split_ascii_whitespace().all(|one| one.parse() == Ok(uid)))
}

/// The inode of the established socket with these ends, and the user who made it (proc(5),
/// /proc/net/tcp).
fn socket_of(local: SocketAddr, remote: SocketAddr) -> Option<(u64, u32)> {
    let file = if local.is_ipv4() { "/proc/net/tcp" } else { "/proc/net/tcp6" };
    let wanted = (encoded(local), encoded(remote));
    let table = fs::read_to_string(file).ok()?;
    table.lines().skip(1).find_map(|line| {
        let mut fields = line.split_ascii_whitespace().skip(1);
        let ends = (fields.next()?, fields.next()?);
        let established = fields.next()? == "01";
        let (uid, inode) = (fields.nth(3)?, fields.nth(1)?);
        (established && ends == (wanted.0.as_str(), wanted.1.as_str()))
            .then(|| Some((inode.parse().ok()?, uid.parse().ok()?)))
            .flatten()
            .filter(|(inode, _)| *inode != 0)
    })
}

/// An address as the kernel prints it: 32-bit words of the host's byte order in hex.
fn encoded(address: SocketAddr) -> String {
    let words: Vec<u8> = match address.ip() {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let mut text = String::with_capacity(40);
    for word in words.chunks_exact(4) {
        let word: [u8; 4] = word.try_into().unwrap_or_default();
        text.push_str(&format!("{:08X}", u32::from_ne_bytes(word)));
    }
    format!("{text}:{:04X}", address.port())
}

/// The processes that hold the socket with that inode.
fn holders_of(inode: u64) -> Vec<i32> {
    let name = format!("socket:[{inode}]");
    let Ok(processes) = fs::read_dir("/proc") else { return Vec::new() };
    let pids =
        processes.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| {
        let Ok(descriptors) = fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
        descriptors.flatten().any(|fd| {
            fs::read_link(fd.path()).is_ok_and(|target| target.as_os_str() == name.as_str())
        })
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn the_process_behind_a_connection_is_found() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, remote) = listener.accept().unwrap();
        let (inode, maker) = socket_of(remote, server.local_addr().unwrap()).unwrap();
        let own = nix::unistd::getuid().as_raw();
        assert_eq!(maker, own);
        assert!(has_one_user(std::process::id().cast_signed(), own));
        assert!(!has_one_user(std::process::id().cast_signed(), own + 1));
        assert_eq!(holders_of(inode), [i32::try_from(std::process::id()).unwrap()]);
        drop(client);
    }

    #[test]
    fn strangers_are_nobody() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, remote) = listener.accept().unwrap();
        let local = server.local_addr().unwrap();
        let attest = LocalAttest::default();
        assert_eq!(attest.tcp(local, remote), Err(Reason::IdentityUnknown));
        let id: AgentId = "spiffe://acme.example/ns/a/sa/b/agent/c".parse().unwrap();
        let uid =
            fs::metadata("/proc/self").map(|m| std::os::unix::fs::MetadataExt::uid(&m)).unwrap();
        attest.register(vec![Registration {
            id: id.clone(),
            sponsor: "ada@acme.example".parse().unwrap(),
            capabilities: vec![],
            selectors: vec![Selector::Uid(uid)],
            ttl: None,
        }]);
        assert_eq!(attest.tcp(local, remote).unwrap().id, id);
        drop(client);
        drop(server);
        assert!(attest.tcp(local, remote).is_err());
    }
}
