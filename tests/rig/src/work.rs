//! A counter of work done, in a file that other processes can read at any time.
//!
//! Shared memory rather than messages: an antagonist that is squeezed to nothing could not send any.

use std::{
    fs::File,
    path::Path,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use anyhow::{Context as _, Result};
use memmap2::MmapRaw;

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
            file.set_len(8)?;
            MmapRaw::map_raw(&file)
        };
        open().map(Self).with_context(|| format!("cannot share a counter at {}", path.display()))
    }

    /// A counter that nobody else sees.
    ///
    /// # Errors
    /// Where there is no memory.
    pub fn private() -> Result<Self> {
        let memory = memmap2::MmapOptions::new().len(8).map_anon()?;
        Ok(Self(memory.into()))
    }

    pub fn add(&self, units: u64) {
        self.counter().fetch_add(units, Relaxed);
    }

    pub fn done(&self) -> u64 {
        self.counter().load(Relaxed)
    }

    #[expect(clippy::cast_ptr_alignment, reason = "a mapping starts at a page")]
    fn counter(&self) -> &AtomicU64 {
        // SAFETY: the mapping is page-aligned, eight bytes long at least, and lives as long as `self`.
        unsafe { &*self.0.as_ptr().cast::<AtomicU64>() }
    }
}
