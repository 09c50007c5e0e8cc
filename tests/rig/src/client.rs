//! An open-loop client: requests are sent when a Poisson process says so, whether or not earlier ones were answered, and
//! latency counts from the intended time. A server that stalls cannot hide it by slowing its clients down.

use std::{
    collections::VecDeque,
    io::{ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

pub use crate::measured::{Report, Window};
use crate::{
    arrivals::{Arrivals, Profile},
    measured::Measured,
    protocol::Protocol,
};

/// How to load a server.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Load {
    #[command(flatten)]
    pub profile: Profile,
    /// Ask again on each connection as soon as it is answered, whatever the rate: what the server can do at most.
    #[arg(long)]
    pub saturate: bool,
    /// Connections. A request that finds them all busy waits, and its latency counts that.
    #[arg(long, default_value_t = 32)]
    pub connections: usize,
    /// How long to measure.
    #[arg(long, default_value_t = 10.0)]
    pub seconds: f64,
    /// How long to send before that without measuring.
    #[arg(long, default_value_t = 0.0)]
    pub warm_up_seconds: f64,
    /// Seed of the arrival times.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// What the server speaks.
    #[arg(long, value_enum, default_value_t = Protocol::Echo)]
    pub protocol: Protocol,
    /// Count requests that take longer than this, in microseconds.
    #[arg(long)]
    pub slo_us: Option<f64>,
}

impl Load {
    /// Requests by a profile for so many seconds, over enough connections that none has to wait for one.
    pub fn open_loop(profile: Profile, seconds: u32) -> Self {
        Self {
            profile,
            saturate: false,
            connections: 32,
            seconds: seconds.into(),
            warm_up_seconds: 1.0,
            seed: 1,
            protocol: Protocol::Echo,
            slo_us: None,
        }
    }
}

struct Connection {
    stream: TcpStream,
    /// When the request it is busy with should have been sent.
    intended: Option<Instant>,
    received: Vec<u8>,
}

/// Loads a server.
///
/// # Errors
/// Where the server refuses connections or ends one.
pub fn run(to: SocketAddr, load: Load) -> Result<Report> {
    let mut client = Client::connect(to, load)?;
    let total = Duration::from_secs_f64(load.warm_up_seconds + load.seconds);
    let mut arrivals = Arrivals::new(load.profile, total, load.seed);
    let start = Instant::now();
    let begin = start + Duration::from_secs_f64(load.warm_up_seconds);
    let end = begin + Duration::from_secs_f64(load.seconds);
    let slo = load.slo_us.map(|us| Duration::from_secs_f64(us / 1e6));
    let mut measured = Measured::new(begin, slo)?;
    if load.saturate {
        (0..load.connections).try_for_each(|_| client.send(start))?;
    }
    loop {
        let now = Instant::now();
        if now >= end {
            return measured.report(end, client.unanswered());
        }
        while !load.saturate && start + arrivals.next() <= now {
            client.send(start + arrivals.next())?;
            arrivals.advance();
        }
        let next = if load.saturate { end } else { start + arrivals.next() };
        client.receive(next.min(end), &mut measured)?;
    }
}

struct Client {
    protocol: Protocol,
    saturates: bool,
    request: Vec<u8>,
    connections: Vec<Connection>,
    idle: Vec<usize>,
    waiting: VecDeque<Instant>,
}

impl Client {
    fn connect(to: SocketAddr, load: Load) -> Result<Self> {
        let connect = |_| -> Result<Connection> {
            let mut stream = TcpStream::connect(to).with_context(|| format!("cannot connect to {to}"))?;
            stream.set_nodelay(true)?;
            if let Some((words, answer_bytes)) = load.protocol.preparation() {
                stream.write_all(&words)?;
                stream.read_exact(&mut vec![0; answer_bytes])?;
            }
            stream.set_nonblocking(true)?;
            Ok(Connection { stream, intended: None, received: Vec::with_capacity(4096) })
        };
        let connections = (0..load.connections).map(connect).collect::<Result<Vec<_>>>()?;
        Ok(Self {
            protocol: load.protocol,
            saturates: load.saturate,
            request: load.protocol.request(),
            idle: (0..connections.len()).collect(),
            connections,
            waiting: VecDeque::new(),
        })
    }

    fn send(&mut self, intended: Instant) -> Result<()> {
        let Some(idle) = self.idle.pop() else {
            self.waiting.push_back(intended);
            return Ok(());
        };
        let connection = &mut self.connections[idle];
        connection.intended = Some(intended);
        connection.stream.write_all(&self.request).context("the server does not take a request")
    }

    /// Takes in answers until `until`, or until some came.
    fn receive(&mut self, until: Instant, measured: &mut Measured) -> Result<()> {
        let timeout = until.saturating_duration_since(Instant::now());
        let timeout =
            Timespec { tv_sec: i64::try_from(timeout.as_secs())?, tv_nsec: timeout.subsec_nanos().into() };
        let busy: Vec<usize> =
            (0..self.connections.len()).filter(|&index| self.connections[index].intended.is_some()).collect();
        let mut polled: Vec<PollFd<'_>> =
            busy.iter().map(|&index| PollFd::new(&self.connections[index].stream, PollFlags::IN)).collect();
        poll(&mut polled, Some(&timeout))?;
        let ready: Vec<usize> = busy
            .iter()
            .zip(&polled)
            .filter(|(_, polled)| !polled.revents().is_empty())
            .map(|(&index, _)| index)
            .collect();
        for index in ready {
            if let Some(intended) = self.connections[index].answered(self.protocol)? {
                let now = Instant::now();
                measured.add(now, now - intended)?;
                self.idle.push(index);
                if let Some(intended) = self.waiting.pop_front().or(self.saturates.then_some(now)) {
                    self.send(intended)?;
                }
            }
        }
        Ok(())
    }

    /// When the requests that have not been answered should have been sent.
    fn unanswered(&self) -> impl Iterator<Item = Instant> {
        self.connections
            .iter()
            .filter_map(|connection| connection.intended)
            .chain(self.waiting.iter().copied())
    }
}

impl Connection {
    /// The intended time of the request that has now been answered in full.
    fn answered(&mut self, protocol: Protocol) -> Result<Option<Instant>> {
        let mut buffer = [0; 4096];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => bail!("the server hung up"),
                Ok(bytes) => self.received.extend_from_slice(&buffer[..bytes]),
                Err(err) if err.kind() == ErrorKind::WouldBlock => break,
                Err(err) => return Err(err).context("the connection broke"),
            }
        }
        if !protocol.is_complete(&self.received) {
            return Ok(None);
        }
        self.received.clear();
        Ok(self.intended.take())
    }
}
