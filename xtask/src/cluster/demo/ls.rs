//! The latency-sensitive pod.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result};
use clap::ValueEnum;
use enforcer_rig::{
    arrivals::Profile,
    cast,
    client::Load,
    cluster::{Cluster, WORKLOAD_IMAGE, image::Image},
    process::{Process, installed},
    service::Service,
};
use serde_json::json;

use super::objects::Pod;
use crate::programs::run_quietly;

const NAMESPACE: &str = "default";
/// By which it is found.
const APP: &str = "demo-ls";
const REDIS_IMAGE: &str = "localhost/redis:debian";
const ANNOTATION: &str = "enforcer.dev/slo";
/// Requests are measured of pods that are promised something, if only this.
pub const LAX: Duration = Duration::from_secs(1);
/// Connections of the client: more than requests come while the server stalls for some tens of milliseconds. A request that finds
/// none free waits where only the client sees it.
const CONNECTIONS: usize = 1_024;

/// What it serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Ls {
    /// Debian's redis, asked for values of 1,000 bytes.
    Redis,
    /// The rig's own: 6,000 random steps through 8 MiB per request.
    Builtin,
}

impl Ls {
    pub const fn service(self) -> Service {
        match self {
            Self::Redis => Service::Redis,
            Self::Builtin => Service::Builtin,
        }
    }

    /// Requests per second: between a quarter and a third of two CPUs, the client's part included.
    pub const fn default_rate(self) -> f64 {
        match self {
            Self::Redis => 12_000.0,
            Self::Builtin => Service::Builtin.default_rate(),
        }
    }

    const fn port(self) -> u16 {
        match self {
            Self::Redis => 6379,
            Self::Builtin => 8080,
        }
    }

    const fn image(self) -> &'static str {
        match self {
            Self::Redis => REDIS_IMAGE,
            Self::Builtin => WORKLOAD_IMAGE,
        }
    }

    fn arguments(self) -> &'static [&'static str] {
        match self {
            Self::Redis => &["--bind", "0.0.0.0", "--protected-mode", "no", "--save", ""],
            Self::Builtin => &["serve", "--listen", "0.0.0.0:8080"],
        }
    }
}

/// A running one. It is deleted when dropped.
#[derive(Debug)]
pub struct LsPod<'a> {
    cluster: &'a Cluster,
    ls: Ls,
    address: SocketAddr,
}

impl<'a> LsPod<'a> {
    /// Starts it, and waits until it accepts connections.
    pub fn start(cluster: &'a Cluster, ls: Ls) -> Result<Self> {
        if ls == Ls::Redis {
            import_redis(cluster)?;
        }
        let object = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": ls.service().name(),
                "namespace": NAMESPACE,
                "labels": { "app": APP, "koordinator.sh/qosClass": "LS" },
                "annotations": { ANNOTATION: annotation(LAX) },
            },
            "spec": {
                "priorityClassName": "koord-prod",
                "terminationGracePeriodSeconds": 1,
                "containers": [{
                    "name": "main",
                    "image": ls.image(),
                    "imagePullPolicy": "Never",
                    "args": ls.arguments(),
                    "resources": { "requests": { "cpu": "500m", "memory": "256Mi" } },
                }],
            },
        });
        let mut pod = Self { cluster, ls, address: SocketAddr::from(([0, 0, 0, 0], 0)) };
        let made = Pod::make(cluster, &object, NAMESPACE, &format!("app={APP}"))?;
        pod.address = made.listens_at(cluster, ls.port())?;
        Ok(pod)
    }

    /// What the agent calls it.
    pub fn group(&self) -> String {
        format!("{NAMESPACE}/{}", self.ls.service().name())
    }

    /// Promises that 99 % of its requests take no longer than this.
    pub fn promise(&self, slo: Duration) -> Result<()> {
        let annotation = format!("{ANNOTATION}={}", annotation(slo));
        let name = self.ls.service().name();
        self.cluster.ask(&["annotate", "pod", name, &annotation, "--namespace", NAMESPACE, "--overwrite"])?;
        Ok(())
    }

    /// Starts a client. Requests count as slow beyond `slow`.
    pub fn load(&self, load: Load) -> Result<Process> {
        cast::client_by(Command::new(&self.cluster.workload), self.address, &load)
    }

    /// A load with its own protocol.
    pub fn load_of(&self, rate: f64, seconds: u32, warm_up: u32, slow: Option<Duration>, seed: u64) -> Load {
        Load {
            profile: Profile::constant(rate),
            saturate: false,
            connections: CONNECTIONS,
            seconds: seconds.into(),
            warm_up_seconds: warm_up.into(),
            seed,
            protocol: self.ls.service().protocol(),
            slo_us: slow.map(|slow| slow.as_secs_f64() * 1e6),
        }
    }
}

impl Drop for LsPod<'_> {
    fn drop(&mut self) {
        if let Err(err) = Pod::delete_all(self.cluster, NAMESPACE, &format!("app={APP}")) {
            println!("the LS pod stays: {err:#}");
        }
    }
}

fn annotation(slo: Duration) -> String {
    json!({ "requestLatency": { "p99": format!("{}us", slo.as_micros()) } }).to_string()
}

/// Makes an image of this machine's redis with the libraries that it needs.
fn import_redis(cluster: &Cluster) -> Result<()> {
    let program = installed("redis-server")?;
    let libraries = libraries(&program)?;
    let mut files: Vec<(&Path, &str)> = vec![(&program, "/usr/bin/redis-server")];
    for library in &libraries {
        files.push((library, library.to_str().context("a library's name is not UTF-8")?));
    }
    let archive = cluster.paths.tree.join("etc/redis.tar");
    Image { name: REDIS_IMAGE, entrypoint: &["/usr/bin/redis-server"], files: &files }.write(&archive)?;
    run_quietly(&mut cluster.import(&archive)?)?;
    Ok(())
}

/// Shared libraries of a program, the one that loads the others included.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let output = run_quietly(Command::new("ldd").arg(program))?;
    Ok(named(&String::from_utf8_lossy(&output.stdout)))
}

/// The files that ldd names.
fn named(answer: &str) -> Vec<PathBuf> {
    let files = answer.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')));
    files.map(PathBuf::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_found_in_what_ldd_says() {
        let answer = "\tlinux-vdso.so.1 (0x00007ffc)\n\tlibm.so.6 => /lib/x86_64-linux-gnu/libm.so.6 (0x00007f)\n\
                      \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        assert_eq!(
            named(answer),
            ["/lib/x86_64-linux-gnu/libm.so.6", "/lib64/ld-linux-x86-64.so.2"].map(PathBuf::from)
        );
    }
}
