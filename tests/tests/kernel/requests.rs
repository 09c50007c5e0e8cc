//! Requests served, and their latency.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use enforcer::{
    cgroup::hierarchy::Hierarchy,
    kernel::{
        probes::{Identity, Loaded, RequestLinks},
        support::WaitSource,
    },
};
use enforcer_ebpf::layout::{Drop, Objective};
use enforcer_rig::{
    process::{Process, piped, workload_in},
    protocol::ECHO_BYTES,
    sandbox::{Group, Sandbox},
};

use crate::waits::{key, load};

const VICTIM: u32 = 1;
const CULPRIT_LS: u32 = 3;
const REQUESTS: u64 = 500;

/// An LS group whose requests are measured.
struct Scene {
    loaded: Loaded,
    _links: RequestLinks,
    ls: Group,
    _sandbox: Sandbox,
}

impl Scene {
    fn new() -> Result<Self> {
        let sandbox = Sandbox::new("enforcer-test")?;
        let ls = sandbox.group("ls", 1024)?;
        let mut loaded = load(WaitSource::SchedInfo, Identity::V2, 16)?;
        if let Some(missing) = &loaded.probes.request_latency_missing {
            anyhow::bail!("the kernel refuses the request probes: {missing}");
        }
        loaded.slots.allot(key(&ls, Hierarchy::V2)?, VICTIM, CULPRIT_LS, Duration::ZERO, |_| {})?;
        let directory = File::open(ls.v2_directory().context("no v2 hierarchy")?)?;
        let links = loaded.probes.attach_request_latency(&directory)?;
        Ok(Self { loaded, _links: links, ls, _sandbox: sandbox })
    }

    /// A server in the group; each request takes this long at least.
    fn server(&self, listen: SocketAddr, spin: Duration) -> Result<(Process, SocketAddr)> {
        let mut command = workload_in(&self.ls)?;
        command.args(["serve", "--steps", "0", "--memory-mib", "1", "--listen", &listen.to_string()]);
        command.args(["--spin-us", &spin.as_micros().to_string()]);
        let mut server = Process::start("the server", piped(&mut command))?;
        let address = server.first_line()?.parse()?;
        Ok((server, address))
    }

    fn nothing_dropped(&self) -> Result<()> {
        for cause in [Drop::NoSocketState, Drop::Unparsable, Drop::UnknownGroup] {
            let count = self.loaded.counters.drops(cause);
            ensure!(count == 0, "{count} dropped: {cause:?}");
        }
        Ok(())
    }
}

/// Sends requests one after the other.
fn ask(server: SocketAddr, requests: u64) -> Result<()> {
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
    served_over((Ipv4Addr::LOCALHOST, 0).into())
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
    let totals = scene.loaded.counters.requests(VICTIM);
    ensure!(totals.served == REQUESTS, "{} of {REQUESTS} requests", totals.served);
    let mean_ms = totals.latency_ns as f64 / 1e6 / totals.served as f64;
    ensure!((1.0..50.0).contains(&mean_ms), "a request that computes for 1 ms took {mean_ms:.3} ms");
    let in_histogram: u64 =
        scene.loaded.counters.request_histogram(VICTIM).iter().map(|&n| u64::from(n)).sum();
    ensure!(in_histogram == REQUESTS, "{in_histogram} in the histogram");
    scene.nothing_dropped()
}

/// A group that calls others: their answers must not be taken for requests that it serves.
pub fn client_role() -> Result<()> {
    let scene = Scene::new()?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
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
    ensure!(report.contains("\"requests\":"), "{report}");
    let totals = scene.loaded.counters.requests(VICTIM);
    ensure!(totals.served == 0, "{} of its own calls were taken for requests", totals.served);
    scene.nothing_dropped()
}

pub fn slow_ones() -> Result<()> {
    let scene = Scene::new()?;
    let objective = Objective { wait_ns: u64::MAX, latency_ns: 20_000_000 };
    scene.loaded.counters.set_objective(VICTIM, objective);
    let listen = (Ipv4Addr::LOCALHOST, 0).into();
    let (_fast, fast_address) = scene.server(listen, Duration::ZERO)?;
    let (_slow, slow_address) = scene.server(listen, Duration::from_millis(25))?;
    ask(fast_address, 100)?;
    ask(slow_address, 20)?;
    let totals = scene.loaded.counters.requests(VICTIM);
    ensure!(totals.served == 120, "{} served", totals.served);
    // A busy host may delay a fast one; a slow one is never fast.
    ensure!((20..=25).contains(&totals.slow), "{} slow", totals.slow);
    Ok(())
}
