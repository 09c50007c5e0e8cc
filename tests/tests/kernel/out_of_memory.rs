//! An agent that the kernel kills for want of memory.

use std::{
    fs,
    io::Write as _,
    os::unix::process::ExitStatusExt as _,
    path::Path,
    process::{ChildStdin, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use enforcer_rig::{
    process::{Process, exec_in},
    sandbox::Group,
};
use enforcer_tests::agent::{Agent, PATIENCE};
use rustix::process::Signal;

use crate::scene::Scene;

/// What agent, guardian and a greedy neighbour may use. Of what the agent has already, the kernel charges nothing.
///
/// More than the kernel gathers of a killed process before it frees any (10,000 pages): of less it may think, for a moment, that
/// killing the neighbour was of no use, and where it could not be forbidden, go on to kill the guardian.
const MEMORY: u64 = 64 << 20;

/// A neighbour of the agent that takes all their memory when it is told to. As in a container, the guardian shares it.
pub struct OutOfMemory {
    trigger: ChildStdin,
    // In the order in which they are taken down.
    _neighbour: Process,
    group: Group,
}

impl OutOfMemory {
    pub fn prepare(scene: &Scene, agent: &Agent) -> Result<Self> {
        let group = scene.sandbox.memory_group("agent", 1024)?;
        group.cap_memory(MEMORY)?;
        let pid = agent.process.id();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
        let guardian = children.split_whitespace().next().context("the agent has no guardian")?;
        for pid in [&pid.to_string(), guardian] {
            fs::write(group.memory_directory().join("cgroup.procs"), pid)?;
        }
        // The first that the kernel kills, and then the neighbour, which is much larger than the guardian.
        fs::write(format!("/proc/{pid}/oom_score_adj"), "1000")?;
        let mut command = exec_in(Some(&group), Signal::KILL, Path::new("/bin/sh"))?;
        command.args(["-c", "read -r now && exec tail /dev/zero"]);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut neighbour = Process::start("the neighbour", &mut command)?;
        Ok(Self { trigger: neighbour.input()?, _neighbour: neighbour, group })
    }

    /// Returns when the agent is dead, with the time at which it was last seen alive: the kernel first tries to find memory, for
    /// as long as it likes.
    pub fn strike(&mut self, agent: &mut Agent) -> Result<Instant> {
        let begun = Instant::now();
        self.trigger.write_all(b"now\n")?;
        let mut alive_at = begun;
        let ended = loop {
            let looked_at = Instant::now();
            if let Some(ended) = agent.process.ended()? {
                break ended;
            }
            alive_at = looked_at;
            ensure!(begun.elapsed() < PATIENCE, "the kernel did not kill the agent");
            sleep(Duration::from_micros(200));
        };
        ensure!(ended.signal() == Some(Signal::KILL.as_raw()), "the agent ended with {ended}");
        let events = ["memory.events", "memory.oom_control"]
            .map(|file| fs::read_to_string(self.group.memory_directory().join(file)).unwrap_or_default());
        let kills =
            events.iter().flat_map(|text| text.lines()).find_map(|line| line.strip_prefix("oom_kill "));
        ensure!(kills.is_some_and(|kills| kills != "0"), "no OOM kill in {events:?}");
        Ok(alive_at)
    }
}
