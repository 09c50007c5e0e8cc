//! Does trouble begin? Wakes the agent at once, without a word about any single request.

use aya_ebpf::EbpfContext;
use enforcer_ebpf::layout::{Drop, Onset, QUIET_NS, Sentry};

use crate::{
    maps::{ONSETS, SENTRIES, ThisCpu},
    task::ktime_ns,
};

/// A wait of `victim` was slow.
#[inline(always)]
pub fn slow_wait(ctx: &impl EbpfContext, cpu: ThisCpu, victim: u32) {
    let Some(sentry) = sentry(victim) else { return };
    let now_ns = ktime_ns();
    if sentry.wait.is_exceeded(now_ns) {
        tell(ctx, cpu, sentry, Onset { at_ns: now_ns, victim, signal: Onset::WAIT });
    }
}

/// A request of `victim` was slow.
#[inline(always)]
pub fn slow_request(ctx: &impl EbpfContext, cpu: ThisCpu, victim: u32) {
    let Some(sentry) = sentry(victim) else { return };
    let now_ns = ktime_ns();
    if sentry.latency.is_exceeded(now_ns) {
        tell(ctx, cpu, sentry, Onset { at_ns: now_ns, victim, signal: Onset::LATENCY });
    }
}

#[inline(always)]
fn sentry(victim: u32) -> Option<&'static mut Sentry> {
    // SAFETY: CPUs may write one victim's sentry at once; each field is one word, and the worst outcome is an onset told
    // one slow request early or late.
    unsafe { Some(&mut *SENTRIES.get_ptr_mut(victim)?) }
}

#[inline(always)]
fn tell(ctx: &impl EbpfContext, cpu: ThisCpu, sentry: &mut Sentry, onset: Onset) {
    if onset.at_ns < sentry.quiet_until_ns {
        return;
    }
    sentry.quiet_until_ns = onset.at_ns + QUIET_NS;
    if ONSETS.output::<Onset>(onset, 0).is_err() {
        cpu.drop(ctx, Drop::OnsetRingFull);
    }
}
