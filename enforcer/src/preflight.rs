//! What this kernel and host offer, and what the agent will therefore do.

use std::{fmt, fs, path::Path};

use enforcer_ebpf::layout::StallCause;
use rustix::process::geteuid;
use serde::Serialize;

use crate::{
    cgroup::hierarchy::{Layout, Mounts},
    kernel::{
        cost::Statistics,
        probes::{Identity, MemoryProbes, Probes, possible_cpus},
        support::{Sizes, Support, WaitSource},
    },
};

/// How a finding bears on the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Bearing {
    Good,
    /// Something will not be done.
    Lacking,
    /// The agent cannot run.
    Fatal,
}

/// One fact, and the cure where it is not to one's liking.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    pub topic: &'static str,
    pub bearing: Bearing,
    pub fact: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cure: Option<String>,
}

/// Everything that was found.
#[derive(Clone, Debug, Serialize)]
pub struct Found {
    pub findings: Vec<Finding>,
    /// What the agent will do here, in words.
    pub therefore: Vec<String>,
}

impl Found {
    /// Whether the agent can run here.
    pub fn can_run(&self) -> bool {
        self.findings.iter().all(|finding| finding.bearing != Bearing::Fatal)
    }
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Finding { topic, bearing, fact, cure } in &self.findings {
            let mark = match bearing {
                Bearing::Good => "yes ",
                Bearing::Lacking => "no  ",
                Bearing::Fatal => "STOP",
            };
            writeln!(f, "{mark} {topic:<18} {fact}")?;
            if let Some(cure) = cure {
                writeln!(f, "{:24}cure: {cure}", "")?;
            }
        }
        writeln!(f, "\nTherefore:")?;
        self.therefore.iter().try_for_each(|line| writeln!(f, "- {line}"))
    }
}

/// Looks at this host. Loads the probes for a moment, because nothing else tells whether the kernel takes them.
pub fn look(cgroup_root: &Path) -> Found {
    let mut findings = vec![kernel(), privileges()];
    let mounts = Mounts::below(cgroup_root);
    findings.push(match &mounts {
        Ok(mounts) => good("cgroups", describe(mounts)),
        Err(err) => fatal("cgroups", "no hierarchy with a cpu controller", err.to_string()),
    });
    let probes = probes();
    let mut therefore = probes.therefore;
    findings.extend(probes.findings);
    findings.extend(mounts.as_ref().ok().map(memory_use));
    findings.push(psi());
    findings.push(pmu());
    if let Ok(mounts) = &mounts {
        let levers = levers(mounts);
        let (usable, not): (Vec<_>, Vec<_>) = levers.iter().partition(|lever| lever.bearing == Bearing::Good);
        if usable.iter().any(|lever| lever.topic == "lever: cpu quota") {
            therefore.push("BE is limited by its CPU quota".to_owned());
        } else {
            therefore.push("nothing can be limited: the agent only measures".to_owned());
        }
        let names = |levers: &[&Finding]| {
            levers
                .iter()
                .map(|lever| lever.topic.trim_start_matches("lever: "))
                .collect::<Vec<_>>()
                .join(", ")
        };
        if !not.is_empty() {
            therefore.push(format!("not available here: {}", names(&not)));
        }
        findings.extend(levers);
    }
    let mut found = Found { findings, therefore };
    if !found.can_run() {
        found.therefore = vec!["the agent cannot run here until what is marked STOP is cured".to_owned()];
    }
    found
}

struct ProbeFindings {
    findings: Vec<Finding>,
    therefore: Vec<String>,
}

fn probes() -> ProbeFindings {
    let stop = |topic, fact: &str, cure: String| ProbeFindings {
        findings: vec![fatal(topic, fact, cure)],
        therefore: Vec::new(),
    };
    let support = match Support::of_running_kernel(false) {
        Ok(support) => support,
        Err(err) => return stop("type info (BTF)", "the kernel's types are not known", err.to_string()),
    };
    let mut findings = vec![good("type info (BTF)", "/sys/kernel/btf/vmlinux".to_owned())];
    let sizes = Sizes { cpus: possible_cpus().unwrap_or(1), slots: 4, victims: 2, culprits: 4 };
    let loaded = match Probes::load(&support, Identity::V2, sizes) {
        Ok(loaded) => loaded,
        Err(err) => {
            let refused =
                fatal("probe: waits", "the run-queue probe cannot be attached", short(&err.to_string()));
            findings.push(refused);
            return ProbeFindings { findings, therefore: Vec::new() };
        }
    };
    let mut therefore = Vec::new();
    match support.wait_source {
        WaitSource::SchedInfo => {
            findings.push(good("probe: waits", "one program, by the kernel's own sched_info".to_owned()));
            therefore.push("run-queue waits, CPU time and blame are measured on sched_switch".to_owned());
        }
        WaitSource::Wakeups => {
            findings.push(Finding {
                topic: "probe: waits",
                bearing: Bearing::Good,
                fact: "three programs: this kernel has no CONFIG_SCHED_INFO".to_owned(),
                cure: Some(
                    "with CONFIG_TASK_DELAY_ACCT=y one program does, at a fraction of the cost".to_owned(),
                ),
            });
            therefore.push(
                "run-queue waits, CPU time and blame are measured on sched_switch and sched_wakeup"
                    .to_owned(),
            );
        }
    }
    match &loaded.probes.request_latency_missing {
        None => {
            findings.push(good("probe: requests", "two cgroup_skb programs per LS group".to_owned()));
            therefore
                .push("requests of LS groups with a directory in the v2 hierarchy are measured".to_owned());
        }
        Some(why) => {
            findings.push(lacking("probe: requests", "the kernel refuses cgroup_skb programs", short(why)));
            therefore
                .push("requests are not measured: objectives on requestLatency have no effect".to_owned());
        }
    }
    let memory = &loaded.probes.memory;
    findings.extend(memory_probes(memory));
    therefore.push(if memory.any_stalls() {
        "time stalled for want of memory is measured per group".to_owned()
    } else {
        "memory stalls are not measured: objectives on memoryStall have no effect".to_owned()
    });
    findings.push(match Statistics::on() {
        Ok(_) => good("cost of probes", "by the kernel's statistics, one second in thirty".to_owned()),
        Err(err) => {
            let cure = "Linux 5.8, and CAP_SYS_ADMIN; the agent's own CPU time is known all the same";
            lacking("cost of probes", &format!("the kernel keeps no statistics ({err})"), cure.to_owned())
        }
    });
    ProbeFindings { findings, therefore }
}

fn memory_probes(probes: &MemoryProbes) -> Vec<Finding> {
    const MEASURED_OTHERWISE: &str = "none is needed: PSI and memory.events tell of it as a whole";
    let mut findings = Vec::new();
    for (cause, what) in StallCause::ALL.into_iter().zip(["direct reclaim", "memcg reclaim", "compaction"]) {
        if let Some(why) = &probes.stalls_missing[cause as usize] {
            findings.push(lacking(
                "probe: stalls",
                &format!("{what}: {}", short(why)),
                MEASURED_OTHERWISE.to_owned(),
            ));
        }
    }
    if findings.is_empty() {
        findings.push(good("probe: stalls", "direct reclaim, memcg reclaim, compaction".to_owned()));
    }
    findings.push(match &probes.oom_kills_missing {
        None => good("probe: OOM kills", "one program".to_owned()),
        Some(why) => {
            lacking("probe: OOM kills", &short(why), "none is needed: memory.events counts them".to_owned())
        }
    });
    findings
}

fn kernel() -> Finding {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    good("kernel", format!("Linux {release}"))
}

/// Effective capabilities, by number (include/uapi/linux/capability.h).
fn privileges() -> Finding {
    const DAC_OVERRIDE: u32 = 1;
    const NET_ADMIN: u32 = 12;
    const SYS_ADMIN: u32 = 21;
    const PERFMON: u32 = 38;
    const BPF: u32 = 39;
    let effective =
        procfs::process::Process::myself().and_then(|me| me.status()).map_or(0, |status| status.capeff);
    let has = |capability: u32| effective & (1 << capability) != 0;
    let mut missing = Vec::new();
    for (name, is_there) in [
        ("CAP_BPF", has(BPF) || has(SYS_ADMIN)),
        ("CAP_PERFMON", has(PERFMON) || has(SYS_ADMIN)),
        ("CAP_NET_ADMIN", has(NET_ADMIN)),
        ("CAP_DAC_OVERRIDE", has(DAC_OVERRIDE) || geteuid().is_root()),
    ] {
        if !is_there {
            missing.push(name);
        }
    }
    if missing.is_empty() {
        return good("privileges", "all capabilities that the agent needs".to_owned());
    }
    let fact = format!("missing {}", missing.join(", "));
    let cure = "run as root; in a container, as root with CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN";
    fatal("privileges", &fact, cure.to_owned())
}

/// Where it is told how much memory a group uses.
fn memory_use(mounts: &Mounts) -> Finding {
    match (&mounts.v1_memory, &mounts.v2) {
        (Some(v1), _) => good("memory use", format!("v1 at {}: not how much is reclaimed", v1.display())),
        (None, Some(v2)) if is_enabled(v2, "memory") => good("memory use", format!("v2 at {}", v2.display())),
        _ => lacking("memory use", "no memory controller", enable("memory")),
    }
}

fn psi() -> Finding {
    if fs::read_to_string("/proc/pressure/cpu").is_ok() {
        return good("PSI", "/proc/pressure".to_owned());
    }
    lacking("PSI", "the kernel keeps no pressure stall information", "boot with psi=1".to_owned())
}

fn pmu() -> Finding {
    let devices = ["cpu", "cpu_core", "armv8_pmuv3_0", "armv8_pmuv3"];
    let found = devices.iter().find(|name| Path::new("/sys/bus/event_source/devices").join(name).exists());
    match found {
        Some(name) => good("PMU", format!("{name}; not used yet")),
        None => {
            lacking("PMU", "no hardware counters, as in most virtual machines", "none is needed".to_owned())
        }
    }
}

fn describe(mounts: &Mounts) -> String {
    let places: Vec<String> =
        mounts.iter().map(|(hierarchy, point)| format!("{hierarchy} at {}", point.display())).collect();
    let layout = match mounts.layout() {
        Layout::V2 => "v2",
        Layout::Hybrid => "hybrid",
        Layout::V1 => "v1",
    };
    format!("{layout}: {}", places.join(", "))
}

/// What could squeeze BE, weakest first.
fn levers(mounts: &Mounts) -> Vec<Finding> {
    let lever = |topic, is_there: bool, file: &str, cure: &str| {
        if is_there {
            good(topic, file.to_owned())
        } else {
            lacking(topic, &format!("no {file}"), cure.to_owned())
        }
    };
    let v2 = mounts.v2.as_deref();
    let in_v2 = |controller: &str| v2.is_some_and(|root| is_enabled(root, controller));
    let (cpu, cpuset) = match &mounts.v1_cpu {
        // A controller that is mounted is enabled in every directory.
        Some(v1_cpu) => (true, v1_cpu.parent().is_some_and(|root| root.join("cpuset/cpuset.cpus").exists())),
        None => (in_v2("cpu"), in_v2("cpuset")),
    };
    let quota = if mounts.v1_cpu.is_some() { "cpu.cfs_quota_us" } else { "cpu.max" };
    let memory_cure = match mounts.layout() {
        Layout::V2 => enable("memory"),
        Layout::Hybrid | Layout::V1 => {
            "the memory controller is on v1, which has no such file: boot with systemd.unified_cgroup_hierarchy=1".to_owned()
        }
    };
    vec![
        lever("lever: cpu.idle", cpu && is_linux(5, 15), "cpu.idle", "use Linux 5.15 or newer"),
        lever("lever: cpu quota", cpu, quota, &enable("cpu")),
        lever("lever: cpuset", cpuset, "cpuset.cpus", &enable("cpuset")),
        lever("lever: memory", in_v2("memory"), "memory.high", &memory_cure),
        lever(
            "lever: reclaim",
            in_v2("memory") && is_linux(5, 19),
            "memory.reclaim",
            if in_v2("memory") { "use Linux 5.19 or newer" } else { &memory_cure },
        ),
        // Part of every v2 directory but the root, controllers or not.
        lever(
            "lever: freeze",
            v2.is_some() && is_linux(5, 2),
            "cgroup.freeze",
            "use cgroup v2 and Linux 5.2 or newer",
        ),
    ]
}

fn enable(controller: &str) -> String {
    format!("enable it for all directories: echo +{controller} > cgroup.subtree_control, from the root down")
}

/// Whether directories right below the root of the v2 hierarchy have a controller's files.
fn is_enabled(root: &Path, controller: &str) -> bool {
    let enabled = fs::read_to_string(root.join("cgroup.subtree_control")).unwrap_or_default();
    enabled.split_whitespace().any(|name| name == controller)
}

/// Whether the running kernel is this version or a newer one.
pub fn is_linux(major: u32, minor: u32) -> bool {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut numbers = release.split(['.', '-']).map(|part| part.parse::<u32>().unwrap_or_default());
    (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default()) >= (major, minor)
}

/// Verifier logs are thousands of lines long, and the last one says why.
fn short(text: &str) -> String {
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    match lines.as_slice() {
        [first, .., last] if lines.len() > 3 => format!("{first} … {last}"),
        _ => lines.join(" "),
    }
}

fn good(topic: &'static str, fact: String) -> Finding {
    Finding { topic, bearing: Bearing::Good, fact, cure: None }
}

fn lacking(topic: &'static str, fact: &str, cure: String) -> Finding {
    Finding { topic, bearing: Bearing::Lacking, fact: fact.to_owned(), cure: Some(cure) }
}

fn fatal(topic: &'static str, fact: &str, cure: String) -> Finding {
    Finding { topic, bearing: Bearing::Fatal, fact: fact.to_owned(), cure: Some(cure) }
}
