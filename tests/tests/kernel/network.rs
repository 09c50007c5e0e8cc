//! What networks do to requests, and what else comes over them.

use std::{
    io::{Read as _, Write as _},
    net::{TcpStream, UdpSocket},
    process::Stdio,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use enforcer_rig::{
    client::Report,
    loss::{lose_one_in, sent_again},
    process::{Process, built, exec_in, installed, piped, workload, workload_in},
    protocol::ECHO_BYTES,
};
use rustix::process::Signal;

use crate::requests::{LOOPBACK, Scene, VICTIM, ask};

/// Requests that are lost before the server sees them, answers that are lost on their way, acknowledgements that are:
/// everything is sent again, by either side, and each request counts once.
pub fn retransmits() -> Result<()> {
    const CONNECTIONS: u64 = 8;
    const REQUESTS: u64 = 25;
    let scene = Scene::new()?;
    let (_server, address) = scene.server_with(LOOPBACK, &["--lose-one-in", "5"])?;
    let client = move || -> Result<u32> {
        let mut connection = TcpStream::connect(address)?;
        connection.set_nodelay(true)?;
        lose_one_in(&connection, 5)?;
        let mut message = [7; ECHO_BYTES];
        for _ in 0..REQUESTS {
            connection.write_all(&message)?;
            connection.read_exact(&mut message)?;
        }
        Ok(sent_again(&connection)?)
    };
    let clients: Vec<_> = (0..CONNECTIONS).map(|_| thread::spawn(client)).collect();
    let mut again = 0;
    for client in clients {
        again += client.join().expect("a client does not panic")?;
    }
    ensure!(again >= 20, "only {again} segments were sent again: nothing was tried");
    let totals = scene.loaded.counters.requests(VICTIM);
    println!("{} requests, {again} segments sent again by the clients", totals.served);
    ensure!(!totals.any_in_flight() && totals.unanswered == 0, "{totals:?}");
    scene.has_served(CONNECTIONS * REQUESTS)
}

/// Datagrams are not measured, and pass unharmed.
pub fn datagrams() -> Result<()> {
    let scene = Scene::new()?;
    let mut command = workload_in(&scene.ls)?;
    command.args(["serve-datagrams", "--listen", &LOOPBACK.to_string()]);
    let mut server = Process::start("the UDP server", piped(&mut command))?;
    let address = server.first_line()?;
    let socket = UdpSocket::bind(LOOPBACK)?;
    socket.set_read_timeout(Some(Duration::from_secs(10)))?;
    socket.connect(address)?;
    for length in (0..200).map(|n| n * 7) {
        let datagram = vec![7; length];
        socket.send(&datagram)?;
        let mut answer = [0; 2048];
        let received = socket.recv(&mut answer).context("a datagram was lost")?;
        ensure!(answer[..received] == datagram, "a datagram of {length} bytes came back changed");
    }
    // TCP beside it counts as ever.
    let (_server, address) = scene.server(LOOPBACK, Duration::ZERO)?;
    ask(address, 10)?;
    let totals = scene.loaded.counters.requests(VICTIM);
    ensure!(totals.begun == 10, "{totals:?}");
    scene.has_served(10)
}

/// A group in the host's network, where others serve, call each other, and call and are called by the group.
pub fn host_network() -> Result<()> {
    let scene = Scene::new()?;
    let others = scene.sandbox.group("others", 1024)?;
    let (_ours, ours) = scene.server(LOOPBACK, Duration::ZERO)?;
    let mut command = workload_in(&others)?;
    command.args(["serve", "--steps", "0", "--memory-mib", "1"]);
    let mut theirs = Process::start("another server", piped(&mut command))?;
    let their_address = theirs.first_line()?;
    let load = |mut command: std::process::Command| -> Result<Process> {
        command.args(["load", "--to", &their_address, "--rate", "300", "--seconds", "2"]);
        Process::start("a client", command.stdin(Stdio::null()).stdout(Stdio::piped()))
    };
    // Of the others among themselves, by somebody in no group, and by the measured group itself.
    let clients = [load(workload_in(&others)?)?, load(workload()?)?, load(workload_in(&scene.ls)?)?];
    for _ in 0..10 {
        ask(ours, 50)?;
    }
    for client in clients {
        // Of the whole time: on emulated CPUs some half a second may pass without an answer.
        let report: Report = serde_json::from_str(&client.output()?)?;
        ensure!(report.requests > 0, "a client that asked nothing: {report:?}");
    }
    scene.has_served(500)
}

/// A group with a network of its own, as a pod has.
pub fn own_namespace() -> Result<()> {
    const CONNECTIONS: u64 = 4;
    let scene = Scene::new()?;
    let groups = scene.ls.directories().map(|directory| format!("--cgroup {} ", directory.display()));
    let groups: String = groups.collect();
    let workload = built("workload")?.display().to_string();
    let script = format!(
        "ip link set lo up; {workload} {groups} serve --steps 0 --memory-mib 1 --listen 127.0.0.1:7000 >/dev/null &\n\
         sleep 1; {workload} load --to 127.0.0.1:7000 --rate 200 --seconds 2 --connections {CONNECTIONS}"
    );
    let mut command = exec_in(None, Signal::KILL, &installed("unshare")?)?;
    command.args(["-n", "sh", "-c", &script]);
    let report: Report = serde_json::from_str(&Process::start("unshare", piped(&mut command))?.output()?)?;
    let served = scene.loaded.counters.requests(VICTIM).served;
    println!("{served} served, {} answers came in time", report.requests);
    // What is on its way when the client ends is answered and not reported.
    ensure!((report.requests..=report.requests + CONNECTIONS).contains(&served), "{served}");
    ensure!(served > 100, "{served}");
    scene.nothing_dropped()
}
