//! Real servers under real clients, from Debian packages.

use std::{
    fs,
    net::{SocketAddr, TcpStream},
    path::Path,
    process::{Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use enforcer_rig::{
    address,
    process::{Process, exec_in},
};
use enforcer_tests::{
    agent::{Files, PATIENCE},
    needs::program,
};
use rustix::process::Signal;

use crate::requests::{Scene, VICTIM};

/// Starts a server in the group and waits until it listens.
fn serve(scene: &Scene, name: &str, arguments: &[&str], address: SocketAddr) -> Result<Process> {
    let mut command = exec_in(Some(&scene.ls), Signal::TERM, &program(name)?)?;
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null());
    let mut server = Process::start(name, &mut command)?;
    let until = Instant::now() + PATIENCE;
    while TcpStream::connect(address).is_err() {
        ensure!(server.is_running(), "{name} ended");
        ensure!(Instant::now() < until, "{name} does not listen on {address}");
        sleep(Duration::from_millis(10));
    }
    Ok(server)
}

/// Runs a client to its end and returns what it printed.
fn client(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("{command:?}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {}\n{text}\n{errors}", output.status);
    Ok(text)
}

/// So many requests were served since the last time, and none is in flight or was given up.
fn served(scene: &Scene, before: &mut u64) -> Result<u64> {
    // The last answer may be on its way still.
    sleep(Duration::from_millis(50));
    let totals = scene.loaded.counters.requests(VICTIM);
    ensure!(totals.begun == totals.served && totals.unanswered == 0, "{totals:?}");
    scene.nothing_dropped()?;
    Ok(totals.served - std::mem::replace(before, totals.served))
}

pub fn redis() -> Result<()> {
    const REQUESTS: u64 = 10_000;
    let scene = Scene::new()?;
    let listen = address::free()?;
    let port = listen.port().to_string();
    let options = ["--bind", "127.0.0.1", "--port", &port, "--save", "", "--appendonly", "no"];
    let mut redis = serve(&scene, "redis-server", &options, listen)?;
    let mut before = 0;
    for _ in 0..10 {
        let answer = client(Command::new(program("redis-cli")?).args(["-p", &port, "ping"]))?;
        ensure!(answer.trim() == "PONG", "{answer}");
    }
    let pings = served(&scene, &mut before)?;
    ensure!(pings == 10, "{pings} requests, not 10");

    let benchmark = |options: &[&str]| -> Result<String> {
        let mut command = Command::new(program("redis-benchmark")?);
        let requests = REQUESTS.to_string();
        client(command.args(["-p", &port, "-c", "20", "-q", "-n", &requests, "-t", "get"]).args(options))
    };
    benchmark(&[])?;
    let counted = served(&scene, &mut before)?;
    // It asks for the server's configuration first, both questions at once.
    ensure!(counted == REQUESTS + 1, "{counted} requests, not {REQUESTS} and one for the configuration");

    // Sixteen at once are one.
    benchmark(&["-P", "16"])?;
    let pipelined = served(&scene, &mut before)?;
    println!("{pings} by redis-cli, {counted} by redis-benchmark, {pipelined} in pipelines of 16");
    ensure!(pipelined == REQUESTS / 16 + 1, "{pipelined} requests in pipelines");
    redis.terminate(PATIENCE)?;
    Ok(())
}

/// nginx with a file to serve, on one address in clear and on one under TLS.
struct Nginx {
    process: Process,
    clear: SocketAddr,
    tls: SocketAddr,
    _files: Files,
}

impl Nginx {
    fn start(scene: &Scene, certificate: Option<(&Path, &Path)>) -> Result<Self> {
        let files = Files::new("nginx")?;
        let (clear, tls) = (address::free()?, address::free()?);
        let home = files.path().display();
        let secure = certificate.map_or_else(String::new, |(certificate, key)| {
            let (certificate, key) = (certificate.display(), key.display());
            format!(
                "server {{ listen {tls} ssl; root {home}; ssl_certificate {certificate}; ssl_certificate_key {key}; \
                 ssl_protocols TLSv1.2 TLSv1.3; }}\n"
            )
        });
        let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|kind| format!("{kind}_temp_path {home}/{kind};\n"));
        fs::write(files.path().join("index.html"), "hello\n".repeat(100))?;
        fs::write(
            files.path().join("nginx.conf"),
            format!(
                "daemon off; worker_processes 2; user root; error_log {home}/log; pid {home}/pid;\n\
                 events {{ worker_connections 256; }}\n\
                 http {{ access_log off; keepalive_requests 100000;\n{}\
                 server {{ listen {clear}; root {home}; }}\n{secure}}}\n",
                temporary.concat()
            ),
        )?;
        let configuration = files.path().join("nginx.conf").display().to_string();
        let log = files.path().join("log").display().to_string();
        let process = serve(scene, "nginx", &["-e", &log, "-c", &configuration], clear)?;
        Ok(Self { process, clear, tls, _files: files })
    }
}

/// A client that keeps its connections open, and one that makes a new one for every request.
pub fn nginx() -> Result<()> {
    const REQUESTS: u64 = 5_000;
    let scene = Scene::new()?;
    let mut nginx = Nginx::start(&scene, None)?;
    let mut before = 0;
    for options in [&["-k"][..], &[]] {
        let url = format!("http://{}/index.html", nginx.clear);
        let requests = REQUESTS.to_string();
        let mut command = Command::new(program("ab")?);
        let report = client(command.args(["-q", "-c", "10", "-n", &requests]).args(options).arg(url))?;
        ensure!(report.contains("Failed requests:        0"), "{report}");
        let counted = served(&scene, &mut before)?;
        println!("{counted} by ab {}", options.join(" "));
        ensure!(counted == REQUESTS, "{counted} requests by ab {options:?}, not {REQUESTS}");
    }
    nginx.process.terminate(PATIENCE)?;
    Ok(())
}

/// Encrypted bytes are bytes. What the handshake adds is known for each version.
pub fn tls() -> Result<()> {
    const REQUESTS: u64 = 50;
    let scene = Scene::new()?;
    let files = Files::new("tls")?;
    let (certificate, key) = (files.path().join("certificate.pem"), files.path().join("key.pem"));
    let mut openssl = Command::new(program("openssl")?);
    openssl.args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost"]);
    client(openssl.arg("-out").arg(&certificate).arg("-keyout").arg(&key))?;
    let mut nginx = Nginx::start(&scene, Some((&certificate, &key)))?;
    // 1.2: two flights before the first request. 1.3: one, and the client's last word of the handshake may be answered on
    // its own, with tickets, or together with its first request. Either: the client's closing alert, which is not answered.
    for (version, others) in [("1.2", 3..=3), ("1.3", 2..=3)] {
        let before = scene.loaded.counters.requests(VICTIM);
        let url = format!("https://{}/index.html?[1-{REQUESTS}]", nginx.tls);
        let mut curl = Command::new(program("curl")?);
        curl.args(["--silent", "--fail", "--insecure", "--http1.1", "--tls-max", version]);
        curl.args([&format!("--tlsv{version}"), &url]);
        let pages = client(&mut curl)?;
        ensure!(pages.lines().count() as u64 == REQUESTS * 100, "not all pages came");
        // The server's end of the connection follows the client's.
        sleep(Duration::from_millis(100));
        let after = scene.loaded.counters.requests(VICTIM);
        ensure!(!after.any_in_flight(), "{after:?}");
        let counted = after.begun - before.begun;
        println!("TLS {version}: {counted} for {REQUESTS} on one connection");
        ensure!(others.contains(&(counted - REQUESTS)), "TLS {version}: {counted} for {REQUESTS}");
    }
    nginx.process.terminate(PATIENCE)?;
    Ok(())
}
