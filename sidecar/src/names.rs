//! Where names lead that an application has asked for: the sidecar asks by itself.
//!
//! Containers of a pod share `/etc/hosts` and `/etc/resolv.conf`, and whoever is root in one of them
//! can write both. So the one is never looked at, and of the other what it said when the sidecar
//! started: its name servers. Names are asked for whole, without search domains, and nothing is kept.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use futures::future::BoxFuture;
use simple_dns::{CLASS, Name, Packet, PacketFlag, Question, RCODE, TYPE, rdata::RData};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpStream, UdpSocket},
};

/// Tells the addresses of a name.
pub type Names = Arc<dyn Fn(String) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> + Send + Sync>;

/// How many name servers are asked in turn, as libc does.
const MAX_SERVERS: usize = 3;
/// How long one may take.
const PATIENCE: Duration = Duration::from_millis(1_500);
/// How many names a name may stand for in turn.
const MAX_ALIASES: usize = 8;
/// The largest answer over UDP; what is longer is asked for over TCP.
const MAX_DATAGRAM: usize = 4096;
/// Where name servers listen.
const PORT: u16 = 53;

/// By the name servers that this pod has now.
#[must_use]
pub fn of_pod() -> Names {
    let text = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_else(|error| {
        tracing::warn!(%error, "the pod's name servers cannot be read; names lead nowhere");
        String::new()
    });
    by(servers(&text))
}

/// By these name servers.
#[must_use]
pub fn by(servers: Vec<SocketAddr>) -> Names {
    let servers: Arc<[SocketAddr]> = servers.into();
    Arc::new(move |name| {
        let servers = Arc::clone(&servers);
        Box::pin(async move { lookup(&servers, &name).await })
    })
}

/// The name servers of a resolv.conf.
fn servers(text: &str) -> Vec<SocketAddr> {
    let named = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let address = words.next().filter(|word| *word == "nameserver").and(words.next())?;
        // Within the pod it would be the application that answers.
        let address =
            address.parse::<IpAddr>().ok().filter(|one| !one.to_canonical().is_loopback())?;
        Some(SocketAddr::new(address, PORT))
    });
    named.take(MAX_SERVERS).collect()
}

async fn lookup(servers: &[SocketAddr], name: &str) -> io::Result<Vec<IpAddr>> {
    let of = |kind| ask_in_turn(servers, name, kind);
    match tokio::join!(of(TYPE::A), of(TYPE::AAAA)) {
        (Ok(v4), Ok(v6)) => Ok([v4, v6].concat()),
        (Ok(found), Err(_)) | (Err(_), Ok(found)) => Ok(found),
        (Err(error), Err(_)) => Err(error),
    }
}

async fn ask_in_turn(servers: &[SocketAddr], name: &str, kind: TYPE) -> io::Result<Vec<IpAddr>> {
    let mut last = io::Error::other("this pod has no name server");
    for server in servers {
        match tokio::time::timeout(PATIENCE, ask(*server, name, kind)).await {
            Ok(Ok(found)) => return Ok(found),
            Ok(Err(error)) => last = error,
            Err(_) => last = io::Error::new(io::ErrorKind::TimedOut, "no name server answers"),
        }
    }
    Err(last)
}

async fn ask(server: SocketAddr, name: &str, kind: TYPE) -> io::Result<Vec<IpAddr>> {
    let (question, id) = question(name, kind)?;
    let answer = over_udp(server, &question, id).await?;
    match addresses(&answer, id, name, kind)? {
        Some(found) => Ok(found),
        None => {
            let answer = over_tcp(server, &question).await?;
            let whole = addresses(&answer, id, name, kind)?;
            whole.ok_or_else(|| io::Error::other("the answer is not whole over TCP either"))
        }
    }
}

/// A question, and its id, which nobody can guess.
fn question(name: &str, kind: TYPE) -> io::Result<(Vec<u8>, u16)> {
    let [low, high, ..] = *uuid::Uuid::new_v4().as_bytes();
    let id = u16::from_be_bytes([low, high]);
    let mut packet = Packet::new_query(id);
    packet.set_flags(PacketFlag::RECURSION_DESIRED);
    let name = Name::new(name).map_err(io::Error::other)?;
    packet.questions.push(Question::new(name, kind.into(), CLASS::IN.into(), false));
    Ok((packet.build_bytes_vec().map_err(io::Error::other)?, id))
}

/// The first datagram of the server that has the question's id.
async fn over_udp(server: SocketAddr, question: &[u8], id: u16) -> io::Result<Vec<u8>> {
    let any: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).await?;
    // The kernel takes nobody else's datagrams from here on.
    socket.connect(server).await?;
    socket.send(question).await?;
    let mut bytes = vec![0; MAX_DATAGRAM];
    loop {
        let count = socket.recv(&mut bytes).await?;
        if count >= 2 && bytes.starts_with(&id.to_be_bytes()) {
            bytes.truncate(count);
            return Ok(bytes);
        }
    }
}

async fn over_tcp(server: SocketAddr, question: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    let length = u16::try_from(question.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes(), question].concat()).await?;
    let mut bytes = vec![0; stream.read_u16().await?.into()];
    stream.read_exact(&mut bytes).await?;
    Ok(bytes)
}

/// The addresses that an answer gives the name, under whatever it stands for; `None` if the answer
/// is not whole.
fn addresses(answer: &[u8], id: u16, name: &str, kind: TYPE) -> io::Result<Option<Vec<IpAddr>>> {
    let packet = Packet::parse(answer).map_err(io::Error::other)?;
    let asked = matches!(packet.questions.as_slice(), [one]
        if is(&one.qname, name) && one.qtype == kind.into());
    if packet.id() != id || !packet.has_flags(PacketFlag::RESPONSE) || !asked {
        return Err(io::Error::other("the name server has answered something else"));
    }
    if packet.has_flags(PacketFlag::TRUNCATION) {
        return Ok(None);
    }
    if packet.rcode() != RCODE::NoError {
        return Err(io::Error::other(format!("the name server says {:?}", packet.rcode())));
    }
    let mut owner = name.to_owned();
    for _ in 0..MAX_ALIASES {
        let alias = packet.answers.iter().find_map(|record| match &record.rdata {
            RData::CNAME(to) if is(&record.name, &owner) => Some(to.0.to_string()),
            _ => None,
        });
        let Some(alias) = alias else { break };
        owner = alias;
    }
    let of_owner = packet.answers.iter().filter(|record| is(&record.name, &owner));
    let found = of_owner.filter_map(|record| match &record.rdata {
        RData::A(v4) if kind == TYPE::A => Some(Ipv4Addr::from(v4.address).into()),
        RData::AAAA(v6) if kind == TYPE::AAAA => Some(Ipv6Addr::from(v6.address).into()),
        _ => None,
    });
    Ok(Some(found.collect()))
}

fn is(name: &Name<'_>, text: &str) -> bool {
    name.to_string().trim_end_matches('.').eq_ignore_ascii_case(text.trim_end_matches('.'))
}

#[cfg(test)]
mod tests {
    use simple_dns::{
        ResourceRecord,
        rdata::{A, CNAME},
    };
    use tokio::net::TcpListener;

    use super::*;

    const NAME: &str = "api.example.com";

    /// An answer to a question, with these records: a name, and an address or another name.
    fn answer(question: &[u8], records: &[(&str, &str)], flags: PacketFlag) -> Vec<u8> {
        let asked = Packet::parse(question).unwrap();
        let mut packet = Packet::new_reply(asked.id());
        packet.set_flags(flags);
        packet.questions = asked.questions.clone();
        for (owner, data) in records {
            let data = match data.parse::<Ipv4Addr>() {
                Ok(v4) => RData::A(A { address: v4.into() }),
                Err(_) => RData::CNAME(CNAME(Name::new(data).unwrap())),
            };
            let owner = Name::new(owner).unwrap();
            packet.answers.push(ResourceRecord::new(owner, CLASS::IN, 60, data));
        }
        packet.build_bytes_vec().unwrap()
    }

    fn read(records: &[(&str, &str)]) -> Vec<IpAddr> {
        let (question, id) = question(NAME, TYPE::A).unwrap();
        let answer = answer(&question, records, PacketFlag::empty());
        addresses(&answer, id, NAME, TYPE::A).unwrap().unwrap()
    }

    #[test]
    fn addresses_are_those_of_the_name_that_was_asked_for() {
        let (one, two): (IpAddr, IpAddr) =
            ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap());
        assert_eq!(read(&[(NAME, "192.0.2.1"), ("API.Example.com", "192.0.2.2")]), [one, two]);
        assert_eq!(read(&[(NAME, "cdn.example.net"), ("cdn.example.net", "192.0.2.1")]), [one]);
        assert!(read(&[("evil.example.com", "192.0.2.1")]).is_empty(), "another's");
        assert!(read(&[(NAME, NAME)]).is_empty(), "round in a circle");
    }

    #[test]
    fn another_answer_is_none() {
        let (question, id) = question(NAME, TYPE::A).unwrap();
        let good = answer(&question, &[(NAME, "192.0.2.1")], PacketFlag::empty());
        assert!(addresses(&good, id, NAME, TYPE::A).is_ok());
        assert!(addresses(&good, id ^ 1, NAME, TYPE::A).is_err(), "another id");
        assert!(addresses(&good, id, "other.example.com", TYPE::A).is_err());
        assert!(addresses(&good, id, NAME, TYPE::AAAA).is_err());
        assert!(addresses(&question, id, NAME, TYPE::A).is_err(), "a question");
        assert!(addresses(&good[..20], id, NAME, TYPE::A).is_err());
        let mut refused = good;
        refused[3] |= 3;
        assert!(addresses(&refused, id, NAME, TYPE::A).is_err(), "there is no such name");
    }

    #[test]
    fn name_servers_are_read() {
        let text = "search shop.svc\n# nameserver 192.0.2.9\nnameserver 10.0.0.10\nnameserver x\n\
                    nameserver 2001:db8::1\noptions ndots:5";
        let expected: Vec<SocketAddr> =
            vec!["10.0.0.10:53".parse().unwrap(), "[2001:db8::1]:53".parse().unwrap()];
        assert_eq!(servers(text), expected);
    }

    #[tokio::test]
    async fn what_is_too_long_for_a_datagram_is_asked_over_tcp_and_a_stranger_is_not_heard() {
        let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = tcp.local_addr().unwrap();
        let udp = UdpSocket::bind(server).await.unwrap();
        tokio::spawn(async move {
            let mut bytes = [0; 512];
            while let Ok((count, from)) = udp.recv_from(&mut bytes).await {
                let mut other =
                    answer(&bytes[..count], &[(NAME, "192.0.2.66")], PacketFlag::empty());
                other[0] ^= 1;
                udp.send_to(&other, from).await.unwrap();
                let cut = answer(&bytes[..count], &[], PacketFlag::TRUNCATION);
                udp.send_to(&cut, from).await.unwrap();
            }
        });
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = tcp.accept().await {
                let mut question = vec![0; stream.read_u16().await.unwrap().into()];
                stream.read_exact(&mut question).await.unwrap();
                let whole = answer(&question, &[(NAME, "192.0.2.1")], PacketFlag::empty());
                stream.write_u16(whole.len().try_into().unwrap()).await.unwrap();
                stream.write_all(&whole).await.unwrap();
            }
        });
        let found = by(vec![server])(NAME.into()).await.unwrap();
        assert_eq!(found, ["192.0.2.1".parse::<IpAddr>().unwrap()]);
        assert!(by(vec![])(NAME.into()).await.is_err());
    }
}
