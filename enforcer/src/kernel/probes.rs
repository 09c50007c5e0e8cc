//! Loading and attaching the probes.
//!
//! Each program is loaded on its own: one that this kernel refuses is a fact to report, not a reason to stop.

use std::{fs::File, io, os::fd::AsFd as _};

use aya::{
    Btf, Ebpf, EbpfLoader,
    maps::{Map, MapData},
    programs::{
        BtfTracePoint, CgroupAttachMode, CgroupSkb, CgroupSkbAttachType, Program, ProgramError,
        cgroup_skb::CgroupSkbLink,
    },
};
use aya_log::EbpfLogger;
use enforcer_ebpf::{
    layout::{self, Drop, Objective, Sentry, StallCause},
    table,
};

use super::{
    counters::Counters,
    mapped::MappedArray,
    onsets::Onsets,
    slots::SlotTable,
    support::{Sizes, Support, WaitSource},
};

/// Whether this build has probes at all; without bpf-linker it has none.
pub const fn are_built() -> bool {
    !OBJECT.is_empty()
}

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/enforcer-probes"));

/// Entries of the fallback's table of runnable tasks; a hash map of 64 Ki entries takes about 4 MiB.
const RUNNABLE_TASKS: u32 = 65_536;

/// What measures requests.
pub const REQUEST_PROGRAMS: [&str; 5] =
    [BY_EXCHANGE.ingress, BY_EXCHANGE.egress, BY_EXCHANGE.egress_sparse, BY_LOCK.ingress, BY_LOCK.egress];

/// The programs that look at packets.
#[derive(Clone, Copy, Debug)]
struct RequestPrograms {
    ingress: &'static str,
    egress: &'static str,
    /// Of a group of which only a part of the requests count.
    egress_sparse: &'static str,
}

const BY_EXCHANGE: RequestPrograms =
    RequestPrograms { ingress: "request_in", egress: "response_out", egress_sparse: "response_out_sparse" };
const BY_LOCK: RequestPrograms = RequestPrograms {
    ingress: "request_in_locked",
    egress: "response_out_locked",
    egress_sparse: "response_out_locked",
};

/// Why the probes could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "this enforcer was built without kernel probes, because bpf-linker was missing: run `cargo xtask setup`, then \
         `cargo xtask build`"
    )]
    NotBuilt,
    #[error("the kernel refuses BPF ({0}): run as root, or with CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN")]
    NotPermitted(String),
    #[error("the probes cannot be loaded: {0}")]
    Load(String),
    #[error("the number of possible CPUs cannot be read: {0}")]
    Cpus(io::Error),
    #[error("map {name} cannot be mapped: {source}")]
    Map { name: &'static str, source: io::Error },
    #[error("the run-queue probe is refused by this kernel: {0}")]
    RunQueueWait(String),
}

/// The probes, attached. Dropping them detaches everything.
#[derive(Debug)]
pub struct Probes {
    ebpf: Ebpf,
    /// Those that the kernel took.
    request_programs: RequestPrograms,
    /// Why requests cannot be measured here; `None`: they can.
    pub request_latency_missing: Option<String>,
    pub memory: MemoryProbes,
}

/// What can be told about want of memory here: per question, why not. `None`: it can.
#[derive(Clone, Debug, Default)]
pub struct MemoryProbes {
    /// By [`StallCause`].
    pub stalls_missing: [Option<String>; StallCause::COUNT],
    pub oom_kills_missing: Option<String>,
}

impl MemoryProbes {
    /// Whether stalls of at least one cause are measured.
    pub fn any_stalls(&self) -> bool {
        self.stalls_missing.iter().any(Option::is_none)
    }

    /// Whether stalls of this cause are measured.
    pub const fn has(&self, cause: StallCause) -> bool {
        self.stalls_missing[cause as usize].is_none()
    }
}

/// What [`Probes::load`] hands out.
pub struct Loaded {
    pub probes: Probes,
    pub counters: Counters,
    pub slots: SlotTable,
    pub onsets: Onsets,
    /// Diagnostics that the probes print; flush it when its descriptor becomes readable.
    pub log: EbpfLogger<&'static dyn log::Log>,
}

/// The two programs that measure the requests of one cgroup directory; dropping it detaches them.
#[derive(Debug)]
pub struct RequestLinks {
    #[expect(dead_code, reason = "held for its Drop")]
    ingress: CgroupSkbLink,
    egress: CgroupSkbLink,
}

/// Possible CPUs, which is how far CPU numbers go.
///
/// # Errors
/// Where sysfs cannot be read.
pub fn possible_cpus() -> Result<u32, Error> {
    let cpus = aya::util::nr_cpus().map_err(|(_, err)| Error::Cpus(err))?;
    Ok(u32::try_from(cpus).expect("CPU numbers fit 32 bits"))
}

impl Probes {
    /// Loads the probes with tables of these sizes and attaches the run-queue probe.
    ///
    /// # Errors
    /// Where BPF is not permitted, or the run-queue probe is refused. A kernel that refuses only the request probe is
    /// reported in [`Probes::request_latency_missing`].
    pub fn load(support: &Support, identity: Identity, sizes: Sizes) -> Result<Loaded, Error> {
        if OBJECT.is_empty() {
            return Err(Error::NotBuilt);
        }
        lift_memlock_limit();
        let mut ebpf = load_object(support, identity, sizes)?;
        // The first reader of the log takes its map out of `ebpf`.
        let log = EbpfLogger::init(&mut ebpf).map_err(|err| Error::Load(err.to_string()))?;
        let Maps { counters, slots, onsets } = Maps::take(&mut ebpf, sizes)?;

        let btf = Btf::from_sys_fs().map_err(|err| Error::Load(err.to_string()))?;
        let mut tracepoints = vec![("run_queue_wait", "sched_switch")];
        if support.wait_source == WaitSource::Wakeups {
            tracepoints
                .extend([("runnable_since", "sched_wakeup"), ("runnable_since_birth", "sched_wakeup_new")]);
        }
        for (program, tracepoint) in tracepoints {
            attach_tracepoint(&mut ebpf, program, tracepoint, &btf)
                .map_err(|err| Error::RunQueueWait(with_causes(&err)))?;
        }
        let (request_programs, request_latency_missing) = match load_request_programs(&mut ebpf) {
            Ok(programs) => (programs, None),
            Err(err) => (BY_LOCK, Some(with_causes(&err))),
        };
        let memory = attach_memory_programs(&mut ebpf, support, &btf);
        let probes = Self { ebpf, request_programs, request_latency_missing, memory };
        Ok(Loaded { probes, counters, slots, onsets, log })
    }

    /// Measures the requests served below a directory of the v2 hierarchy, until the links are dropped. `sparse`: only a part
    /// of the requests count.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn attach_request_latency(
        &mut self,
        directory: &File,
        sparse: bool,
    ) -> Result<RequestLinks, ProgramError> {
        // In this order, so that no request is begun whose answer nobody sees.
        let egress = self.attach_egress(directory, sparse)?;
        let ingress =
            self.attach_cgroup(self.request_programs.ingress, CgroupSkbAttachType::Ingress, directory)?;
        Ok(RequestLinks { ingress, egress })
    }

    /// Puts the program for all requests, or for a part of them, in place of the other one.
    ///
    /// # Errors
    /// What the kernel says; the one that was there stays then.
    pub fn count_requests(
        &mut self,
        links: &mut RequestLinks,
        directory: &File,
        sparse: bool,
    ) -> Result<(), ProgramError> {
        // For a moment both are there, and every end counts once all the same.
        links.egress = self.attach_egress(directory, sparse)?;
        Ok(())
    }

    fn attach_egress(&mut self, directory: &File, sparse: bool) -> Result<CgroupSkbLink, ProgramError> {
        let programs = self.request_programs;
        let name = if sparse { programs.egress_sparse } else { programs.egress };
        self.attach_cgroup(name, CgroupSkbAttachType::Egress, directory)
    }

    /// All programs, by name.
    pub(super) fn programs(&self) -> impl Iterator<Item = (&str, &Program)> {
        self.ebpf.programs()
    }

    fn attach_cgroup(
        &mut self,
        name: &str,
        direction: CgroupSkbAttachType,
        directory: &File,
    ) -> Result<CgroupSkbLink, ProgramError> {
        let program: &mut CgroupSkb =
            self.ebpf.program_mut(name).expect("BUG: no such program").try_into()?;
        // With a link, `Single` only means that no flag is passed; other programs stay attached.
        let link = program.attach(directory.as_fd(), direction, CgroupAttachMode::Single)?;
        program.take_link(link)
    }
}

/// By which hierarchies the run-queue probe tells cgroups apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Identity {
    V2,
    V1Cpu,
    /// Hybrid hosts: the v2 directory if the policy names it, the v1 one otherwise.
    Both,
}

impl Identity {
    const fn bits(self) -> u32 {
        match self {
            Self::V2 => 1,
            Self::V1Cpu => 2,
            Self::Both => 3,
        }
    }
}

fn load_object(support: &Support, identity: Identity, sizes: Sizes) -> Result<Ebpf, Error> {
    let Sizes { cpus, slots, victims, culprits } = sizes;
    let have_sched_info = u32::from(support.wait_source == WaitSource::SchedInfo);
    let identity = identity.bits();
    let mut loader = EbpfLoader::new();
    loader
        .override_global("SLOTS", &slots, true)
        .override_global("VICTIMS", &victims, true)
        .override_global("CULPRITS", &culprits, true)
        .override_global("IDENTITY", &identity, true)
        .override_global("HAVE_SCHED_INFO", &have_sched_info, true)
        .map_max_entries("OBJECTIVES", victims)
        .map_max_entries("SENTRIES", victims)
        .map_max_entries("CPUS", cpus)
        .map_max_entries("WAITS", cpus * slots)
        .map_max_entries("MEMORY", cpus * slots)
        .map_max_entries("BLAME", cpus * victims * culprits)
        .map_max_entries("REQUESTS", cpus * victims)
        .map_max_entries("IN_FLIGHT", cpus * victims)
        .map_max_entries("DROPS", cpus * Drop::COUNT);
    if support.wait_source == WaitSource::Wakeups {
        loader.map_max_entries("RUNNABLE", RUNNABLE_TASKS);
    }
    for (name, offset) in &support.offsets {
        loader.override_global(name, offset, true);
    }
    loader.load(OBJECT).map_err(|err| {
        let text = with_causes(&err);
        if text.contains("Operation not permitted") { Error::NotPermitted(text) } else { Error::Load(text) }
    })
}

struct Maps {
    counters: Counters,
    slots: SlotTable,
    onsets: Onsets,
}

impl Maps {
    fn take(ebpf: &mut Ebpf, sizes: Sizes) -> Result<Self, Error> {
        let Sizes { cpus, slots, victims, culprits } = sizes;
        let map = |name, element_bytes, elements: u32| {
            let data = array(ebpf.map(name));
            MappedArray::new(data.fd(), element_bytes, elements as usize)
                .map_err(|source| Error::Map { name, source })
        };
        let table = map("TABLE", size_of::<table::Bucket>(), table::BUCKET_COUNT)?;
        let counters = Counters {
            sizes,
            cpus: map("CPUS", size_of::<layout::Cpu>(), cpus)?,
            waits: map("WAITS", size_of::<layout::Wait>(), cpus * slots)?,
            memory: map("MEMORY", size_of::<layout::Memory>(), cpus * slots)?,
            blame: map("BLAME", 8, cpus * victims * culprits)?,
            requests: map("REQUESTS", size_of::<layout::Requests>(), cpus * victims)?,
            in_flight: map("IN_FLIGHT", size_of::<layout::InFlight>(), cpus * victims)?,
            objectives: map("OBJECTIVES", size_of::<Objective>(), victims)?,
            sentries: map("SENTRIES", size_of::<Sentry>(), victims)?,
            drops: map("DROPS", 8, cpus * Drop::COUNT)?,
            pending: map("PENDING", 8, 1)?,
        };
        for victim in 0..victims {
            counters.set_objective(victim, Objective::NONE);
        }
        let ring = ebpf.take_map("ONSETS").expect("BUG: no such map");
        let onsets = Onsets::new(ring).map_err(|err| Error::Load(err.to_string()))?;
        Ok(Self { counters, slots: SlotTable::new(sizes.slots, table), onsets })
    }
}

fn array(map: Option<&Map>) -> &MapData {
    match map {
        Some(Map::Array(data)) => data,
        other => panic!("BUG: expected an array map, found {other:?}"),
    }
}

fn attach_tracepoint(
    ebpf: &mut Ebpf,
    program: &str,
    tracepoint: &str,
    btf: &Btf,
) -> Result<(), ProgramError> {
    let program: &mut BtfTracePoint = ebpf.program_mut(program).expect("BUG: no such program").try_into()?;
    program.load(tracepoint, btf)?;
    program.attach()?;
    Ok(())
}

/// Program and tracepoint that begin and end a stall.
const fn stall_programs(cause: StallCause) -> [(&'static str, &'static str); 2] {
    match cause {
        StallCause::DirectReclaim => [
            // The end first: a begin without an end would stay in its table.
            ("direct_reclaim_end", "mm_vmscan_direct_reclaim_end"),
            ("direct_reclaim_begin", "mm_vmscan_direct_reclaim_begin"),
        ],
        StallCause::MemcgReclaim => [
            ("memcg_reclaim_end", "mm_vmscan_memcg_reclaim_end"),
            ("memcg_reclaim_begin", "mm_vmscan_memcg_reclaim_begin"),
        ],
        StallCause::Compaction => {
            [("compaction_end", "mm_compaction_end"), ("compaction_begin", "mm_compaction_begin")]
        }
    }
}

/// Each on its own: what this kernel lacks or refuses is reported, not measured.
fn attach_memory_programs(ebpf: &mut Ebpf, support: &Support, btf: &Btf) -> MemoryProbes {
    let mut attach = |programs: &[(&str, &str)]| {
        let mut attached =
            programs.iter().map(|(program, tracepoint)| attach_tracepoint(ebpf, program, tracepoint, btf));
        attached.find_map(Result::err).map(|err| with_causes(&err))
    };
    let stalls_missing = StallCause::ALL.map(|cause| attach(&stall_programs(cause)));
    let oom_kills_missing = if support.oom_kill_names_task {
        attach(&[("oom_kill", "mark_victim")])
    } else {
        Some("this kernel tells only the pid of a task that it kills, as many before 6.8 do".to_owned())
    };
    MemoryProbes { stalls_missing, oom_kills_missing }
}

/// Loads the first pair that the kernel takes, and tells which one it is.
fn load_request_programs(ebpf: &mut Ebpf) -> Result<RequestPrograms, ProgramError> {
    let mut load = |programs: RequestPrograms| -> Result<RequestPrograms, ProgramError> {
        for name in [programs.ingress, programs.egress, programs.egress_sparse] {
            let program: &mut CgroupSkb = ebpf.program_mut(name).expect("BUG: no such program").try_into()?;
            if program.fd().is_err() {
                program.load()?;
            }
        }
        Ok(programs)
    };
    load(BY_EXCHANGE).or_else(|err| {
        tracing::debug!(%err, "requests are counted under locks, as before Linux 5.12");
        load(BY_LOCK)
    })
}

/// Before 5.11 maps count against `RLIMIT_MEMLOCK`. Where it cannot be lifted, loading fails with a clear enough error.
fn lift_memlock_limit() {
    use rustix::process::{Resource, Rlimit, setrlimit};
    if let Err(err) = setrlimit(Resource::Memlock, Rlimit { current: None, maximum: None }) {
        tracing::debug!(%err, "RLIMIT_MEMLOCK stays as it is; kernels since 5.11 do not need it");
    }
}

fn with_causes(err: &dyn std::error::Error) -> String {
    let mut text = err.to_string();
    let mut cause = err.source();
    while let Some(err) = cause {
        let more = err.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = err.source();
    }
    text
}
