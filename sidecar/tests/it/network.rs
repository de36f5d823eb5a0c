//! Two pods on two hosts, in network namespaces of their own, and a network between them that loses packets, is cut,
//! or is slow. Only root can make such a network.

use std::{
    future::Future,
    net::{Ipv4Addr, SocketAddr},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
        mpsc,
    },
    thread::JoinHandle,
    time::Duration,
};

use aegis_sidecar::{Reachable, transparent::Ports};
use http::StatusCode;
use nix::sched::{CloneFlags, setns};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
};

use crate::{
    mesh::{Authority, LAX, Pod, SERVER, exchange, post, reason},
    upstream::Upstream,
    world::{AGENT, STANDARD, call},
};

const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 231, 7, 1);
const SERVERS: Ipv4Addr = Ipv4Addr::new(10, 231, 7, 2);

fn run(program: &str, arguments: &[&str]) -> bool {
    let quiet = Command::new(program).args(arguments).stderr(Stdio::null()).status();
    quiet.is_ok_and(|status| status.success())
}

/// Two namespaces with a cable between them; they go away with this.
struct Network {
    client: String,
    server: String,
}

impl Network {
    /// `None` where this process may not make one.
    fn new() -> Option<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = |end: &str| format!("aegis-{}-{number}-{end}", std::process::id());
        let network = Self { client: name("c"), server: name("s") };
        let ends = [(&network.client, "c0", CLIENT), (&network.server, "s0", SERVERS)];
        let mut made = ends.iter().all(|(name, ..)| run("ip", &["netns", "add", name]));
        let peer = ["type", "veth", "peer", "name", "s0", "netns", &network.server];
        let cable = [&["-n", &network.client, "link", "add", "c0"], &peer[..]].concat();
        made = made && run("ip", &cable);
        for (name, link, address) in ends {
            let address = format!("{address}/24");
            made = made
                && run("ip", &["-n", name, "address", "add", &address, "dev", link])
                && run("ip", &["-n", name, "link", "set", link, "up"])
                && run("ip", &["-n", name, "link", "set", "lo", "up"]);
        }
        if made {
            return Some(network);
        }
        assert!(
            std::env::var_os("CI").is_none(),
            "this test must be able to make network namespaces"
        );
        eprintln!("skipped: only root can make network namespaces");
        None
    }

    /// What happens to packets on the cable, on either way. `None`: nothing.
    fn fault(&self, rule: Option<&str>) {
        let mut rules = "add table inet fault; delete table inet fault;".to_owned();
        if let Some(rule) = rule {
            rules += &format!(
                "table inet fault {{ chain from {{ type filter hook input priority 0; iifname != lo {rule}; }}; \
                 chain to {{ type filter hook output priority 0; oifname != lo {rule}; }}; }};"
            );
        }
        assert!(run("ip", &["netns", "exec", &self.server, "nft", &rules]), "{rules}");
    }

    /// Runs what `work` makes on a thread in a namespace: its sockets are there.
    fn within<T, F>(namespace: &str, work: impl FnOnce() -> F + Send + 'static) -> JoinHandle<T>
    where
        T: Send + 'static,
        F: Future<Output = T>,
    {
        let namespace = std::fs::File::open(format!("/run/netns/{namespace}")).unwrap();
        std::thread::spawn(move || {
            setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(work())
        })
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for name in [&self.client, &self.server] {
            run("ip", &["netns", "delete", name]);
        }
    }
}

/// What a side has recorded: how often each tool was decided, and how.
type Decided = Vec<(String, String)>;

async fn decided(pod: &Pod) -> Decided {
    pod.decisions().await.into_iter().map(|(_, _, tool, reason)| (tool, reason)).collect()
}

/// The server's pod and what is behind it, until the test is over.
struct Far {
    inbound: SocketAddr,
    /// Beside it, and as slow as [`SLOW`] says.
    relay: SocketAddr,
    upstream: Upstream,
    end: tokio::sync::oneshot::Sender<()>,
    thread: JoinHandle<Decided>,
}

/// How long each part of a connection lies on a slow wire.
const SLOW: Duration = Duration::from_millis(150);

async fn slowly(mut from: OwnedReadHalf, mut to: OwnedWriteHalf) {
    let mut bytes = vec![0; 16_384];
    while let Ok(count @ 1..) = from.read(&mut bytes).await {
        tokio::time::sleep(SLOW).await;
        if to.write_all(&bytes[..count]).await.is_err() {
            return;
        }
    }
}

async fn relay(listener: TcpListener, to: SocketAddr) {
    while let Ok((near, _)) = listener.accept().await {
        let far = TcpStream::connect(to).await.unwrap();
        let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
        tokio::spawn(slowly(near_in, far_out));
        tokio::spawn(slowly(far_in, near_out));
    }
}

impl Far {
    fn start(network: &Network, authority: &Arc<Authority>) -> Self {
        let (started, ready) = mpsc::channel();
        let (end, ended) = tokio::sync::oneshot::channel();
        let authority = Arc::clone(authority);
        let thread = Network::within(&network.server, || async move {
            let upstream = Upstream::start().await;
            upstream.results(json!({ "content": [] }));
            let ports = Ports { mcp: [upstream.address.port()].into(), ..Ports::default() };
            let reachable = Reachable::Everything;
            let pod = Pod::start_at(SERVERS, &authority, SERVER, STANDARD, ports, reachable).await;
            pod.destination.set(upstream.address).unwrap();
            let slow = TcpListener::bind((SERVERS, 0)).await.unwrap();
            started.send((pod.inbound, slow.local_addr().unwrap(), upstream)).unwrap();
            tokio::spawn(relay(slow, pod.inbound));
            let _ = ended.await;
            decided(&pod).await
        });
        let (inbound, relay, upstream) = ready.recv().unwrap();
        Self { inbound, relay, upstream, end, thread }
    }

    fn end(self) -> Decided {
        self.end.send(()).unwrap();
        self.thread.join().unwrap()
    }
}

/// The client's pod.
struct Near(Pod);

impl Near {
    async fn start(authority: &Authority, server: SocketAddr) -> Self {
        let pod = Pod::start(authority, AGENT, LAX, Ports::default()).await;
        pod.destination.set(server).unwrap();
        Self(pod)
    }

    async fn call(&self, tool: &str) -> (StatusCode, Value) {
        let stream = TcpStream::connect(self.0.outbound).await.unwrap();
        exchange(stream, post("/mcp", &call(1, tool).to_string())).await
    }
}

/// Calls of a tool, and of one that the server's sidecar does not let the client's list: each has its verdict, and is
/// decided and recorded once where it comes.
fn each_call_has_its_verdict_once(network: &Network, rule: Option<&str>, slow: bool, calls: usize) {
    let authority = Arc::new(Authority::new());
    let far = Far::start(network, &authority);
    let server = if slow { far.relay } else { far.inbound };
    network.fault(rule);
    let near = Network::within(&network.client, move || async move {
        let near = Near::start(&authority, server).await;
        for at in 0..calls {
            let (status, said) = near.call("echo").await;
            assert_eq!(status, StatusCode::OK, "call {at}: {said}");
            assert_eq!(said["error"], Value::Null, "call {at}: {said}");
            let (_, said) = near.call("forbidden").await;
            assert_eq!(said["error"]["message"], "Unknown tool: forbidden", "call {at}: {said}");
        }
        decided(&near.0).await
    });
    let near = near.join().unwrap();
    assert_eq!(far.upstream.count("tools/call"), calls);
    let far = far.end();
    let of = |decided: &Decided, tool: &str, reason: &str| {
        decided.iter().filter(|(of, why)| of == tool && why == reason).count()
    };
    assert_eq!((near.len(), far.len()), (2 * calls, calls));
    assert_eq!(of(&near, "echo", "policy_allowed"), calls);
    assert_eq!(of(&near, "forbidden", "tool_unknown"), calls);
    assert_eq!(of(&far, "echo", "policy_allowed"), calls);
}

#[test]
fn on_a_network_that_loses_packets_each_call_has_its_verdict_once() {
    let Some(network) = Network::new() else { return };
    each_call_has_its_verdict_once(&network, Some("numgen random mod 100 < 10 drop"), false, 20);
}

#[test]
fn on_a_slow_network_each_call_has_its_verdict_once() {
    let Some(network) = Network::new() else { return };
    each_call_has_its_verdict_once(&network, None, true, 3);
}

/// A call on the cut network fails and says so; what follows once it is whole again succeeds, and nothing is done twice.
#[test]
fn a_cut_network_fails_calls_and_nothing_else() {
    let Some(network) = Network::new() else { return };
    let authority = Arc::new(Authority::new());
    let far = Far::start(&network, &authority);
    let server = far.inbound;
    let (say, said) = mpsc::channel::<&'static str>();
    let (go, gone) = mpsc::channel::<()>();
    let wait = move |say: &mpsc::Sender<&'static str>, what| {
        say.send(what).unwrap();
        gone.recv().unwrap();
    };
    let near = Network::within(&network.client, move || async move {
        let near = Near::start(&authority, server).await;
        assert_eq!(near.call("echo").await.0, StatusCode::OK);
        wait(&say, "cut");
        let (status, said) = near.call("echo").await;
        assert_eq!(
            (status, reason(&said)),
            (StatusCode::BAD_GATEWAY, "upstream_unavailable"),
            "{said}"
        );
        wait(&say, "mend");
        assert_eq!(near.call("echo").await.0, StatusCode::OK);
        decided(&near.0).await
    });
    for what in said {
        network.fault((what == "cut").then_some("tcp flags & rst == 0x0 reject with tcp reset"));
        go.send(()).unwrap();
    }
    let near = near.join().unwrap();
    assert_eq!(near.len(), 3);
    let reached = far.upstream.count("tools/call");
    assert!((2..=3).contains(&reached), "{reached}: once each, and the cut one at most once");
    assert_eq!(far.end().len(), reached);
}
