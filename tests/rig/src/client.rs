//! An open-loop client: requests are sent when a Poisson process says so, whether or not earlier ones were answered, and
//! latency counts from the intended time. A server that stalls cannot hide it by slowing its clients down.

use std::{
    collections::VecDeque,
    io::{ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use hdrhistogram::Histogram;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::{Deserialize, Serialize};

use crate::protocol::Protocol;

/// Length of the windows in [`Report::windows`].
const WINDOW: Duration = Duration::from_millis(500);

/// How to load a server.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Load {
    /// Requests per second.
    #[arg(long, default_value_t = 1_000.0)]
    pub rate: f64,
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
}

/// What was measured.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Report {
    pub requests: u64,
    pub p50_us: f64,
    pub p90_us: f64,
    pub p99_us: f64,
    pub max_us: f64,
    pub windows: Vec<Window>,
}

/// Half a second of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Window {
    /// End, in seconds after the measurement began.
    pub at_seconds: f64,
    pub requests: u64,
    pub p50_us: f64,
    pub p99_us: f64,
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
    let mut random = fastrand::Rng::with_seed(load.seed);
    let begin = Instant::now() + Duration::from_secs_f64(load.warm_up_seconds);
    let end = begin + Duration::from_secs_f64(load.seconds);
    let mut measured = Measured::new(begin)?;
    let mut next = Instant::now();
    loop {
        let now = Instant::now();
        if now >= end {
            return Ok(measured.report());
        }
        while next <= now {
            client.send(next)?;
            // Exponential gaps make a Poisson process.
            next += Duration::from_secs_f64(-(1.0 - random.f64()).ln() / load.rate);
        }
        client.receive(next.min(end), &mut measured)?;
    }
}

struct Client {
    protocol: Protocol,
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
                if let Some(intended) = self.waiting.pop_front() {
                    self.send(intended)?;
                }
            }
        }
        Ok(())
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

struct Measured {
    begin: Instant,
    window_end: Instant,
    all: Histogram<u64>,
    window: Histogram<u64>,
    windows: Vec<Window>,
}

impl Measured {
    fn new(begin: Instant) -> Result<Self> {
        // Nanoseconds, three digits, up to a minute.
        let histogram = || Histogram::new_with_bounds(1, 60_000_000_000, 3);
        Ok(Self {
            begin,
            window_end: begin + WINDOW,
            all: histogram()?,
            window: histogram()?,
            windows: Vec::new(),
        })
    }

    fn add(&mut self, now: Instant, latency: Duration) -> Result<()> {
        while now >= self.window_end {
            self.windows.push(Window {
                at_seconds: (self.window_end - self.begin).as_secs_f64(),
                requests: self.window.len(),
                p50_us: self.window.value_at_quantile(0.5) as f64 / 1e3,
                p99_us: self.window.value_at_quantile(0.99) as f64 / 1e3,
            });
            self.window.reset();
            self.window_end += WINDOW;
        }
        if now >= self.begin {
            let ns = u64::try_from(latency.as_nanos())?.max(1);
            self.all.saturating_record(ns);
            self.window.saturating_record(ns);
        }
        Ok(())
    }

    fn report(self) -> Report {
        let quantile = |quantile| self.all.value_at_quantile(quantile) as f64 / 1e3;
        Report {
            requests: self.all.len(),
            p50_us: quantile(0.5),
            p90_us: quantile(0.9),
            p99_us: quantile(0.99),
            max_us: self.all.max() as f64 / 1e3,
            windows: self.windows,
        }
    }
}
