//! How soon a thread gets the CPU that it wakes up for.
//!
//! Linux lets whoever runs finish its slice (`RUN_TO_PARITY`), some 3 ms, whatever the weights say; unless whoever wakes up asks for
//! shorter slices (`PREEMPT_SHORT`, Linux 6.12; through groups since 6.13). Older kernels take no notice of the slice, and
//! go by the nice value. Source: `kernel/sched/fair.c`, `check_preempt_wakeup_fair`.

use std::{io, time::Duration};

const URGENT: Urgency = Urgency { nice: -20, slice: Duration::from_micros(100) };
/// Without the right to be nicer to oneself than to others.
const UNPRIVILEGED: Urgency = Urgency { nice: 0, slice: URGENT.slice };
/// As every thread begins. A slice of zero is the kernel's default.
const ORDINARY: Urgency = Urgency { nice: 0, slice: Duration::ZERO };

#[expect(clippy::cast_possible_truncation, reason = "some bytes")]
const SIZE: u32 = size_of::<libc::sched_attr>() as u32;

#[derive(Clone, Copy, Debug)]
struct Urgency {
    nice: i32,
    slice: Duration,
}

/// Puts this thread, and those that it starts, before others: whoever begins a squeeze or ends one must not queue behind it.
/// For those that sleep nearly all of the time.
pub fn go_first() {
    if let Err(err) = URGENT.apply().or_else(|_| UNPRIVILEGED.apply()) {
        tracing::debug!(%err, "runs at ordinary priority");
    }
}

/// Makes this thread as patient as any other, if it was started by one that is not.
pub fn step_back() {
    if let Err(err) = ORDINARY.apply() {
        tracing::debug!(%err, "goes before others without need");
    }
}

impl Urgency {
    #[expect(unsafe_code, reason = "no library has this system call")]
    fn apply(self) -> io::Result<()> {
        let attributes = libc::sched_attr {
            size: SIZE,
            sched_policy: libc::SCHED_OTHER.unsigned_abs(),
            sched_flags: 0,
            sched_nice: self.nice,
            sched_priority: 0,
            sched_runtime: u64::try_from(self.slice.as_nanos()).unwrap_or(u64::MAX),
            sched_deadline: 0,
            sched_period: 0,
        };
        // SAFETY: the kernel reads `size` bytes of a structure that outlives the call.
        let result = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of the thread itself: others keep theirs.
    #[test]
    fn a_thread_can_step_back() {
        std::thread::spawn(|| {
            UNPRIVILEGED.apply().expect("everybody may ask for short slices");
            ORDINARY.apply().expect("everybody may be ordinary");
            let nice = rustix::process::getpriority_process(None).expect("the kernel tells");
            assert_eq!(nice, 0);
        })
        .join()
        .expect("no panic");
    }
}
