//! The generator: sixteen connections, one thread, every answer checked.
//!
//! Open loop: call `n` is due at `start + n / rate`, whatever has become of the calls before it, and
//! its latency counts from then (no coordinated omission). Closed loop: every connection has always
//! one call in flight.

use std::{
    io::Write as _,
    net::TcpStream,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use memchr::memmem;
use nix::sys::{
    epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
    timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags},
};

use crate::wire::{self, Template};

/// How many connections an agent holds.
pub const CONNECTIONS: usize = 16;
/// Every so many calls, one is forbidden: 5 %.
const FORBIDDEN_EVERY: u64 = 20;
/// How long the last answers may take.
const PATIENCE: Duration = Duration::from_secs(5);
const TIMER: u64 = u64::MAX;

/// What becomes of a forbidden call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Nothing forbids it: it is answered like any other.
    None,
    /// HTTP 403.
    Status,
    /// An answer of the protocol with the call's id, which says that policy refused it.
    Answer,
}

/// When calls start.
#[derive(Clone, Copy, Debug)]
pub enum Pace {
    /// So many a second.
    Open(u64),
    /// As soon as there is an answer.
    Closed,
}

/// What a round came to.
#[derive(Clone, Debug, Default)]
pub struct Round {
    /// One latency for each call. Nanoseconds, sorted.
    pub latencies: Vec<u64>,
    /// Forbidden calls among them.
    pub forbidden: u64,
    /// Answers that are not what they must be.
    pub wrong: u64,
    /// From the first call to the last answer.
    pub took: Duration,
}

impl Round {
    /// A quantile in per mille. Microseconds.
    pub fn quantile(&self, per_mille: usize) -> f64 {
        let at = self.latencies.len().saturating_sub(1) * per_mille / 1_000;
        self.latencies.get(at).map_or(f64::NAN, |&nanos| nanos as f64 / 1_000.0)
    }

    /// Calls a second.
    pub fn rate(&self) -> f64 {
        self.latencies.len() as f64 / self.took.as_secs_f64()
    }
}

struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
    flight: Option<Flight>,
}

#[derive(Clone, Copy)]
struct Flight {
    number: u64,
    forbidden: bool,
    due: Instant,
}

/// A generator with its connections to one port.
pub struct Load {
    port: u16,
    refusal: Refusal,
    allowed: Template,
    forbidden: Template,
    expected: Template,
    connections: Vec<Connection>,
    poll: Epoll,
    timer: TimerFd,
    next: u64,
}

impl Load {
    /// Connects.
    pub fn connect(port: u16, refusal: Refusal) -> anyhow::Result<Self> {
        let poll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_NONBLOCK)?;
        poll.add(&timer, EpollEvent::new(EpollFlags::EPOLLIN, TIMER))?;
        let connections = Vec::with_capacity(CONNECTIONS);
        let allowed = wire::call(port, wire::ALLOWED, wire::ALLOWED);
        let forbidden = wire::call(port, wire::FORBIDDEN, wire::FORBIDDEN);
        let expected = wire::expected();
        let mut load =
            Self { port, refusal, allowed, forbidden, expected, connections, poll, timer, next: 0 };
        for at in 0..CONNECTIONS {
            let stream = load.open(at)?;
            load.connections.push(Connection {
                stream,
                buffer: Vec::with_capacity(8_192),
                flight: None,
            });
        }
        Ok(load)
    }

    fn open(&self, at: usize) -> anyhow::Result<TcpStream> {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).context("cannot connect")?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        self.poll.add(&stream, EpollEvent::new(EpollFlags::EPOLLIN, at.try_into()?))?;
        Ok(stream)
    }

    /// Runs for `length` and waits for the last answers.
    pub fn run(&mut self, pace: Pace, length: Duration) -> anyhow::Result<Round> {
        let mut round = Round::default();
        let start = Instant::now();
        let gap = match pace {
            Pace::Open(rate) => {
                let gap = Duration::from_nanos(1_000_000_000 / rate);
                self.timer.set(Expiration::Interval(gap.into()), TimerSetTimeFlags::empty())?;
                Some(gap)
            }
            Pace::Closed => None,
        };
        let mut due = start;
        let mut free: Vec<usize> = (0..self.connections.len()).collect();
        let mut events = [EpollEvent::empty(); CONNECTIONS + 1];
        loop {
            let now = Instant::now();
            let sending = now - start < length;
            while sending && (gap.is_none() || due <= now) {
                let Some(at) = free.pop() else { break };
                self.send(at, if gap.is_some() { due } else { Instant::now() })?;
                due += gap.unwrap_or_default();
            }
            if !sending && free.len() == self.connections.len() {
                round.took = now - start;
                break;
            }
            anyhow::ensure!(
                now - start < length + PATIENCE,
                "{} calls got no answer",
                self.connections.len() - free.len()
            );
            let ready = self.poll.wait(&mut events, EpollTimeout::from(100_u8))?;
            for event in events.iter().take(ready) {
                if event.data() == TIMER {
                    let _ = self.timer.wait();
                    continue;
                }
                let at = usize::try_from(event.data())?;
                if self.receive(at, &mut round)? {
                    free.push(at);
                }
            }
        }
        self.timer.unset()?;
        round.latencies.sort_unstable();
        Ok(round)
    }

    fn send(&mut self, at: usize, due: Instant) -> anyhow::Result<()> {
        let number = self.next;
        self.next += 1;
        let forbidden = number % FORBIDDEN_EVERY == 7;
        let template = if forbidden { &mut self.forbidden } else { &mut self.allowed };
        let connection = self.connections.get_mut(at).context("no such connection")?;
        connection.stream.write_all(template.with_id(number)).context("cannot send")?;
        connection.flight = Some(Flight { number, forbidden, due });
        Ok(())
    }

    /// Whether the connection is free again.
    fn receive(&mut self, at: usize, round: &mut Round) -> anyhow::Result<bool> {
        let connection = self.connections.get_mut(at).context("no such connection")?;
        let open = wire::fill(&connection.stream, &mut connection.buffer)?;
        let frame = wire::frame(&connection.buffer)?;
        let Some(frame) = frame else {
            anyhow::ensure!(open, "a connection was closed before its answer");
            return Ok(false);
        };
        let flight = connection.flight.take().context("an answer that nobody waits for")?;
        let body = connection.buffer.get(frame.body..frame.end).unwrap_or_default();
        let right = if flight.forbidden && self.refusal != Refusal::None {
            refused(self.refusal, frame.status, body, flight.number)
        } else {
            frame.status == 200 && body == self.expected.with_id(flight.number)
        };
        let taken = flight.due.elapsed();
        round.latencies.push(u64::try_from(taken.as_nanos())?);
        round.forbidden += u64::from(flight.forbidden);
        if !right && round.wrong == 0 {
            eprintln!(
                "wrong answer: {}",
                String::from_utf8_lossy(
                    connection.buffer.get(..600.min(frame.end)).unwrap_or_default()
                )
            );
        }
        round.wrong += u64::from(!right);
        connection.buffer.drain(..frame.end);
        if frame.closes || !open {
            let stream = self.open(at)?;
            if let Some(connection) = self.connections.get_mut(at) {
                connection.buffer.clear();
                connection.stream = stream;
            }
        }
        Ok(true)
    }
}

/// Whether an answer refuses call `number`, in words that belong to a policy.
fn refused(refusal: Refusal, status: u16, body: &[u8], number: u64) -> bool {
    match refusal {
        Refusal::None => false,
        Refusal::Status => status == 403,
        Refusal::Answer => {
            wire::id_of(body) == Some(&wire::digits(number)[..])
                && memmem::find(body, b"policy_denied").is_some()
        }
    }
}

/// Sends calls of the forbidden tool whose header names the allowed one, and the reverse; how many
/// of them were refused.
pub fn spoof(port: u16, times: u64) -> anyhow::Result<u64> {
    let mut refused = 0;
    for number in 0..times {
        for (tool, named) in [(wire::FORBIDDEN, wire::ALLOWED), (wire::ALLOWED, wire::FORBIDDEN)] {
            let (status, body) = once(port, &mut wire::call(port, tool, named), number)?;
            let result = memmem::find(&body, b"a record, and nothing but").is_some();
            refused += u64::from(status >= 400 && !result);
        }
    }
    Ok(refused)
}

/// One call on a connection of its own: status and body.
pub fn once(port: u16, call: &mut Template, number: u64) -> anyhow::Result<(u16, Vec<u8>)> {
    let stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    on(&stream, call, number)
}

/// One call on an open connection.
pub fn on(
    mut stream: &TcpStream,
    call: &mut Template,
    number: u64,
) -> anyhow::Result<(u16, Vec<u8>)> {
    stream.write_all(call.with_id(number))?;
    let mut buffer = Vec::new();
    loop {
        let open = wire::fill(stream, &mut buffer)?;
        if let Some(frame) = wire::frame(&buffer)? {
            return Ok((
                frame.status,
                buffer.get(frame.body..frame.end).unwrap_or_default().to_vec(),
            ));
        }
        anyhow::ensure!(open, "the connection was closed before the answer");
    }
}

/// Whether one allowed call is answered as it must be.
pub fn is_ready(port: u16) -> bool {
    let mut call = wire::call(port, wire::ALLOWED, wire::ALLOWED);
    once(port, &mut call, 1)
        .is_ok_and(|(status, body)| status == 200 && body == wire::expected().with_id(1))
}
