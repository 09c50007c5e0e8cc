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
    model::{GroupId, Snapshot},
    places::Places,
    policy::{Group, Policy},
    urgency,
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

/// One line after the header: a look at the node and the answer, or a group that came, is another one now, or went. No
/// untagged enum: serde would not find the numbers that are keys of maps.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Line {
    node: Option<Box<Snapshot>>,
    plan: Option<Plan>,
    join: Option<(GroupId, Group)>,
    leave: Option<GroupId>,
}

/// A [`Line`] to write.
#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
enum Change<'a> {
    Join(GroupId, &'a Group),
    Leave(GroupId),
}

/// A [`Line`] to write.
#[derive(Serialize)]
struct Tick<'a> {
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
            urgency::step_back();
            if let Err(err) = write_all(&mut file, &received) {
                tracing::error!("the recording ends, {} cannot be written: {err}", path.display());
            }
        });
        Ok(Self { lines: Some(lines), writer: Some(writer) })
    }

    /// Records a tick.
    pub fn tick(&mut self, node: &Snapshot, plan: &Plan) {
        self.line(&Tick { node, plan });
    }

    /// Records that a group came, or is another one now.
    pub fn join(&mut self, id: GroupId, group: &Group) {
        self.line(&Change::Join(id, group));
    }

    /// Records that a group went.
    pub fn leave(&mut self, id: GroupId) {
        self.line(&Change::Leave(id));
    }

    /// A recording with a hole would be of no use: where the disk does not keep up, it ends.
    fn line(&mut self, line: &impl Serialize) {
        let Some(lines) = &self.lines else { return };
        let mut line = serde_json::to_vec(line).expect("BUG: plain data");
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
    let mut lines = BufReader::new(file).lines().peekable();
    let first = lines.next().context("the recording is empty")??;
    let header: Header = serde_json::from_str(&first).with_context(|| {
        format!("{}:1: this is no recording; `enforcer agent --record FILE` makes one", path.display())
    })?;
    let policy = Policy::parse(&header.policy, &PathBuf::from("recorded policy"), header.cpus)?;
    let mode = if header.shadow { Mode::Shadow } else { Mode::Enforce };
    let mut governor = Governor::new(mode, policy.cpus);
    let mut groups: Places<Group> = policy.groups.into_iter().collect();
    groups.iter().for_each(|(id, group)| governor.join(id, group));
    let mut last = Plan::default();
    let mut ticks = 0_u64;
    let mut number = 1_u64;
    while let Some(line) = lines.next() {
        number += 1;
        let line = match serde_json::from_str(&line?) {
            Ok(line) => line,
            // An agent that was killed leaves half a line behind.
            Err(_) if lines.peek().is_none() => {
                eprintln!("{}:{number}: the recording ends in the middle of a line", path.display());
                break;
            }
            Err(err) => bail!("{}:{number}: this line is damaged: {err}", path.display()),
        };
        let (node, recorded) = match line {
            Line { node: Some(node), plan: Some(plan), .. } => (node, plan),
            Line { join: Some((id, group)), .. } => {
                governor.join(id, &group);
                groups.put(id, group);
                continue;
            }
            Line { leave: Some(id), .. } => {
                governor.leave(id);
                groups.take(id);
                continue;
            }
            Line { .. } => {
                bail!("{}:{number}: neither a look at the node nor a change of groups", path.display())
            }
        };
        let plan = decide(&mut governor, &node, &groups);
        let (now, then) = (serde_json::to_string(&plan)?, serde_json::to_string(&recorded)?);
        if now != then {
            bail!(
                "{}:{number}: another plan than enforcer {} made:\nrecorded {then}\nreplayed {now}",
                path.display(),
                header.version
            );
        }
        match print {
            Print::Plans => println!("{now}"),
            Print::Changes if plan != last => println!("{}", change(&node, &plan, &groups)),
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
fn decide(governor: &mut Governor, node: &Snapshot, groups: &Places<Group>) -> Plan {
    let mut plan = governor.decide(node).clone();
    // The agent that made the recording said what was wrong.
    check::clear_if_insane(&mut plan, groups).ok();
    plan
}

fn change(node: &Snapshot, plan: &Plan, groups: &Places<Group>) -> String {
    let name = |id: GroupId| groups.get(id).map_or("(gone)", |group| group.name.as_str());
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

    const BATCH: GroupId = GroupId(1);

    /// Half a minute in which BE hurts, as an agent would record it.
    fn recording() -> NamedTempFile {
        let file = NamedTempFile::new().unwrap();
        let header = Header { version: "0".to_owned(), cpus: 2, shadow: false, policy: POLICY.to_owned() };
        let policy = Policy::parse(POLICY, file.path(), 2).unwrap();
        let mut groups: Places<Group> = policy.groups.into_iter().collect();
        let mut governor = Governor::new(Mode::Enforce, 2);
        groups.iter().for_each(|(id, group)| governor.join(id, group));
        let mut recorder = Recorder::start(file.path(), &header).unwrap();
        let mut be_cores = 1.3;
        for tick in 1..300_u32 {
            if tick == 250 {
                // BE goes, and another one takes its place.
                governor.leave(BATCH);
                recorder.leave(BATCH);
                let next = Group { name: "next".to_owned(), ..groups[BATCH].clone() };
                governor.join(BATCH, &next);
                recorder.join(BATCH, &next);
                groups.put(BATCH, next);
            }
            let slow = if be_cores > 0.3 { 5 } else { 0 };
            let web = GroupSnapshot {
                cpu_cores: Some(0.1 * f64::from(tick).sqrt()),
                requests: Some(Tally { total: 100, slow }),
                ..GroupSnapshot::default()
            };
            let levers = Levers::default().with(Lever::Quota);
            let batch = GroupSnapshot { cpu_cores: Some(be_cores), levers, ..GroupSnapshot::default() };
            let taken_at = Duration::from_millis(100) * tick + Duration::from_nanos(u64::from(tick) * 7);
            let node =
                Snapshot { taken_at, steal: Some(0.001), groups: vec![web, batch], ..Snapshot::default() };
            let plan = decide(&mut governor, &node, &groups);
            be_cores = plan.restraints.values().next().and_then(Restraint::cores).unwrap_or(1.3);
            recorder.tick(&node, &plan);
            // Slower than a real one, which has ten ticks per second, would be.
            std::thread::sleep(Duration::from_millis(2));
        }
        file
    }

    #[test]
    fn what_was_recorded_is_decided_again_to_the_byte() {
        let file = recording();
        let text = std::fs::read_to_string(file.path()).unwrap();
        assert_eq!(text.lines().count(), 302);
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
    fn half_a_line_is_forgiven_at_the_end_only() {
        let file = recording();
        let text = std::fs::read_to_string(file.path()).unwrap();
        std::fs::write(file.path(), &text[..text.len() - 9]).unwrap();
        replay(file.path(), Print::Plans).unwrap();
        std::fs::write(file.path(), text.replacen("\"taken_at\"", "\"taken", 1)).unwrap();
        let err = replay(file.path(), Print::Plans).unwrap_err().to_string();
        assert!(err.contains(":2: this line is damaged"), "{err}");
    }

    #[test]
    fn what_is_no_recording_is_told_so() {
        let file = NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "groups:\n").unwrap();
        let err = replay(file.path(), Print::Plans).unwrap_err().to_string();
        assert!(err.contains("this is no recording"), "{err}");
    }
}
