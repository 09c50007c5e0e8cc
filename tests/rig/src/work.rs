//! A counter of work done, and when it began, in a file that other processes can read at any time.
//!
//! Shared memory rather than messages: an antagonist that is squeezed to nothing could not send any.

use std::{
    fs::File,
    path::Path,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use anyhow::{Context as _, Result};
use memmap2::MmapRaw;
use rustix::time::{ClockId, clock_gettime};

/// The counter, and the time.
const BYTES: usize = 16;

/// Work done so far, in units that the worker chooses.
#[derive(Debug)]
pub struct Work(MmapRaw);

impl Work {
    /// Makes the file, or opens it if it is there.
    ///
    /// # Errors
    /// Where the file cannot be made.
    pub fn open(path: &Path) -> Result<Self> {
        let open = || -> std::io::Result<MmapRaw> {
            let file = File::options().read(true).write(true).create(true).truncate(false).open(path)?;
            file.set_len(BYTES as u64)?;
            MmapRaw::map_raw(&file)
        };
        open().map(Self).with_context(|| format!("cannot share a counter at {}", path.display()))
    }

    /// A counter that nobody else sees.
    ///
    /// # Errors
    /// Where there is no memory.
    pub fn private() -> Result<Self> {
        let memory = memmap2::MmapOptions::new().len(BYTES).map_anon()?;
        Ok(Self(memory.into()))
    }

    pub fn add(&self, units: u64) {
        self.counter().fetch_add(units, Relaxed);
    }

    pub fn done(&self) -> u64 {
        self.counter().load(Relaxed)
    }

    /// Notes that work begins now.
    pub fn begin(&self) {
        let now_ns = u64::try_from(monotonic().as_nanos()).expect("BUG: up for 584 years");
        self.words()[1].store(now_ns, Relaxed);
    }

    /// When it began, on the monotonic clock; `None`: it has not.
    pub fn began(&self) -> Option<Duration> {
        let ns = self.words()[1].load(Relaxed);
        (ns > 0).then(|| Duration::from_nanos(ns))
    }

    fn counter(&self) -> &AtomicU64 {
        &self.words()[0]
    }

    #[expect(clippy::cast_ptr_alignment, reason = "a mapping starts at a page")]
    fn words(&self) -> &[AtomicU64; 2] {
        // SAFETY: the mapping is page-aligned, BYTES long at least, and lives as long as `self`.
        unsafe { &*self.0.as_ptr().cast::<[AtomicU64; 2]>() }
    }
}

/// The monotonic clock, which all processes of a host share.
pub fn monotonic() -> Duration {
    let now = clock_gettime(ClockId::Monotonic);
    Duration::try_from(now).expect("BUG: the monotonic clock is negative")
}
