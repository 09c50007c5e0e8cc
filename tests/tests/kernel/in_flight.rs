//! Requests that wait for an answer, and those that never get one.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    process::Stdio,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use enforcer::{
    report::status::{InFlightStatus, Status},
    signal::in_flight::{Ages, InFlight, Look},
};
use enforcer_ebpf::layout::{IN_FLIGHT_SHIFT, Objective};
use enforcer_rig::{
    process::{Process, piped, workload, workload_in},
    protocol::ECHO_BYTES,
    sandbox::Sandbox,
};
use enforcer_tests::agent::{Agent, Files, PATIENCE};
use rustix::{
    net::sockopt::set_socket_linger,
    process::Signal,
    time::{ClockId, clock_gettime},
};

use crate::requests::{LOOPBACK, Scene, VICTIM, ask};

const OBJECTIVE: Duration = Duration::from_millis(50);
/// Requests of one bucket of the probes' ring are not told apart.
const PERIOD: Duration = Duration::from_nanos(1 << IN_FLIGHT_SHIFT);

impl Scene {
    fn look(&self, ages: &mut Ages) -> Result<Look> {
        let now = Duration::try_from(clock_gettime(ClockId::Monotonic))?;
        let counts = self.loaded.counters.in_flight(VICTIM);
        Ok(ages.look(&counts, u64::try_from(now.as_nanos())?, Some(OBJECTIVE)))
    }

    /// What is in flight at first sight.
    fn in_flight(&self) -> Result<InFlight> {
        Ok(self.look(&mut Ages::default())?.in_flight)
    }

    fn wait_until_nothing_is_in_flight(&self) -> Result<()> {
        let until = Instant::now() + PATIENCE;
        while self.in_flight()? != InFlight::default() {
            ensure!(Instant::now() < until, "still in flight: {:?}", self.in_flight()?);
            sleep(Duration::from_millis(10));
        }
        let totals = self.loaded.counters.requests(VICTIM);
        ensure!(!totals.any_in_flight(), "the totals do not fit: {totals:?}");
        Ok(())
    }
}

/// A connection on which a request was sent.
fn asking(server: SocketAddr) -> Result<TcpStream> {
    let mut connection = TcpStream::connect(server)?;
    connection.set_nodelay(true)?;
    connection.write_all(&[7; ECHO_BYTES])?;
    Ok(connection)
}

/// A server that is stopped: what it was asked waits, grows old, even after the probes' ring has come round, and is
/// answered when it goes on.
pub fn stopped_server() -> Result<()> {
    const WAITING: u64 = 5;
    let scene = Scene::new()?;
    let (server, address) = scene.server(LOOPBACK, Duration::ZERO)?;
    ask(address, 3)?;
    scene.wait_until_nothing_is_in_flight()?;
    server.signal(Signal::STOP)?;
    let mut ages = Ages::default();
    let before = Instant::now();
    let waiting = (0..WAITING).map(|_| asking(address)).collect::<Result<Vec<_>>>()?;
    let sent = Instant::now();
    let look = scene.look(&mut ages)?.in_flight;
    ensure!(look.requests == WAITING, "{look:?}");
    let mut overdue_after = None;
    while sent.elapsed() < Duration::from_secs(10) {
        let at_least = sent.elapsed().saturating_sub(PERIOD);
        let look = scene.look(&mut ages)?.in_flight;
        let oldest = look.oldest.context("nothing waits")?;
        ensure!(look.requests == WAITING, "{look:?}");
        ensure!((at_least..=before.elapsed()).contains(&oldest), "{oldest:?} after {:?}", sent.elapsed());
        if look.overdue == WAITING {
            overdue_after.get_or_insert(sent.elapsed());
        }
        sleep(Duration::from_millis(20));
    }
    server.signal(Signal::CONT)?;
    for mut connection in waiting {
        connection.read_exact(&mut [0; ECHO_BYTES])?;
    }
    scene.wait_until_nothing_is_in_flight()?;
    let overdue_after = overdue_after.context("never overdue")?;
    println!("all overdue {overdue_after:?} after they were sent, at an objective of {OBJECTIVE:?}");
    scene.has_served(3 + WAITING)
}

/// Clients that break off and a server that is killed leave nothing in flight; a client that only has no more to say
/// still waits.
pub fn broken_off() -> Result<()> {
    let scene = Scene::new()?;
    // A request is slow from its beginning.
    scene.loaded.counters.set_objective(VICTIM, Objective { latency_ns: 0, ..Objective::NONE });
    let (mut server, address) = scene.server(LOOPBACK, Duration::ZERO)?;
    server.signal(Signal::STOP)?;
    let mut waiting = (0..6).map(|_| asking(address)).collect::<Result<Vec<_>>>()?;
    for connection in waiting.drain(..2) {
        // Reset instead of a proper end.
        set_socket_linger(&connection, Some(Duration::ZERO))?;
    }
    ensure!(scene.in_flight()?.requests == 4, "{:?}", scene.in_flight()?);
    drop(waiting);
    ensure!(scene.in_flight()?.requests == 4, "{:?}", scene.in_flight()?);
    server.signal(Signal::KILL)?;
    server.terminate(PATIENCE)?;
    scene.wait_until_nothing_is_in_flight()?;
    let totals = scene.loaded.counters.requests(VICTIM);
    ensure!(totals.unanswered == 6 && totals.unanswered_slow == 6 && totals.slow == 0, "{totals:?}");
    scene.has_served(0)
}

/// A server that hangs up instead of answering, and a client that does not listen and goes on asking.
pub fn hung_up() -> Result<()> {
    let scene = Scene::new()?;
    let (_server, address) = scene.server_with(LOOPBACK, &["--hang-up"])?;
    for _ in 0..20 {
        let mut connection = asking(address)?;
        ensure!(connection.read(&mut [0; ECHO_BYTES])? == 0, "an answer");
        // The server cannot answer any more: nothing begins.
        connection.write_all(&[7; ECHO_BYTES])?;
    }
    scene.wait_until_nothing_is_in_flight()?;
    let totals = scene.loaded.counters.requests(VICTIM);
    ensure!(totals.unanswered == 20 && totals.begun == 20, "{totals:?}");
    scene.has_served(0)
}

/// A client that is killed while the server is stopped: its requests wait until the server finds out.
pub fn killed_client() -> Result<()> {
    let scene = Scene::new()?;
    let (server, address) = scene.server(LOOPBACK, Duration::ZERO)?;
    let mut command = workload()?;
    command.args(["load", "--to", &address.to_string(), "--rate", "500", "--connections", "8"]);
    command.args(["--seconds", "3600"]);
    let mut client = Process::start("the client", command.stdin(Stdio::null()).stdout(Stdio::null()))?;
    sleep(Duration::from_millis(500));
    server.signal(Signal::STOP)?;
    let until = Instant::now() + PATIENCE;
    while scene.in_flight()?.requests < 8 {
        ensure!(Instant::now() < until, "{:?}", scene.in_flight()?);
        sleep(Duration::from_millis(10));
    }
    client.signal(Signal::KILL)?;
    client.terminate(PATIENCE)?;
    server.signal(Signal::CONT)?;
    scene.wait_until_nothing_is_in_flight()?;
    let totals = scene.loaded.counters.requests(VICTIM);
    ensure!(totals.served > 0 && totals.begun == totals.served + totals.unanswered, "{totals:?}");
    scene.nothing_dropped()
}

fn web(status: &Status) -> Result<InFlightStatus> {
    let web = status.groups.iter().find(|group| group.name == "web").context("no group web")?;
    web.in_flight.context("not measured")
}

/// A stuck server raises the alarm although it answers nothing, and is well again when it goes on.
pub fn alarm() -> Result<()> {
    const CONNECTIONS: u64 = 8;
    let sandbox = Sandbox::new("enforcer-test")?;
    let (ls, be) = (sandbox.group("ls", 1024)?, sandbox.group("be", 2)?);
    let files = Files::new("stuck")?;
    // Far from what happens while the server runs.
    let policy = format!(
        "groups:\n- name: web\n  class: LS\n  cgroups: [{0}/ls]\n  slo: {{ requestLatency: {{ p99: 500ms }} }}\n\
         - name: batch\n  class: BE\n  cgroups: [{0}/be]\n",
        sandbox.path()
    );
    let mut command = workload_in(&ls)?;
    command.args(["serve", "--steps", "0", "--memory-mib", "1"]);
    let mut server = Process::start("the server", piped(&mut command))?;
    let address = server.first_line()?;
    let mut command = workload_in(&be)?;
    command.args(["antagonist", "cpu-spin", "--threads", "1"]);
    let _antagonist = Process::start("the antagonist", command.stdin(Stdio::null()).stdout(Stdio::null()))?;
    let mut agent = Agent::start(&files, &policy, &["--shadow"])?;
    let mut command = workload()?;
    command.args(["load", "--to", &address, "--rate", "200", "--seconds", "3600"]);
    command.args(["--connections", &CONNECTIONS.to_string()]);
    // It complains when the server is killed.
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let _client = Process::start("the client", &mut command)?;
    agent.wait_for("requests are counted", |agent| {
        Ok(agent.status()?.groups[0].requests.as_ref().is_some_and(|requests| requests.total > 400))
    })?;
    let status = agent.status()?;
    ensure!(status.reason == "met", "{} before anything happened", status.explanation);

    let stopped = Instant::now();
    server.signal(Signal::STOP)?;
    agent.wait_for("the alarm", |agent| Ok(agent.status()?.reason == "shadow"))?;
    println!("alarm within {:?} of the stop, at an objective of 500 ms", stopped.elapsed());
    agent.wait_for("the oldest has waited for three seconds", |agent| {
        Ok(web(&agent.status()?)?.oldest_seconds.is_some_and(|seconds| seconds >= 3.0))
    })?;
    let waiting = web(&agent.status()?)?;
    let oldest = waiting.oldest_seconds.unwrap_or_default();
    ensure!(waiting.requests == CONNECTIONS && waiting.overdue == CONNECTIONS, "{waiting:?}");
    ensure!(oldest <= stopped.elapsed().as_secs_f64(), "{oldest} s, stopped {:?} ago", stopped.elapsed());
    let (_, metrics) = agent.get("/metrics")?;
    let expected = format!("enforcer_requests_in_flight{{group=\"web\"}} {CONNECTIONS}");
    ensure!(metrics.contains(&expected), "no {expected} in\n{metrics}");
    ensure!(metrics.contains("enforcer_request_oldest_seconds{group=\"web\"} "), "{metrics}");

    server.signal(Signal::CONT)?;
    agent.wait_for("the objective is met again", |agent| {
        let status = agent.status()?;
        Ok(status.reason == "met" && web(&status)?.overdue == 0)
    })?;
    server.signal(Signal::KILL)?;
    server.terminate(PATIENCE)?;
    agent.wait_for("nothing is in flight", |agent| {
        let waiting = web(&agent.status()?)?;
        Ok(waiting.requests == 0 && waiting.oldest_seconds.is_none())
    })?;
    agent.stop()
}
