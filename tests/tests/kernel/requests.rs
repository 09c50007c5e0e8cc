//! Requests served, and their latency.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use enforcer::{
    cgroup::hierarchy::Hierarchy,
    clock,
    kernel::{
        probes::{Identity, Loaded, RequestLinks},
        support::WaitSource,
    },
};
use enforcer_ebpf::layout::{Drop, Objective};
use enforcer_rig::{
    client::Report,
    process::{Process, piped, workload_in},
    protocol::ECHO_BYTES,
    sandbox::{Group, Sandbox},
};

use rustix::net::{self, AddressFamily, SocketType, sockopt};

use crate::waits::{key, load};

pub const LOOPBACK: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
pub const VICTIM: u32 = 1;
const CULPRIT_LS: u32 = 3;
const REQUESTS: u64 = 500;

/// An LS group whose requests are measured.
pub struct Scene {
    pub loaded: Loaded,
    _links: RequestLinks,
    pub ls: Group,
    pub sandbox: Sandbox,
}

impl Scene {
    pub fn new() -> Result<Self> {
        let mut scene = Self::without_a_place()?;
        scene.give_a_place()?;
        Ok(scene)
    }

    /// The programs are there already, and do not know the group yet.
    fn without_a_place() -> Result<Self> {
        let sandbox = Sandbox::new("enforcer-test")?;
        let ls = sandbox.group("ls", 1024)?;
        let mut loaded = load(WaitSource::SchedInfo, Identity::V2, 16)?;
        if let Some(missing) = &loaded.probes.request_latency_missing {
            anyhow::bail!("the kernel refuses the request probes: {missing}");
        }
        let directory = File::open(ls.v2_directory().context("no v2 hierarchy")?)?;
        let links = loaded.probes.attach_request_latency(&directory, false)?;
        Ok(Self { loaded, _links: links, ls, sandbox })
    }

    fn give_a_place(&mut self) -> Result<()> {
        let key = key(&self.ls, Hierarchy::V2)?;
        self.loaded.slots.allot(key, VICTIM, CULPRIT_LS, Duration::ZERO, |_| {})?;
        Ok(())
    }

    /// A server in the group; each request takes this long at least.
    pub fn server(&self, listen: SocketAddr, spin: Duration) -> Result<(Process, SocketAddr)> {
        self.server_with(listen, &["--spin-us", &spin.as_micros().to_string()])
    }

    pub fn server_with(&self, listen: SocketAddr, options: &[&str]) -> Result<(Process, SocketAddr)> {
        let mut command = workload_in(&self.ls)?;
        command.args(["serve", "--steps", "0", "--memory-mib", "1", "--listen", &listen.to_string()]);
        command.args(options);
        let mut server = Process::start("the server", piped(&mut command))?;
        let address = server.first_line()?.parse()?;
        Ok((server, address))
    }

    /// So many requests were counted, and nothing was dropped.
    pub fn has_served(&self, expected: u64) -> Result<()> {
        let served = self.loaded.counters.requests(VICTIM).served;
        ensure!(served == expected, "{served} requests were counted, not {expected}");
        self.nothing_dropped()
    }

    pub fn nothing_dropped(&self) -> Result<()> {
        for cause in [Drop::NoSocketState, Drop::Unparsable, Drop::UnknownGroup] {
            let count = self.loaded.counters.drops(cause);
            ensure!(count == 0, "{count} dropped: {cause:?}");
        }
        Ok(())
    }

    fn mean_latency(&self) -> Result<Duration> {
        let totals = self.loaded.counters.requests(VICTIM);
        let mean_ns = totals.latency_ns.checked_div(totals.served).context("no request was counted")?;
        Ok(Duration::from_nanos(mean_ns))
    }

    /// Requests that compute for 1 ms take that long in the mean, and less than `most`.
    fn takes_a_millisecond(&self, most: Duration) -> Result<()> {
        let mean = self.mean_latency()?;
        let is_right = (Duration::from_millis(1)..most).contains(&mean);
        ensure!(is_right, "a request that computes for 1 ms took {mean:?}");
        Ok(())
    }
}

/// Sends requests one after the other.
pub fn ask(server: SocketAddr, requests: u64) -> Result<()> {
    let mut connection = TcpStream::connect(server)?;
    connection.set_nodelay(true)?;
    let mut message = [7; ECHO_BYTES];
    for _ in 0..requests {
        connection.write_all(&message)?;
        connection.read_exact(&mut message)?;
    }
    Ok(())
}

pub fn over_ipv4() -> Result<()> {
    served_over(LOOPBACK)
}

pub fn over_ipv6() -> Result<()> {
    served_over((Ipv6Addr::LOCALHOST, 0).into())
}

fn served_over(listen: SocketAddr) -> Result<()> {
    let scene = Scene::new()?;
    let (_server, address) = scene.server(listen, Duration::from_millis(1))?;
    // Several connections, one of them with a server that was there before the client.
    for _ in 0..5 {
        ask(address, REQUESTS / 5)?;
    }
    scene.takes_a_millisecond(Duration::from_millis(50))?;
    let in_histogram: u64 =
        scene.loaded.counters.request_histogram(VICTIM).iter().map(|&n| u64::from(n)).sum();
    ensure!(in_histogram == REQUESTS, "{in_histogram} of {REQUESTS} in the histogram");
    scene.has_served(REQUESTS)
}

/// A group that calls others: their answers must not be taken for requests that it serves.
pub fn client_role() -> Result<()> {
    let scene = Scene::new()?;
    let listener = TcpListener::bind(LOOPBACK)?;
    let address = listener.local_addr()?;
    let elsewhere = thread::spawn(move || -> Result<()> {
        for connection in listener.incoming().take(1) {
            let mut connection = connection?;
            let mut message = [0; ECHO_BYTES];
            while connection.read_exact(&mut message).is_ok() {
                connection.write_all(&message)?;
            }
        }
        Ok(())
    });
    let mut command = workload_in(&scene.ls)?;
    command.args([
        "load",
        "--to",
        &address.to_string(),
        "--rate",
        "200",
        "--seconds",
        "2",
        "--connections",
        "1",
    ]);
    let report = Process::start("the calling client", piped(&mut command))?.output()?;
    elsewhere.join().expect("the server does not panic")?;
    let report: Report = serde_json::from_str(&report)?;
    ensure!(report.requests > 0, "a client that asked nothing: {report:?}");
    scene.has_served(0)
}

pub fn slow_ones() -> Result<()> {
    let scene = Scene::new()?;
    let objective = Objective { latency_ns: 20_000_000, ..Objective::NONE };
    scene.loaded.counters.set_objective(VICTIM, objective);
    let (_fast, fast_address) = scene.server(LOOPBACK, Duration::ZERO)?;
    let (_slow, slow_address) = scene.server(LOOPBACK, Duration::from_millis(25))?;
    ask(fast_address, 100)?;
    ask(slow_address, 20)?;
    scene.has_served(120)?;
    // A busy host may delay a fast one; a slow one is never fast.
    let slow = scene.loaded.counters.requests(VICTIM).slow;
    ensure!((20..=25).contains(&slow), "{slow} slow");
    Ok(())
}

/// A new connection for every request, closed by the client after the answer.
pub fn short_connections() -> Result<()> {
    let scene = Scene::new()?;
    let (_server, address) = scene.server(LOOPBACK, Duration::ZERO)?;
    for _ in 0..200 {
        ask(address, 1)?;
    }
    scene.has_served(200)
}

/// A request that rides on the last packet of the handshake, before the connection has a socket of its own.
pub fn early_requests() -> Result<()> {
    let scene = Scene::new()?;
    let (_server, address) = scene.server(LOOPBACK, Duration::from_millis(1))?;
    for _ in 0..50 {
        let socket = net::socket(AddressFamily::INET, SocketType::STREAM, None)?;
        // The client need not confirm the server's part of the handshake before it has something to say.
        sockopt::set_tcp_quickack(&socket, false)?;
        net::connect(&socket, &address)?;
        let mut connection = TcpStream::from(socket);
        let mut message = [7; ECHO_BYTES];
        connection.write_all(&message)?;
        connection.read_exact(&mut message)?;
        connection.write_all(&message)?;
        connection.read_exact(&mut message)?;
    }
    scene.takes_a_millisecond(Duration::from_millis(100))?;
    scene.has_served(100)
}

/// Requests that come together are one: the time from its first byte to the first byte of its answer.
pub fn pipelining() -> Result<()> {
    let scene = Scene::new()?;
    let (_server, address) = scene.server(LOOPBACK, Duration::ZERO)?;
    let mut connection = TcpStream::connect(address)?;
    for _ in 0..20 {
        let mut together = [7; ECHO_BYTES * 10];
        connection.write_all(&together)?;
        connection.read_exact(&mut together)?;
    }
    scene.has_served(20)
}

/// An answer in parts counts once, and ends with its first byte.
pub fn streaming() -> Result<()> {
    const PARTS: usize = 5;
    const PAUSE: Duration = Duration::from_millis(20);
    let scene = Scene::new()?;
    let pause = PAUSE.as_micros().to_string();
    let options = ["--parts", &PARTS.to_string(), "--pause-us", &pause];
    let (_server, address) = scene.server_with(LOOPBACK, &options)?;
    let mut connection = TcpStream::connect(address)?;
    for _ in 0..10 {
        connection.write_all(&[7; ECHO_BYTES])?;
        connection.read_exact(&mut [0; ECHO_BYTES * PARTS])?;
    }
    let mean = scene.mean_latency()?;
    ensure!(mean < PAUSE * 2, "{mean:?}, and the whole answer takes {:?}", PAUSE * 4);
    scene.has_served(10)
}

/// A server that speaks first has not been asked anything yet.
pub fn greeting() -> Result<()> {
    let scene = Scene::new()?;
    let (_server, address) = scene.server_with(LOOPBACK, &["--greet"])?;
    for _ in 0..20 {
        let mut connection = TcpStream::connect(address)?;
        let mut message = [0; ECHO_BYTES];
        connection.read_exact(&mut message)?;
        connection.write_all(&message)?;
        connection.read_exact(&mut message)?;
    }
    scene.has_served(20)
}

/// A client that has said all that it has to say is answered all the same.
pub fn half_closed() -> Result<()> {
    let scene = Scene::new()?;
    let (_server, address) = scene.server(LOOPBACK, Duration::from_millis(1))?;
    for _ in 0..20 {
        let mut connection = TcpStream::connect(address)?;
        let mut message = [7; ECHO_BYTES];
        connection.write_all(&message)?;
        connection.shutdown(Shutdown::Write)?;
        connection.read_exact(&mut message)?;
    }
    scene.has_served(20)
}

/// A connection that was seen before its cgroup had a place counts from when it has one.
pub fn place_comes_later() -> Result<()> {
    let mut scene = Scene::without_a_place()?;
    let (_server, address) = scene.server(LOOPBACK, Duration::ZERO)?;
    let mut connection = TcpStream::connect(address)?;
    let mut message = [7; ECHO_BYTES];
    let mut ask = || -> Result<()> {
        connection.write_all(&message)?;
        Ok(connection.read_exact(&mut message)?)
    };
    ask()?;
    scene.give_a_place()?;
    for _ in 0..10 {
        ask()?;
    }
    let counters = &scene.loaded.counters;
    ensure!(counters.drops(Drop::UnknownGroup) > 0, "the first request found a place");
    let served = counters.requests(VICTIM).served;
    ensure!(served == 10, "{served} requests were counted, not 10");
    Ok(())
}

/// A request that began before requests count: it may have ended while nobody looked.
pub fn began_too_early() -> Result<()> {
    let scene = Scene::new()?;
    let (_server, address) = scene.server(LOOPBACK, Duration::from_millis(200))?;
    let mut connection = TcpStream::connect(address)?;
    let mut message = [7; ECHO_BYTES];
    connection.write_all(&message)?;
    let counters = &scene.loaded.counters;
    while counters.requests(VICTIM).begun == 0 {
        thread::sleep(Duration::from_millis(1));
    }
    counters.clear_requests(VICTIM);
    counters.set_objective(VICTIM, Objective { counts_from_ns: clock::monotonic_ns(), ..Objective::NONE });
    connection.read_exact(&mut message)?;
    scene.has_served(0)?;
    connection.write_all(&message)?;
    connection.read_exact(&mut message)?;
    ensure!(!counters.requests(VICTIM).any_in_flight(), "an answer that did not count was taken away");
    scene.has_served(1)
}
