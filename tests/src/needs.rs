//! What a test needs of the host. A test that cannot run says so by name and counts as skipped, never as passed.

use std::path::{Path, PathBuf};

use enforcer::{
    cgroup::hierarchy::Mounts,
    kernel::support::{Support, WaitSource},
    preflight::is_linux,
};
use enforcer_rig::{cluster::Cluster, process::installed};
use libtest_mimic::{Failed, Trial};

use crate::sources::root;

/// Something that a host may lack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    Root,
    /// The agent was built with its probes.
    Probes,
    /// The kernel keeps run-queue delays.
    SchedInfo,
    /// A v1 hierarchy with the cpu controller.
    V1Cpu,
    Ipv6,
    TwoCpus,
    /// CPUs that are not emulated: on others the LS server misses its objective without any BE.
    RealCpus,
    /// redis-server with its benchmark, and other programs of Debian packages.
    Redis,
    Nginx,
    Ab,
    Curl,
    OpenSsl,
    /// `unshare` and `ip`, to make a network namespace.
    NetworkNamespace,
    /// Directories that run only where nobody else wants the CPU.
    CpuIdle,
    /// A memory controller, in v1 or v2.
    Memory,
    /// A memory controller in v2, which alone has `memory.high`.
    MemoryV2,
    /// A memory controller in v1.
    MemoryV1,
    /// PSI of cgroups.
    Psi,
    /// So little memory that a test may use all of it.
    LittleMemory,
    /// A cluster that is up.
    Cluster,
    /// The container image.
    Image,
    Prometheus,
}

impl Need {
    /// Why the need is not met here.
    fn unmet(self) -> Option<&'static str> {
        let (is_met, why) = match self {
            Self::Root => (rustix::process::geteuid().is_root(), "not root"),
            Self::Probes => (
                enforcer::kernel::probes::are_built(),
                "built without bpf-linker: run `cargo xtask setup`, then build again",
            ),
            Self::SchedInfo => (has_sched_info(), "a kernel without CONFIG_SCHED_INFO"),
            Self::V1Cpu => (has_mounts(|mounts| mounts.v1_cpu.is_some()), "no v1 cpu hierarchy"),
            Self::Ipv6 => (Path::new("/proc/net/if_inet6").exists(), "no IPv6"),
            Self::RealCpus => (slowness() == 1, "emulated CPUs, on which LS is slow without any BE"),
            Self::CpuIdle => (is_linux(5, 15), "a kernel without cpu.idle (Linux 5.15)"),
            Self::TwoCpus => {
                (std::thread::available_parallelism().is_ok_and(|cpus| cpus.get() > 1), "one CPU")
            }
            Self::Redis => (
                ["redis-server", "redis-benchmark", "redis-cli"].iter().all(|name| installed(name).is_ok()),
                "no redis-server: run `cargo xtask setup`",
            ),
            Self::Nginx => (installed("nginx").is_ok(), "no nginx: run `cargo xtask setup`"),
            Self::Ab => (installed("ab").is_ok(), "no ab: run `cargo xtask setup`"),
            Self::Curl => (installed("curl").is_ok(), "no curl: run `cargo xtask setup`"),
            Self::NetworkNamespace => (
                ["unshare", "ip"].iter().all(|name| installed(name).is_ok()),
                "no unshare or no ip: install util-linux and iproute2",
            ),
            Self::OpenSsl => (installed("openssl").is_ok(), "no openssl: run `cargo xtask setup`"),
            Self::Memory => (has_memory(), "no memory controller"),
            Self::MemoryV2 => (has_memory() && !has_v1_memory(), "no memory controller in cgroup v2"),
            Self::MemoryV1 => (has_v1_memory(), "no memory controller in cgroup v1"),
            Self::Psi => (Path::new("/proc/pressure/memory").exists(), "no PSI: boot with psi=1"),
            Self::Cluster => (Cluster::running().is_ok(), "no cluster is up: run `cargo xtask cluster test`"),
            Self::Image => (image().exists(), "no image: run `cargo xtask image` first"),
            Self::Prometheus => {
                (installed("prometheus").is_ok(), "no prometheus: install Debian's package of that name")
            }
            Self::LittleMemory => (has_little_memory(), "more memory than a test should fill"),
        };
        (!is_met).then_some(why)
    }
}

/// Where `cargo xtask image` puts it.
pub fn image() -> PathBuf {
    root().join("target/image/enforcer.tar")
}

fn has_sched_info() -> bool {
    Support::of_running_kernel(false).is_ok_and(|support| support.wait_source == WaitSource::SchedInfo)
}

/// How much more patience is asked for than on a real machine: `ENFORCER_TEST_SLOWNESS`. Whoever runs these tests on emulated
/// CPUs asks for some.
pub fn slowness() -> u32 {
    std::env::var("ENFORCER_TEST_SLOWNESS").ok().and_then(|factor| factor.parse().ok()).unwrap_or(1)
}

fn has_mounts(is_so: impl FnOnce(&Mounts) -> bool) -> bool {
    Mounts::below(Path::new("/sys/fs/cgroup")).is_ok_and(|mounts| is_so(&mounts))
}

fn has_memory() -> bool {
    has_mounts(|mounts| {
        let offers_memory = |v2: &Path| {
            let offered = std::fs::read_to_string(v2.join("cgroup.controllers")).unwrap_or_default();
            offered.split_whitespace().any(|controller| controller == "memory")
        };
        mounts.v1_memory.is_some() || mounts.v2.as_deref().is_some_and(offers_memory)
    })
}

fn has_v1_memory() -> bool {
    has_mounts(|mounts| mounts.v1_memory.is_some())
}

fn has_little_memory() -> bool {
    // The unit is a byte on 64-bit machines.
    rustix::system::sysinfo().totalram < 4 << 30
}

/// A test, left out aloud where a need is not met.
pub fn trial(
    name: &'static str,
    needs: &[Need],
    test: impl FnOnce() -> anyhow::Result<()> + Send + 'static,
) -> Trial {
    let unmet = needs.iter().find_map(|need| need.unmet());
    if let Some(why) = unmet {
        println!("skipped: {name} ({why})");
    }
    let run = move || test().map_err(|err| Failed::from(format!("{err:#}")));
    Trial::test(name, run).with_ignored_flag(unmet.is_some())
}
