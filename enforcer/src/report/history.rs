//! Decisions of late, each with what was known, what was done, and what came of it.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::ledger::{Durations, GroupLedger, Ledger, Time};
use crate::{
    decision::{
        cause::{Cause, Evidence},
        plan::{Objective, Plan},
    },
    model::{GroupId, Restraint, Signal},
    policy::{Class, Promise},
    signal::tally::Tally,
};

/// Decisions that are kept.
const KEPT: usize = 256;
/// What came of a decision is judged by what was counted until then.
const OUTCOME_AFTER: Duration = Duration::from_secs(5);

/// A plan that replaced another.
#[derive(Clone, Debug)]
pub struct NewPlan {
    /// Since the agent started.
    pub at: Duration,
    pub before: BTreeMap<GroupId, Restraint>,
    pub plan: Plan,
    /// `None`: it was due at a regular look.
    pub reaction: Option<Reaction>,
}

/// How quick the agent was, on the monotonic clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reaction {
    /// The probes found that slow ones came too thick.
    pub onset_at: Duration,
    /// The last file was written.
    pub in_force_at: Duration,
}

impl Reaction {
    /// From the onset until the restraint was in force.
    pub const fn took(self) -> Duration {
        self.in_force_at.saturating_sub(self.onset_at)
    }
}

/// One decision, as `/v1/decisions` serves it. Times in seconds, CPU in cores.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Decision {
    /// Since the agent started.
    pub at_seconds: f64,
    /// Label of the reason, and the reason in words.
    pub reason: String,
    pub explanation: String,
    pub victim: Option<Victim>,
    /// Why the objective is missed, and what that rests on. `None`: none is, or it is not known to be any more.
    pub cause: Option<Cause>,
    pub evidence: Option<Evidence>,
    /// What changed.
    pub changes: Vec<Change>,
    /// `None`: it was due at a regular look.
    pub reaction: Option<Reaction>,
    /// One window later; `None`: not yet.
    pub outcome: Option<Outcome>,
}

/// The LS group concerned, as it was.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Victim {
    pub name: String,
    pub signal: Signal,
    pub objective_seconds: Option<f64>,
    pub p99_seconds: Option<f64>,
    /// Where the objective is a share of the time.
    #[serde(default)]
    pub objective_ratio: Option<f64>,
    /// Share slower than the objective, or of the time.
    pub slow_ratio: Option<f64>,
    /// Who ran most while it waited for a CPU, and the waiting time per time.
    pub waited_for: Option<(String, f64)>,
    /// Who is likely to use the memory that it lacked most, and the time stalled per time.
    #[serde(default)]
    pub lacked_memory_for: Option<(String, f64)>,
}

/// What holds one BE group back.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Change {
    pub group: String,
    pub before: Restraint,
    pub after: Restraint,
}

/// What was counted from the decision on.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    pub after_seconds: f64,
    pub slow_ratio: Option<f64>,
    pub be_cores: f64,
}

/// The latest decisions, oldest first.
#[derive(Clone, Debug, Default)]
pub struct History(VecDeque<Entry>);

#[derive(Clone, Debug)]
struct Entry {
    decision: Decision,
    at: Duration,
    objective: Option<Objective>,
    /// Totals at the time of the decision.
    counted: Tally,
    be_cpu: Duration,
}

impl History {
    pub fn decisions(&self) -> impl Iterator<Item = &Decision> {
        self.0.iter().map(|entry| &entry.decision)
    }

    /// Notes a change of plan.
    pub fn note(&mut self, change: &NewPlan, ledger: &Ledger) {
        if self.0.len() == KEPT {
            self.0.pop_front();
        }
        let name = |group: GroupId| ledger.name(group);
        let objective = change.plan.reason.objective();
        let verdict = change.plan.verdicts.iter().find(|verdict| Some(verdict.objective) == objective);
        self.0.push_back(Entry {
            decision: Decision {
                at_seconds: change.at.as_secs_f64(),
                reason: change.plan.reason.label().to_owned(),
                explanation: change.plan.reason.sentence(name),
                victim: objective.and_then(|objective| victim(objective, ledger)),
                cause: verdict.map(|verdict| verdict.cause),
                evidence: verdict.map(|verdict| verdict.evidence),
                changes: changes(change, name),
                reaction: change.reaction,
                outcome: None,
            },
            at: change.at,
            objective,
            counted: objective.map_or_else(Tally::default, |objective| counted(objective, ledger)),
            be_cpu: be_cpu(ledger),
        });
    }

    /// Adds what came of the decisions whose window is over.
    pub fn judge(&mut self, now: Duration, ledger: &Ledger) {
        // Judged in order: those that are not are the latest.
        let open = self.0.iter_mut().rev().take_while(|entry| entry.decision.outcome.is_none());
        for entry in open.filter(|entry| now >= entry.at + OUTCOME_AFTER) {
            let seconds = now.saturating_sub(entry.at).as_secs_f64();
            let slow_ratio = entry.objective.and_then(|objective| {
                let until_now = counted(objective, ledger);
                // Another group may have taken the place of one that went.
                let since = Tally {
                    total: until_now.total.checked_sub(entry.counted.total)?,
                    slow: until_now.slow.checked_sub(entry.counted.slow)?,
                };
                since.share()
            });
            let be_cores = be_cpu(ledger).saturating_sub(entry.be_cpu).as_secs_f64() / seconds;
            entry.decision.outcome = Some(Outcome { after_seconds: seconds, slow_ratio, be_cores });
        }
    }
}

fn durations(objective: Objective, group: &GroupLedger) -> Option<&Durations> {
    match objective.signal {
        Signal::RequestLatency => group.requests.as_ref(),
        Signal::RunQueueWait => Some(&group.waits),
        Signal::MemoryStall => None,
    }
}

fn counted(objective: Objective, ledger: &Ledger) -> Tally {
    // One that went while this was on its way here counts nothing any more.
    let Some(group) = ledger.groups.get(objective.victim) else { return Tally::default() };
    if objective.signal == Signal::MemoryStall {
        return milliseconds(ledger.since_start, group.memory.stalled_by(Time::total));
    }
    durations(objective, group).map_or_else(Tally::default, |all| all.tally)
}

/// Of all milliseconds, the stalled ones.
fn milliseconds(all: Duration, stalled: Option<Duration>) -> Tally {
    let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    stalled.map_or_else(Tally::default, |stalled| Tally { total: ms(all), slow: ms(stalled) })
}

fn be_cpu(ledger: &Ledger) -> Duration {
    let all = ledger.groups.values().filter(|group| group.class == Class::BE);
    all.map(|group| group.cpu.total()).sum::<Duration>() + ledger.be_gone
}

fn victim(objective: Objective, ledger: &Ledger) -> Option<Victim> {
    let group = ledger.groups.get(objective.victim)?;
    let threshold = group.slo.promise(objective.signal);
    let durations = durations(objective, group);
    let p99 = durations.and_then(|durations| durations.recent_counts().quantile(0.99));
    let waited = |time: &Time| time.recent().as_secs_f64() / ledger.window().as_secs_f64().max(1.0);
    let worst = group.blame.iter().max_by_key(|(_, time)| time.recent());
    Some(Victim {
        name: group.name.clone(),
        signal: objective.signal,
        objective_seconds: threshold.and_then(Promise::seconds),
        p99_seconds: p99.map(|p99| p99.as_secs_f64()),
        objective_ratio: match threshold {
            Some(Promise::Share(share)) => Some(share.ratio()),
            _ => None,
        },
        slow_ratio: if objective.signal == Signal::MemoryStall {
            milliseconds(ledger.window(), group.memory.stalled_by(Time::recent)).share()
        } else {
            durations.and_then(|durations| durations.recent_tally().share())
        },
        waited_for: worst
            .filter(|(_, time)| !time.recent().is_zero())
            .map(|(&column, time)| (ledger.culprit(column).to_owned(), waited(time))),
        lacked_memory_for: group
            .memory
            .blame
            .iter()
            .max_by_key(|(_, time)| time.recent())
            .filter(|(_, time)| !time.recent().is_zero())
            .map(|(&user, time)| (ledger.memory_user(user).to_owned(), waited(time))),
    })
}

fn changes<'a>(change: &NewPlan, name: impl Fn(GroupId) -> &'a str) -> Vec<Change> {
    let (before, after) = (&change.before, &change.plan.restraints);
    let mut groups: Vec<GroupId> = before.keys().chain(after.keys()).copied().collect();
    groups.sort();
    groups.dedup();
    let of = |restraints: &BTreeMap<GroupId, Restraint>, group| {
        restraints.get(&group).copied().unwrap_or_default()
    };
    let changes = groups.into_iter().map(|group| Change {
        group: name(group).to_owned(),
        before: of(before, group),
        after: of(after, group),
    });
    changes.filter(|change| change.before != change.after).collect()
}
