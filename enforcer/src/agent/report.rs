//! What is done once a second: the ledger is brought up to date.

use std::time::Duration;

use super::{Agent, Counts, citizen::Citizen, start::start_guardian};

/// How often.
const REPORT: Duration = Duration::from_secs(1);

impl Agent {
    /// Brings the ledger up to date, and does what has time until then.
    pub(super) fn report(&mut self, now: Duration) {
        let guarded = self.watch_guardian();
        self.meter.look_at_throttling(now, self.tree.mounts());
        self.look_at_some_levers(now);
        let elapsed = now.saturating_sub(self.reported_at);
        self.memory.look(now, &self.meter, self.tree.mounts());
        let (cost, shedder) = (&self.cost, &self.shedder);
        let (meter, memory, plan, counts) = (&mut self.meter, &mut self.memory, &self.plan, &mut self.counts);
        let lessons = &mut self.lessons;
        let (changes, roster) = (&self.changes, &self.roster);
        let (steal, unwatched) = (self.snapshot.steal, self.tree.unwatched());
        let told = self.cluster.as_ref().map(Citizen::told);
        let done = self.shared.try_update(|ledger| {
            for (id, group) in roster {
                match group {
                    Some(group) => ledger.join(*id, group),
                    None => ledger.leave(*id),
                }
            }
            meter.report(ledger, elapsed, lessons);
            for lesson in memory.report(ledger, lessons) {
                meter.set_objective(lesson);
            }
            ledger.plan(plan, elapsed);
            ledger.decisions(changes, now);
            ledger.advance(now);
            ledger.ticks += counts.ticks;
            ledger.early_ticks += counts.early_ticks;
            self.joins.iter().for_each(|join| ledger.joins.record(*join));
            ledger.writes += counts.writes;
            ledger.write_errors += counts.write_errors;
            ledger.foreign_writes += counts.foreign_writes;
            ledger.revocations += counts.revocations;
            ledger.guarded = guarded;
            ledger.steal = steal;
            ledger.overhead = shedder.average();
            ledger.shed = shedder.level();
            ledger.guardian_time = cost.guardian_time();
            for (program, time) in cost.probe_times() {
                ledger.note_probe_time(program, time);
            }
            ledger.unwatched = unwatched;
            ledger.cluster = told;
            ledger.ready = true;
        });
        if done {
            *counts = Counts::default();
            self.roster.clear();
            self.joins.clear();
            if let Some(cluster) = &mut self.cluster {
                let mounts = self.tree.mounts();
                let waiting = cluster.report(now, &self.plan, &self.changes, &self.memory, mounts);
                self.follow_pods(now, waiting);
            }
            self.changes.clear();
            self.reported_at = now;
            self.report_at = now + REPORT;
            self.lessons.save_now_and_then(now);
            self.meter.sample_requests(&mut self.probes, self.tree.mounts());
            self.shed(now, elapsed);
        }
    }

    /// Whether the agent's own guardian runs; one that ended is replaced. `None`: it has none.
    fn watch_guardian(&mut self) -> Option<bool> {
        if self.guardian.as_mut()?.is_running() {
            return Some(true);
        }
        tracing::warn!("the guardian ended; starting another");
        match start_guardian(&self.options) {
            Ok(new) => self.guardian = new,
            Err(err) => {
                tracing::error!("{err:#}");
                return Some(false);
            }
        }
        Some(true)
    }

    /// Keeps the agent's own cost within its budget.
    fn shed(&mut self, now: Duration, elapsed: Duration) {
        // That it cannot be read, the next tick says.
        let guardian = self.lease.guardian_cost().ok().flatten();
        let Some(cost) = self.cost.look(now, &self.probes, guardian) else { return };
        let before = self.shedder.level();
        let Some(level) = self.shedder.observe(now, elapsed, cost) else { return };
        self.cost.sample_again();
        let directories = self.meter.shed(level, &mut self.probes, self.tree.mounts());
        let cost = format!("{:.3}%", self.shedder.average().unwrap_or(cost.all) * 100.0);
        let (budget, words) = (self.policy.overhead, level.words());
        let why = if level > before { "the agent costs too much" } else { "the agent costs less again" };
        tracing::warn!(cost, %budget, directories, "{why}: {words}");
    }
}
