//! What is told of all that was counted.

use std::{collections::BTreeSet, time::Duration};

use enforcer_ebpf::layout::Drop;

use super::{Meter, group::Group};
use crate::{
    agent::lessons::Lessons,
    kernel::counters::{Counters, WaitTotals},
    model::Signal,
    policy::Class,
    report::ledger::{self, GroupLedger, Ledger, Waiting},
    signal::{histogram::Counts, in_flight::Look, pace, tally::Tally},
};

impl Meter {
    /// Adds everything counted since the last report, `elapsed` ago, to the ledger, and lets `lessons` hear it.
    pub fn report(&mut self, ledger: &mut Ledger, elapsed: Duration, lessons: &mut Lessons) {
        self.set_paces(elapsed);
        ledger.quiet += self.listen(lessons, ledger.unwatched);
        for group in ledger.groups.values_mut() {
            (group.cgroups, group.cgroups_uncounted) = (0, 0);
        }
        for counted in self.counted.iter_mut().flatten() {
            let group = counted.directory.group;
            counted.report(&self.counters, &mut self.groups[group]);
            ledger.groups[group].cgroups += 1;
        }
        for directory in &self.uncounted {
            ledger.groups[directory.group].cgroups_uncounted += 1;
        }
        let mut learned = Vec::new();
        for (id, group) in self.groups.iter_mut() {
            let entry = &mut ledger.groups[id];
            entry.levers = group.levers;
            entry.slo = group.slo;
            entry.put_requests_by(group.is_victim() && !group.measures_requests(self.shed));
            entry.memory.add(&std::mem::take(&mut group.memory));
            entry.spend(self.taken_at, Signal::MemoryStall, std::mem::take(&mut group.stall_tally));
            let waits = std::mem::take(&mut group.waits);
            entry.cpu.add_ns(waits.on_cpu_ns);
            entry.switches += waits.switches;
            if waits.waits > 0 {
                group.report_waits(&waits, self.taken_at, entry);
                learned.extend(lessons.hear(id, Signal::RunQueueWait, &group.wait_counts));
                group.wait_counts.clear();
                group.report_blame(&self.counters, &self.ended, self.taken_at, entry);
            }
            if group.report_requests(&self.counters, self.taken_at, entry, &mut self.fresh) {
                learned.extend(lessons.hear(id, Signal::RequestLatency, &self.fresh));
            }
        }
        for lesson in learned {
            self.set_objective(lesson);
        }
        ledger.drops = Drop::ALL.map(|cause| self.counters.drops(cause));
        ledger.slots_used = self.slots.used();
        ledger.slots_capacity = self.slots.capacity();
    }

    /// Tells the probes how thick slow ones may come, from how often each signal was heard since the last call.
    fn set_paces(&mut self, elapsed: Duration) {
        for group in self.groups.values_mut().filter(|group| group.is_victim()) {
            for (signal, rate) in Signal::ALL.into_iter().zip(&mut group.rates) {
                let hz = std::mem::take(&mut rate.heard) as f64 / elapsed.as_secs_f64().max(1e-3);
                rate.hz = f64::midpoint(rate.hz, hz);
                self.counters.set_pace(group.victim, signal, pace::pace(rate.hz));
            }
        }
    }

    /// Ends the stretch at hand. How long it is, if it says what the node is like without BE.
    fn listen(&mut self, lessons: &mut Lessons, unwatched: usize) -> Duration {
        let mut stretch = std::mem::take(&mut self.stretch);
        if unwatched > 0 {
            // BE may run for a while in a directory that no rescan has found yet.
            stretch.doubt();
        }
        if self.uncounted.iter().any(|directory| self.groups[directory.group].class == Class::BE) {
            stretch.doubt();
        }
        if lessons.begin(&stretch) { stretch.elapsed() } else { Duration::ZERO }
    }
}

impl Group {
    fn report_waits(&self, waits: &WaitTotals, now: Duration, into: &mut GroupLedger) {
        let tally = Tally { total: waits.waits, slow: waits.slow };
        into.waits.add(&self.wait_counts, Duration::from_nanos(waits.wait_ns), tally);
        into.spend(now, Signal::RunQueueWait, tally);
    }

    /// Who ran while it waited. `ended`: columns of groups that went.
    fn report_blame(
        &mut self,
        counters: &Counters,
        ended: &BTreeSet<u32>,
        now: Duration,
        into: &mut GroupLedger,
    ) {
        if !self.is_victim() {
            return;
        }
        for culprit in counters.culprits() {
            let blame_ns = counters.blame_ns(self.victim, culprit);
            if blame_ns > 0 {
                let last_ns = self.blame_ns.insert(culprit, blame_ns).unwrap_or_default();
                if now >= self.hot_until {
                    self.asked_ns.insert(culprit, blame_ns);
                }
                let new_ns = blame_ns.saturating_sub(last_ns);
                if new_ns > 0 {
                    let column = if ended.contains(&culprit) { ledger::ENDED } else { culprit };
                    into.blame.entry(column).or_default().add_ns(new_ns);
                }
            }
        }
    }

    /// Requests, as far as they are measured. Whether there were any; their latencies are in `fresh` then.
    fn report_requests(
        &mut self,
        counters: &Counters,
        now: Duration,
        into: &mut GroupLedger,
        fresh: &mut Counts,
    ) -> bool {
        let Some(durations) = into.requests.as_mut().filter(|_| self.is_victim()) else { return false };
        let totals = counters.requests(self.victim);
        let old = std::mem::replace(&mut self.requests_reported, totals);
        let Look { in_flight, written_off, .. } = self.look;
        let factor = u64::from(self.sampling.factor());
        into.one_in = self.sampling.factor();
        into.waiting = Some(Waiting { in_flight, unanswered: totals.unanswered, written_off });
        // Those that ended unanswered and slow have a tally and no latency.
        if totals.served == old.served && totals.unanswered_slow == old.unanswered_slow {
            return false;
        }
        fresh.clear();
        self.request_histogram.add_new_to(fresh, &counters.request_histogram(self.victim));
        let lost = totals.unanswered_slow - old.unanswered_slow;
        // Each stands for those beside it that were not looked at.
        let tally = Tally {
            total: (totals.served - old.served + lost) * factor,
            slow: (totals.slow - old.slow + lost) * factor,
        };
        let latency_ns = totals.latency_ns.saturating_sub(old.latency_ns) * factor;
        durations.add(&fresh.times(factor), Duration::from_nanos(latency_ns), tally);
        into.spend(now, Signal::RequestLatency, tally);
        true
    }
}
