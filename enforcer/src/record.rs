//! A recorded run: what the agent saw and what it decided, tick by tick, and the same decisions made again.
//!
//! One JSON object per line: a [`Header`], then [`Tick`]s. Decisions are pure, so a replay gives the same plans to the
//! byte, or this is not the program that made the recording.

use std::{
    fs::File,
    io::{BufRead as _, BufReader, BufWriter, Write as _},
    path::{Path, PathBuf},
    sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    thread::JoinHandle,
};

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};

use crate::{
    decision::{
        check,
        governor::{Governor, Mode},
        plan::Plan,
    },
    model::Snapshot,
    policy::Policy,
};

/// Ticks that may wait for the disk: ten seconds of them.
const BACKLOG: usize = 100;

/// What decisions depend on besides the snapshots.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// Of the program that made the recording.
    pub version: String,
    /// CPUs of the node.
    pub cpus: u32,
    pub shadow: bool,
    /// The text of the policy file.
    pub policy: String,
}

impl Header {
    /// The header of a recording that this program makes.
    pub fn new(cpus: u32, shadow: bool, policy: String) -> Self {
        Self { version: env!("CARGO_PKG_VERSION").to_owned(), cpus, shadow, policy }
    }
}

/// One look at the node, and the answer.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Tick {
    pub node: Snapshot,
    pub plan: Plan,
}

/// As [`Tick`], to write.
#[derive(Serialize)]
struct TickRef<'a> {
    node: &'a Snapshot,
    plan: &'a Plan,
}

/// Writes a recording. The file is written by a thread, so that a slow disk does not delay the loop.
#[derive(Debug)]
pub struct Recorder {
    lines: Option<SyncSender<Vec<u8>>>,
    writer: Option<JoinHandle<()>>,
}

impl Recorder {
    /// Starts a recording; a file of that name is replaced.
    ///
    /// # Errors
    /// Where the file cannot be written.
    pub fn start(path: &Path, header: &Header) -> Result<Self> {
        let cannot = || format!("cannot write {}: name another file with --record", path.display());
        let mut file = BufWriter::new(File::create(path).with_context(cannot)?);
        serde_json::to_writer(&mut file, header)?;
        file.write_all(b"\n").with_context(cannot)?;
        let (lines, received) = sync_channel(BACKLOG);
        let path = path.to_owned();
        let writer = std::thread::spawn(move || {
            if let Err(err) = write_all(&mut file, &received) {
                tracing::error!("the recording ends, {} cannot be written: {err}", path.display());
            }
        });
        Ok(Self { lines: Some(lines), writer: Some(writer) })
    }

    /// Records a tick. A recording with a hole would be of no use: where the disk does not keep up, it ends.
    pub fn tick(&mut self, node: &Snapshot, plan: &Plan) {
        let Some(lines) = &self.lines else { return };
        let mut line = serde_json::to_vec(&TickRef { node, plan }).expect("BUG: plain data");
        line.push(b'\n');
        match lines.try_send(line) {
            Ok(()) => return,
            Err(TrySendError::Full(_)) => tracing::error!("the recording ends: the disk is too slow for it"),
            // The writer said why.
            Err(TrySendError::Disconnected(_)) => {}
        }
        self.lines = None;
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.lines = None;
        self.writer.take().map(JoinHandle::join);
    }
}

fn write_all(file: &mut BufWriter<File>, lines: &Receiver<Vec<u8>>) -> std::io::Result<()> {
    // Whatever is there is written at once; what comes in while that goes on, next.
    while let Ok(line) = lines.recv() {
        file.write_all(&line)?;
        for line in lines.try_iter() {
            file.write_all(&line)?;
        }
        file.flush()?;
    }
    Ok(())
}

/// What to print of a replay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Print {
    /// Each change, for people.
    Changes,
    /// All plans, one JSON object per line.
    Plans,
}

/// Decides again what was recorded in `path`.
///
/// # Errors
/// Where the file is no recording, or the plans are not those recorded.
pub fn replay(path: &Path, print: Print) -> Result<()> {
    let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut lines = BufReader::new(file).lines();
    let first = lines.next().context("the recording is empty")??;
    let header: Header = serde_json::from_str(&first).with_context(|| {
        format!("{}:1: this is no recording; `enforcer agent --record FILE` makes one", path.display())
    })?;
    let policy = Policy::parse(&header.policy, &PathBuf::from("recorded policy"), header.cpus)?;
    let mode = if header.shadow { Mode::Shadow } else { Mode::Enforce };
    let mut governor = Governor::new(&policy, mode);
    let mut last = Plan::default();
    let mut ticks = 0_u64;
    for (index, line) in lines.enumerate() {
        let (line, number) = (line?, index + 2);
        let Ok(recorded) = serde_json::from_str::<Tick>(&line) else {
            // An agent that was killed leaves half a line behind.
            eprintln!("{}:{number}: the recording ends in the middle of a line", path.display());
            break;
        };
        let plan = decide(&mut governor, &recorded.node, &policy);
        let (now, then) = (serde_json::to_string(&plan)?, serde_json::to_string(&recorded.plan)?);
        if now != then {
            bail!(
                "{}:{number}: another plan than enforcer {} made:\nrecorded {then}\nreplayed {now}",
                path.display(),
                header.version
            );
        }
        match print {
            Print::Plans => println!("{now}"),
            Print::Changes if plan != last => println!("{}", change(&recorded.node, &plan, &policy)),
            Print::Changes => {}
        }
        last = plan;
        ticks += 1;
    }
    if print == Print::Changes {
        println!("{ticks} ticks, all plans as recorded");
    }
    Ok(())
}

/// The plan for a node, empty if it fails the check.
fn decide(governor: &mut Governor, node: &Snapshot, policy: &Policy) -> Plan {
    let mut plan = governor.decide(node).clone();
    // The agent that made the recording said what was wrong.
    check::clear_if_insane(&mut plan, policy).ok();
    plan
}

fn change(node: &Snapshot, plan: &Plan, policy: &Policy) -> String {
    let name = |group: crate::model::GroupId| policy.groups[group.0].name.as_str();
    let restraints = plan.restraints.iter().map(|(&group, restraint)| format!("{} {restraint}", name(group)));
    let restraints = restraints.collect::<Vec<_>>().join("; ");
    let restraints = if restraints.is_empty() { "free".to_owned() } else { restraints };
    format!("{:>9.1} s  {restraints:<24}  {}", node.taken_at.as_secs_f64(), plan.reason.sentence(name))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tempfile::NamedTempFile;

    use super::*;
    use crate::{
        model::{GroupSnapshot, Lever, Levers, Restraint},
        signal::tally::Tally,
    };

    const POLICY: &str = "groups:\n\
        - { name: web, class: LS, cgroups: [web], slo: { requestLatency: { p99: 1ms } } }\n\
        - { name: batch, class: BE, cgroups: [batch] }\n";

    /// Half a minute in which BE hurts, as an agent would record it.
    fn recording() -> NamedTempFile {
        let file = NamedTempFile::new().unwrap();
        let header = Header { version: "0".to_owned(), cpus: 2, shadow: false, policy: POLICY.to_owned() };
        let policy = Policy::parse(POLICY, file.path(), 2).unwrap();
        let mut governor = Governor::new(&policy, Mode::Enforce);
        let mut recorder = Recorder::start(file.path(), &header).unwrap();
        let mut be_cores = 1.3;
        for tick in 1..300_u32 {
            let slow = if be_cores > 0.3 { 5 } else { 0 };
            let web = GroupSnapshot {
                cpu_cores: Some(0.1 * f64::from(tick).sqrt()),
                requests: Some(Tally { total: 100, slow }),
                ..GroupSnapshot::default()
            };
            let levers = Levers::default().with(Lever::Quota);
            let batch = GroupSnapshot { cpu_cores: Some(be_cores), levers, ..GroupSnapshot::default() };
            let taken_at = Duration::from_millis(100) * tick + Duration::from_nanos(u64::from(tick) * 7);
            let node = Snapshot { taken_at, steal: Some(0.001), groups: vec![web, batch], blame: Vec::new() };
            let plan = decide(&mut governor, &node, &policy);
            be_cores = plan.restraints.values().next().and_then(Restraint::cores).unwrap_or(1.3);
            recorder.tick(&node, &plan);
            // Slower than a real one, which has ten ticks per second, would be.
            std::thread::sleep(Duration::from_micros(200));
        }
        file
    }

    #[test]
    fn what_was_recorded_is_decided_again_to_the_byte() {
        let file = recording();
        let text = std::fs::read_to_string(file.path()).unwrap();
        assert_eq!(text.lines().count(), 300);
        assert!(text.contains("squeeze"), "nothing happened");
        replay(file.path(), Print::Plans).unwrap();
    }

    #[test]
    fn another_plan_is_noticed() {
        let file = recording();
        let text = std::fs::read_to_string(file.path()).unwrap();
        std::fs::write(file.path(), text.replace("\"period_us\":1000000", "\"period_us\":999999")).unwrap();
        let err = replay(file.path(), Print::Plans).unwrap_err().to_string();
        assert!(err.contains("another plan than enforcer 0 made"), "{err}");
    }

    #[test]
    fn what_is_no_recording_is_told_so() {
        let file = NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "groups:\n").unwrap();
        let err = replay(file.path(), Print::Plans).unwrap_err().to_string();
        assert!(err.contains("this is no recording"), "{err}");
    }
}
