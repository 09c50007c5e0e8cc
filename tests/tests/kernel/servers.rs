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
    arrivals::Profile,
    cast::{self, LS_SHARES},
    client::{Load, Report},
    process::{Process, exec_in, installed},
    protocol::Protocol,
    sandbox::Sandbox,
    service::Service,
};
use enforcer_tests::agent::{Agent, Files, PATIENCE};
use rustix::process::Signal;

use crate::requests::{Scene, VICTIM};

/// Starts a server in the group and waits until it listens.
fn serve(scene: &Scene, name: &str, arguments: &[&str], address: SocketAddr) -> Result<Process> {
    let mut command = exec_in(Some(&scene.ls), Signal::TERM, &installed(name)?)?;
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
        let answer = client(Command::new(installed("redis-cli")?).args(["-p", &port, "ping"]))?;
        ensure!(answer.trim() == "PONG", "{answer}");
    }
    let pings = served(&scene, &mut before)?;
    ensure!(pings == 10, "{pings} requests, not 10");

    let benchmark = |options: &[&str]| -> Result<String> {
        let mut command = Command::new(installed("redis-benchmark")?);
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
        let mut command = Command::new(installed("ab")?);
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
    let mut openssl = Command::new(installed("openssl")?);
    openssl.args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost"]);
    client(openssl.arg("-out").arg(&certificate).arg("-keyout").arg(&key))?;
    let mut nginx = Nginx::start(&scene, Some((&certificate, &key)))?;
    // 1.2: two flights before the first request. 1.3: one, and the client's last word of the handshake may be answered on
    // its own, with tickets, or together with its first request. Either: the client's closing alert, which is not answered.
    for (version, others) in [("1.2", 3..=3), ("1.3", 2..=3)] {
        let before = scene.loaded.counters.requests(VICTIM);
        let url = format!("https://{}/index.html?[1-{REQUESTS}]", nginx.tls);
        let mut curl = Command::new(installed("curl")?);
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

/// A redis under more requests than need be looked at: a part of them stands for all.
pub fn sampled() -> Result<()> {
    // Looked at are slices of a jiffy, at random: of the 2,000 that eight seconds have at 250 Hz an eighth, so that the count has a
    // standard deviation of 6 %; of twice as many requests per second, 9 %.
    const TOLERANCE: f64 = 0.35;
    let sandbox = Sandbox::new("enforcer-test")?;
    let ls = sandbox.group("ls", LS_SHARES)?;
    let files = Files::new("sampled")?;
    let policy = format!(
        "groups:\n- {{ name: web, class: LS, cgroups: [{}/ls], slo: {{ requestLatency: {{ p99: 1s }} }} }}\n",
        sandbox.path()
    );
    let (_redis, address) = Service::Redis.start(&ls, files.path())?;
    let mut agent = Agent::start(&files, &policy, &[])?;
    let count = "enforcer_request_duration_seconds_count{group=\"web\"}";
    let saturate = |seconds: f64| -> Result<Report> {
        let load = Load {
            profile: Profile::constant(1.0),
            saturate: true,
            connections: 16,
            seconds,
            warm_up_seconds: 0.0,
            seed: 1,
            protocol: Protocol::Redis,
            slo_us: None,
        };
        Ok(serde_json::from_str(&cast::client(address, &load)?.output()?)?)
    };
    // Until it is seen how many there are, and a moment more.
    let first = saturate(4.0)?;
    sleep(Duration::from_millis(1_500));
    let before = agent.metric(count)?;
    ensure!((before / first.requests as f64 - 1.0).abs() < TOLERANCE, "{before} of {}", first.requests);
    let second = std::thread::scope(|scope| -> Result<Report> {
        let client = scope.spawn(|| saturate(8.0));
        agent.wait_for("a part is looked at", |agent| {
            Ok(agent.metric("enforcer_request_sampling_ratio{group=\"web\"}")? < 1.0)
        })?;
        client.join().expect("the client does not panic")
    })?;
    agent.wait_for("nothing is in flight", |agent| {
        Ok(agent.metric("enforcer_requests_in_flight{group=\"web\"}")? < 0.5)
    })?;
    sleep(Duration::from_millis(1_500));
    let counted = agent.metric(count)? - before;
    let ratio = counted / second.requests as f64;
    println!("{counted:.0} for {} requests, ratio {ratio:.3}", second.requests);
    ensure!((ratio - 1.0).abs() < TOLERANCE, "{counted} for {} requests", second.requests);
    agent.wait_for("all are looked at again", |agent| {
        Ok(agent.metric("enforcer_request_sampling_ratio{group=\"web\"}")? >= 1.0)
    })?;
    agent.stop()
}
