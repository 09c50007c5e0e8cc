//! The monotonic clock, which all processes of a host and the probes (`ktime`) share; and CPU time.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Now.
pub fn monotonic() -> Duration {
    Duration::from_nanos(monotonic_ns())
}

/// CPU time of all threads of this process.
pub fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::try_from(time).unwrap_or_default()
}

/// Now, in nanoseconds, as the probes count.
pub fn monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    // Since boot: neither is negative, and 584 years fit.
    now.tv_sec.cast_unsigned() * 1_000_000_000 + now.tv_nsec.cast_unsigned()
}
