//! What should be in force, and why.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};

use super::{
    cause::{Cause, Verdict},
    trial::Effect,
};
use crate::model::{GroupId, Restraint, Signal};

/// What enforcer wants in force. A group that is absent has what its owner gave it, so an empty plan undoes everything.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    pub restraints: BTreeMap<GroupId, Restraint>,
    pub reason: Reason,
    /// One per objective that is missed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub verdicts: Vec<Verdict>,
    /// Groups that had no more than their floor for so long that they are better off on another node.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub evict: Vec<GroupId>,
    /// Wants to be asked again then, because something in force must end before the next tick.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub again_at: Option<Duration>,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            restraints: BTreeMap::new(),
            reason: Reason::Met,
            verdicts: Vec::new(),
            evict: Vec::new(),
            again_at: None,
        }
    }
}

/// One objective of one LS group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Objective {
    pub victim: GroupId,
    pub signal: Signal,
}

/// Why the plan is as it is.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Reason {
    /// No objective is known to be missed.
    Met,
    /// Missed, but no BE group runs: it cannot be the cause.
    NoBe { objective: Objective },
    /// Missed, but stopping BE was tried and did not help, was not needed, or could not tell. Not tried again before `retry_at`.
    NoHelp { objective: Objective, cause: Cause, effect: Effect, retry_at: Duration },
    /// Missed while BE runs, which yields: it runs only where nobody else wants the CPU. Nothing is proven yet.
    Yield { objective: Objective },
    /// Missed; finding out whether BE is the cause.
    Trial { objective: Objective },
    /// BE is the cause and keeps this share (0 to 1) of what it wants above its floor.
    Squeeze { objective: Objective, share: f64, proof: Proof },
    /// Shadow mode: missed while BE ran; it would have been squeezed at once, or tried. `takes_cores`: what that would cost
    /// BE at first.
    Shadow { objective: Objective, cause: Cause, takes_cores: f64 },
}

/// How it is known that BE is the cause.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Proof {
    /// The kernel saw BE run while the victim waited: seconds per second.
    Blame { waited_for_be: f64 },
    /// BE took memory in while the victim stalled for some.
    Memory,
    /// Stopping BE helped.
    Trial(Effect),
    /// The same BE had been the cause a while ago.
    Remembered,
}

impl Reason {
    /// A fixed word for metric labels and logs.
    pub const fn label(&self) -> &'static str {
        match self {
            Self::Met => "met",
            Self::NoBe { .. } => "no_be",
            Self::NoHelp { .. } => "no_help",
            Self::Yield { .. } => "yield",
            Self::Trial { .. } => "trial",
            Self::Squeeze { .. } => "squeeze",
            Self::Shadow { .. } => "shadow",
        }
    }

    /// All labels, so that a metric can show zeros.
    pub const LABELS: [&'static str; 7] = ["met", "no_be", "no_help", "yield", "trial", "squeeze", "shadow"];

    /// The objective concerned.
    pub const fn objective(&self) -> Option<Objective> {
        match self {
            Self::Met => None,
            Self::NoBe { objective }
            | Self::NoHelp { objective, .. }
            | Self::Yield { objective }
            | Self::Trial { objective }
            | Self::Squeeze { objective, .. }
            | Self::Shadow { objective, .. } => Some(*objective),
        }
    }

    /// A sentence for people. `name` gives the name of a group.
    pub fn sentence<'a>(&self, name: impl Fn(GroupId) -> &'a str) -> String {
        let missed = |objective: &Objective| {
            format!("{} misses its {} objective", name(objective.victim), objective.signal)
        };
        match self {
            Self::Met => "no objective is missed".to_owned(),
            Self::NoBe { objective } => format!("{}, but no BE runs", missed(objective)),
            Self::NoHelp { objective, cause, effect, retry_at } => {
                let why = if effect.is_met_with_be() {
                    format!(", but met it while BE ran in a trial ({})", comparison(effect))
                } else if effect.is_nothing() {
                    ", and a trial had nothing to compare: BE could not be stopped, LS had nothing to do, or the \
                     hypervisor had the CPUs"
                        .to_owned()
                } else if effect.is_undecided() {
                    let stalls = if effect.is_dispersed() { ", in a few long stalls" } else { "" };
                    let seen = comparison(effect);
                    format!("{stalls}: a trial could not tell whether BE is the cause ({seen})")
                } else {
                    let (seen, cause) = (comparison(effect), cause.words());
                    format!(", but stopping BE did not help ({seen}): it suffers from {cause}")
                };
                let retry_at = retry_at.as_secs_f64();
                format!(
                    "{}{why}; not tried again before second {retry_at:.0} unless BE grows",
                    missed(objective)
                )
            }
            Self::Yield { objective } => {
                format!(
                    "{} while BE runs, which yields its CPUs to whoever else wants them",
                    missed(objective)
                )
            }
            Self::Trial { objective } => {
                format!("{}: finding out whether BE is the cause", missed(objective))
            }
            Self::Squeeze { objective, share, proof } => {
                let kept = if *share >= 1.0 {
                    "no quota holds it back now".to_owned()
                } else {
                    format!("it keeps {:.0} % of what it wants above its floor", share * 100.0)
                };
                let victim = name(objective.victim);
                format!(
                    "BE made {victim} miss its {} objective ({}); {kept}",
                    objective.signal,
                    proven(proof)
                )
            }
            Self::Shadow { objective, cause, takes_cores } => {
                let would = if *cause == Cause::BeCpu {
                    format!("BE would lose up to {takes_cores:.2} cores")
                } else {
                    format!("stopping BE, {takes_cores:.2} cores, would be tried for some seconds")
                };
                format!("{} while BE runs; shadow mode: {would}", missed(objective))
            }
        }
    }
}

fn proven(proof: &Proof) -> String {
    match proof {
        Proof::Blame { waited_for_be } => {
            format!("it waited {:.0} ms per second for a CPU on which BE ran", waited_for_be * 1e3)
        }
        Proof::Memory => "it took memory in while the other stalled for some".to_owned(),
        Proof::Trial(effect) => comparison(effect),
        Proof::Remembered => "as it had been proven to do before".to_owned(),
    }
}

fn comparison(effect: &Effect) -> String {
    let percent =
        |share: Option<f64>| share.map_or_else(|| "-".to_owned(), |share| format!("{:.1} %", share * 100.0));
    let certainty = effect.chance.map_or_else(
        || format!("z {:.1}", effect.z()),
        |chance| format!("by chance with a probability of {chance:.3}"),
    );
    format!(
        "{} slow with BE, {} without, {certainty}; it cost BE {:.1} CPU seconds",
        percent(effect.with_be.share()),
        percent(effect.without_be.share()),
        effect.be_lost_core_seconds
    )
}
