//! Latency-sensitive servers that a user would have, each started in a group and loaded by the rig's client.

use std::{
    fs,
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context as _, Result};
use rustix::process::Signal;

use crate::{
    address, cast,
    process::{Process, exec_in, installed},
    protocol::Protocol,
    sandbox::Group,
    wait,
};

/// Until it listens.
const PATIENCE: Duration = Duration::from_secs(20);

/// The latency-sensitive server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Service {
    /// The rig's own: 6,000 random steps through 8 MiB per request.
    Builtin,
    Redis,
    Nginx,
}

/// Workers that nginx gets.
const NGINX_WORKERS: usize = 2;
/// Length of what it answers.
const NGINX_BODY: usize = 1_000;

impl Service {
    /// As on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Builtin => "builtin",
            Self::Redis => "redis",
            Self::Nginx => "nginx",
        }
    }

    /// About a third of two CPUs.
    pub const fn default_rate(self) -> f64 {
        match self {
            Self::Builtin => 850.0,
            Self::Redis | Self::Nginx => 5_000.0,
        }
    }

    pub const fn protocol(self) -> Protocol {
        match self {
            Self::Builtin => Protocol::Echo,
            Self::Redis => Protocol::Redis,
            Self::Nginx => Protocol::Http,
        }
    }

    /// Starts it in a group and waits until it listens. Its files, if it has some, are in `scratch`. nginx wants to be asked
    /// to end, so that it takes its workers along.
    ///
    /// # Errors
    /// Where it is not installed or does not start.
    pub fn start(self, group: &Group, scratch: &Path) -> Result<(Process, SocketAddr)> {
        let program = match self {
            Self::Builtin => return cast::server(group),
            Self::Redis => "redis-server",
            Self::Nginx => "nginx",
        };
        let address = address::free()?;
        let path = installed(program)?;
        let mut command = exec_in(Some(group), Signal::KILL, &path)?;
        if self == Self::Nginx {
            command.arg("-p").arg(scratch).arg("-c").arg(nginx_configuration(scratch, address)?);
        } else {
            command.args(["--bind", "127.0.0.1", "--save", "", "--port", &address.port().to_string()]);
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let server = Process::start(program, &mut command)?;
        wait::until(&format!("{program} listens"), PATIENCE, wait::LOOK, || {
            Ok(TcpStream::connect(address).is_ok())
        })?;
        Ok((server, address))
    }
}

fn nginx_configuration(scratch: &Path, address: SocketAddr) -> Result<PathBuf> {
    let path = scratch.join("nginx.conf");
    let scratch = scratch.display();
    let text = format!(
        "daemon off; worker_processes {NGINX_WORKERS}; error_log {scratch}/nginx.log; pid {scratch}/nginx.pid;\n\
         events {{ worker_connections 1000; }}\n\
         http {{ access_log off; keepalive_requests 1000000000; client_body_temp_path {scratch};\n\
         proxy_temp_path {scratch}; fastcgi_temp_path {scratch}; uwsgi_temp_path {scratch}; scgi_temp_path {scratch};\n\
         server {{ listen {address}; location / {{ return 200 \"{}\"; }} }} }}\n",
        "x".repeat(NGINX_BODY)
    );
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}
