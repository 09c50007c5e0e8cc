//! What has to be there before the first tick.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use enforcer_ebpf::layout::{FIRST_CULPRIT, FIRST_SLOT, FIRST_VICTIM};

use super::{
    Agent, Counts, Options, citizen::Citizen, cost::CostMeter, early::EarlyLooks, lessons::Lessons,
    memory::MemoryMeter, meter::Meter, open_journal, steal::StealMeter,
};
use crate::{
    actuation::{Actuator, lease::Lease},
    cgroup::{
        cpu_list::CpuList,
        hierarchy::{Layout, Mounts},
        tree::Tree,
    },
    decision::{
        governor::{Governor, Mode},
        plan::Plan,
        shed::Shedder,
    },
    guardian::Guardian,
    kernel::{
        probes::{Identity, Loaded, Probes, possible_cpus},
        support::{Sizes, Support},
    },
    model::{GroupId, Snapshot},
    places::Places,
    policy::{self, Class, Policy},
    record::{Header, Recorder},
    report::{
        ledger::Ledger,
        serve::{Shared, serve},
    },
};

impl Agent {
    pub(super) fn start(options: &Options) -> Result<Self> {
        let cpus = possible_cpus()?;
        let online = online_cpus()?;
        let online_count = u32::try_from(online.len()).expect("CPU numbers fit 32 bits");
        let policy_text = policy::read(&options.policy)?;
        let policy = Policy::parse(&policy_text, &options.policy, online_count)?;
        let mounts = Mounts::below(&options.cgroup_root)?;
        let journal = open_journal(&options.state_dir, &mounts)?;

        anyhow::ensure!(
            options.node.is_some() || !policy.groups.is_empty(),
            "{} names no groups, and without --node NAME there are no pods either",
            options.policy.display()
        );

        let support = Support::of_running_kernel(options.force_wakeups)?;
        let sizes = sizes(&policy, cpus, options.node.is_some());
        let Loaded { probes, counters, slots, onsets, log } =
            Probes::load(&support, identity(&mounts), sizes)?;
        if let Some(missing) = &probes.request_latency_missing {
            tracing::warn!("request latency is not measured: {missing}");
        }
        let ledger = Ledger::new(
            policy.overhead.ratio(),
            options.shadow,
            sizes,
            support.wait_source,
            probes.request_latency_missing.clone(),
            &probes.memory,
        );
        let shared = Shared::new(ledger);
        let address = serve(options.listen, shared.clone()).with_context(|| {
            format!("cannot listen on {}: choose another address with --listen", options.listen)
        })?;

        let patterns = policy.groups.iter().enumerate().flat_map(|(index, group)| {
            group.patterns.iter().map(move |pattern| (GroupId(index), pattern.clone()))
        });
        let header = Header::new(online_count, options.shadow, policy_text);
        let recorder = options.record.as_deref().map(|path| Recorder::start(path, &header)).transpose()?;
        let cluster = options.node.clone().map(|place| {
            let (settings, first) = (policy.kubernetes.clone(), policy.groups.len());
            Citizen::start(place, settings, online_count, first, &options.state_dir, options.shadow)
        });
        let cluster = cluster.transpose()?;
        let lease = Lease::open(&options.state_dir)?;
        let guardian = start_guardian(options)?;
        let tree = Tree::new(mounts.clone(), patterns.collect(), cluster.is_some());
        let mode = if options.shadow { Mode::Shadow } else { Mode::Enforce };
        tracing::info!(
            %address, groups = policy.groups.len(), layout = ?mounts.layout(), wait_source = ?support.wait_source,
            shadow = options.shadow, kernel_bytes = sizes.memory_bytes(), "probes attached"
        );
        let serves = probes.request_latency_missing.is_none();
        let mut agent = Self {
            governor: Governor::new(mode, policy.cpus),
            meter: Meter::new(counters, slots, serves, &probes.memory),
            memory: MemoryMeter::new(&probes.memory),
            lessons: Lessons::of(&options.state_dir),
            groups: Places::default(),
            cost: CostMeter::new(online.len()),
            shedder: Shedder::new(policy.overhead.ratio()),
            steal: StealMeter::default(),
            actuator: Actuator::new(mounts, journal, options.shadow),
            cluster,
            recorder,
            lease,
            guardian,
            options: options.clone(),
            online,
            policy,
            tree,
            probes,
            onsets: onsets.watch().context("the ring of onsets cannot be watched")?,
            log,
            shared,
            started: Instant::now(),
            snapshot: Snapshot::default(),
            plan: Plan::default(),
            early: EarlyLooks::new(),
            report_at: Duration::ZERO,
            reported_at: Duration::ZERO,
            changes: Vec::new(),
            roster: Vec::new(),
            joins: Vec::new(),
            complain_at: Duration::ZERO,
            counts: Counts::default(),
        };
        for (place, group) in agent.policy.groups.clone().into_iter().enumerate() {
            agent.join(GroupId(place), group);
        }
        Ok(agent)
    }
}

/// CPUs that run now; one that comes later is not lent to BE.
fn online_cpus() -> Result<CpuList> {
    const FILE: &str = "/sys/devices/system/cpu/online";
    Ok(std::fs::read_to_string(FILE).context(FILE)?.parse()?)
}

/// Where there is anything to guard.
pub fn start_guardian(options: &Options) -> Result<Option<Guardian>> {
    let watchdog = options.watchdog.filter(|_| !options.shadow);
    watchdog.map(|watchdog| Guardian::start(&options.cgroup_root, &options.state_dir, watchdog)).transpose()
}

/// On hybrid hosts a directory of either hierarchy may be the one that the policy names.
const fn identity(mounts: &Mounts) -> Identity {
    match mounts.layout() {
        Layout::V2 => Identity::V2,
        Layout::Hybrid => Identity::Both,
        Layout::V1 => Identity::V1Cpu,
    }
}

/// `pods`: there will be some beside the groups of the policy.
fn sizes(policy: &Policy, cpus: u32, pods: bool) -> Sizes {
    let count = |class| policy.groups.iter().filter(|group| group.class == class).count();
    let number = |n: usize| u32::try_from(n).expect("the policy limits groups");
    let of_pods = |limit| if pods { limit } else { 0 };
    Sizes {
        cpus,
        slots: FIRST_SLOT + policy.cgroups_max,
        victims: FIRST_VICTIM + number(count(Class::LS)) + of_pods(policy.kubernetes.victims_max),
        culprits: FIRST_CULPRIT + number(policy.groups.len()) + of_pods(policy.kubernetes.pods_max),
    }
}
