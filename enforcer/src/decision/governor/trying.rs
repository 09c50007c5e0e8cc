//! Trials: who is stopped, and what follows from what that showed.

use std::{collections::BTreeMap, time::Duration};

use super::{Governor, Phase, squeeze::Squeeze, squeezing::Blamed, yielding::Yielding};
use crate::{
    decision::{
        plan::{Objective, Proof},
        trial::{Effect, Step, Trial},
    },
    model::{GroupId, Lever, Signal, Snapshot},
    signal::tally::ALLOWED,
};

/// The slow share that a first quota aims at, of what is allowed, and the most it leaves.
const AIM: f64 = 0.7;
const FIRST_SHARE_MAX: f64 = 0.6;
/// So many BE workloads are tried one by one before all together.
const SINGLES_MAX: usize = 3;
/// BE that uses more than this part of its CPUs while it should stand still was not stopped.
const NOT_STOPPED: f64 = 0.5;

/// A trial that goes on.
#[derive(Debug)]
pub struct Trying {
    pub trial: Trial,
    pub watched: Objective,
    /// Who is stopped.
    pub who: Vec<GroupId>,
    /// When it ran last.
    pub ran_at: Duration,
    /// Who is tried next, last first.
    pub next: Vec<Vec<GroupId>>,
    /// The squeeze that is to be verified.
    pub proven: Option<Squeeze>,
    /// BE that is not stopped yields.
    pub yields: Option<Yielding>,
    /// What they used while they were stopped, and while they were not.
    pub stopped: Usage,
    pub running: Usage,
    pub observed_until: Duration,
}

/// CPUs used over some time.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    core_seconds: f64,
    seconds: f64,
}

impl Governor {
    /// Who is to be tried: what runs, one workload after the other, the likeliest first, then all of them. `yields`: BE that
    /// is not stopped.
    pub(super) fn try_without_be(&self, watched: Objective, yields: Option<Yielding>) -> Option<Phase> {
        let objective = &self.objectives[&watched];
        let running = || self.be.values().filter(|be| be.runs() && be.has(Lever::Quota));
        let mut workloads: BTreeMap<&str, (f64, Vec<GroupId>)> = BTreeMap::new();
        for be in running() {
            let (guilt, who) = workloads.entry(&be.workload).or_default();
            *guilt += objective.waited_for(be.id) + be.usage;
            who.push(be.id);
        }
        let all = (workloads.len() > 1).then(|| running().map(|be| be.id).collect());
        let mut singles: Vec<(f64, Vec<GroupId>)> = workloads.into_values().collect();
        singles.sort_by(|a, b| b.0.total_cmp(&a.0));
        let singles = singles.into_iter().take(SINGLES_MAX).map(|(_, who)| who);
        let mut next: Vec<Vec<GroupId>> = singles.chain(all).collect();
        next.reverse();
        self.try_next(watched, next, yields)
    }

    fn try_next(
        &self,
        watched: Objective,
        mut next: Vec<Vec<GroupId>>,
        yields: Option<Yielding>,
    ) -> Option<Phase> {
        let who = next.pop()?;
        Some(Phase::Trying(Trying { yields, ..self.trying(watched, who, next, None) }))
    }

    pub(super) fn trying(
        &self,
        watched: Objective,
        who: Vec<GroupId>,
        next: Vec<Vec<GroupId>>,
        proven: Option<Squeeze>,
    ) -> Trying {
        let now = self.taken_at;
        let seed = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        let trial = Trial::start(now, self.objectives[&watched].rate_hz, seed);
        Trying {
            trial,
            watched,
            who,
            ran_at: now,
            next,
            proven,
            yields: None,
            stopped: Usage::default(),
            running: Usage::default(),
            observed_until: now,
        }
    }

    pub(super) fn go_on_trying(&mut self, mut trying: Trying, node: &Snapshot, spoilt: bool) -> Phase {
        let now = self.taken_at;
        let watched = trying.watched;
        let tally = self.objectives[&watched].tally(node).unwrap_or_default();
        if trying.who.iter().any(|id| self.be[id].runs_now(node)) {
            trying.ran_at = now;
        }
        trying.note_usage(now, node);
        if !spoilt && let Some(blamed) = self.blamed_meanwhile(&trying) {
            let squeeze = match trying.proven {
                Some(squeeze) => self.squeeze_besides(squeeze, blamed),
                None => self.squeeze_blamed(blamed).beside(trying.yields),
            };
            return Phase::Squeeze(squeeze);
        }
        let outcome = trying.trial.observe(now, (!spoilt).then_some(tally));
        if trying.trial.is_spoilt() {
            // Whoever is next would be stopped for nothing as well.
            return self.could_not_tell(watched, Effect::default(), trying.proven, trying.yields);
        }
        let step = match outcome {
            Step::NoHelp(_) if trying.was_not_carried_out() => Step::NoHelp(Effect::default()),
            step => step.at_a_cost_of(trying.lost_core_seconds()),
        };
        match step {
            Step::Continue { .. } => Phase::Trying(trying),
            Step::NoHelp(_) | Step::Met(_) if now > trying.ran_at + trying.trial.longest_stop() => {
                // It ended by itself meanwhile, or yields to too many: nothing was compared.
                self.reset_alarms();
                match trying.proven {
                    Some(squeeze) => self.release(squeeze),
                    None => trying.given_up(),
                }
            }
            Step::Met(effect) => match trying.proven {
                Some(mut squeeze) => {
                    self.did_not_help(watched, effect, trying.yields.is_some());
                    squeeze.hold.allow_all();
                    self.release(squeeze)
                }
                None => self.spare(watched, effect, trying.yields),
            },
            Step::NoHelp(effect) => {
                if let Some(phase) = self.try_next(watched, trying.next, trying.yields) {
                    return phase;
                }
                if effect.is_undecided() {
                    return self.could_not_tell(watched, effect, trying.proven, trying.yields);
                }
                let victim = &self.objectives[&watched].workload;
                self.learned.retain(|learned| !learned.is_of(victim, watched.signal));
                self.spare(watched, effect, trying.yields)
            }
            Step::Helps(effect) => {
                self.watched_mut(watched).helped();
                let proof = Proof::Trial(effect);
                if let Some(squeeze) = trying.proven {
                    self.reset_alarms();
                    return Phase::Squeeze(squeeze.proven_again(now, proof));
                }
                let squeeze = self.squeeze(watched, trying.who, proof, first_share(effect));
                Phase::Squeeze(squeeze.beside(trying.yields))
            }
        }
    }

    /// Whoever is named meanwhile does not wait for the end of somebody else's trial, and who takes the memory that is missed, which
    /// is looked at every second, needs none.
    fn blamed_meanwhile(&self, trying: &Trying) -> Option<Blamed> {
        let is_of_memory = trying.watched.signal == Signal::MemoryStall && trying.proven.is_none();
        let takes_memory = is_of_memory.then(|| self.blamed(trying.watched)).flatten();
        takes_memory.or_else(|| self.blamed_besides(&trying.who, trying.yields.is_some()))
    }

    /// Too little was seen to let BE go that had been proven to be the cause, and to squeeze what had not.
    fn could_not_tell(
        &mut self,
        watched: Objective,
        effect: Effect,
        proven: Option<Squeeze>,
        yields: Option<Yielding>,
    ) -> Phase {
        let Some(squeeze) = proven else { return self.spare(watched, effect, yields) };
        self.reset_alarms();
        Phase::Squeeze(squeeze.resumed(self.taken_at))
    }

    /// A trial proved nothing against BE. If it yielded, it goes on where that has been of use.
    fn spare(&mut self, watched: Objective, effect: Effect, yields: Option<Yielding>) -> Phase {
        let now = self.taken_at;
        self.did_not_help(watched, effect, yields.is_some());
        let Some(yielding) = yields else { return Phase::Free };
        if yielding.has_helped(watched, effect) {
            return Phase::Yielding(yielding.resumed());
        }
        self.watched_mut(yielding.watched).yielding.was_in_vain(now);
        Phase::Free
    }

    fn did_not_help(&mut self, watched: Objective, effect: Effect, yielded: bool) {
        let (now, be_cores) = (self.taken_at, self.be_wants());
        self.watched_mut(watched).did_not_help(now, effect, yielded, be_cores);
        self.reset_alarms();
    }
}

impl Trying {
    /// Takes note of what they used since the last snapshot.
    fn note_usage(&mut self, now: Duration, node: &Snapshot) {
        let seconds = now.saturating_sub(self.observed_until).as_secs_f64();
        self.observed_until = now;
        let cores: f64 = self.who.iter().filter_map(|id| node.group(*id).cpu_cores).sum();
        let usage = if self.trial.stops_be() { &mut self.stopped } else { &mut self.running };
        usage.core_seconds += cores * seconds;
        usage.seconds += seconds;
    }

    /// Whether they ran on while they should stand still: the kernel refused the quota, or somebody else had set it.
    fn was_not_carried_out(&self) -> bool {
        self.stopped.cores() > NOT_STOPPED * self.running.cores()
    }

    /// What being stopped has cost them.
    fn lost_core_seconds(&self) -> f64 {
        (self.running.cores() * self.stopped.seconds - self.stopped.core_seconds).max(0.0)
    }

    /// Nothing came of it.
    pub fn given_up(self) -> Phase {
        Phase::after(self.yields)
    }
}

impl Usage {
    fn cores(self) -> f64 {
        self.core_seconds / self.seconds.max(1e-3)
    }
}

/// What BE may keep at first, by what stopping it showed. Under a quota BE runs at full speed for its share of the time, so the
/// slow share lies on the line between that without BE and that with all of it.
fn first_share(effect: Effect) -> f64 {
    let (Some(with_be), Some(without_be)) = (effect.with_be.share(), effect.without_be.share()) else {
        return 0.0;
    };
    let share = (AIM * ALLOWED - without_be) / (with_be - without_be).max(1e-6);
    if share > 0.0 { share.min(FIRST_SHARE_MAX) } else { 0.0 }
}
