//! Best-effort work that hurts its neighbours, each in its own way, and counts what it gets done.

use std::{
    fs,
    hint::black_box,
    io::{Read as _, Seek as _, Write as _},
    path::Path,
    process::Command,
    sync::mpsc,
    thread,
};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use crate::work::Work;

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Antagonist {
    /// Computes without touching memory. Unit: a million additions.
    CpuSpin,
    /// Streams through memory far larger than any cache. Unit: a mebibyte.
    MemoryStream,
    /// Changes random words of a buffer as large as the last-level cache. Unit: a million accesses.
    CacheThrash,
    /// Starts processes that end at once. Unit: a process.
    ForkStorm,
    /// One thread writes and rereads files, the others take memory and give it back. Unit: a mebibyte.
    PageCache,
}

const MIB: usize = 1 << 20;
/// Bytes that each streaming thread walks through.
const STREAM_BYTES: usize = 128 * MIB;
/// Where the kernel does not tell the size of the last-level cache.
const CACHE_BYTES: usize = 32 * MIB;
/// Files that are written and reread, and how large each is: a gibibyte together.
const FILES: usize = 4;
const FILE_BYTES: usize = 256 * MIB;
/// Memory that all memory hogs together take.
const HOG_BYTES: usize = 1024 * MIB;

impl Antagonist {
    pub const ALL: [Self; 5] =
        [Self::CpuSpin, Self::MemoryStream, Self::CacheThrash, Self::ForkStorm, Self::PageCache];

    /// As on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::CpuSpin => "cpu-spin",
            Self::MemoryStream => "memory-stream",
            Self::CacheThrash => "cache-thrash",
            Self::ForkStorm => "fork-storm",
            Self::PageCache => "page-cache",
        }
    }

    /// What it does per second.
    pub const fn unit(self) -> &'static str {
        match self {
            Self::CpuSpin => "million additions/s",
            Self::MemoryStream | Self::PageCache => "MiB/s",
            Self::CacheThrash => "million accesses/s",
            Self::ForkStorm => "processes/s",
        }
    }

    /// Runs on so many threads until the process is killed. Files are made in `directory`, and are gone with the process.
    ///
    /// # Errors
    /// Where a process cannot be started, or a file not be written.
    pub fn run(self, threads: usize, directory: &Path, work: &Work) -> Result<()> {
        work.begin();
        thread::scope(|scope| {
            let (failed, failure) = mpsc::channel();
            for number in 0..threads {
                let failed = failed.clone();
                scope.spawn(move || {
                    if let Err(err) = self.work(number, threads, directory, work) {
                        failed.send(err).ok();
                    }
                });
            }
            drop(failed);
            // The others never end: half of BE must not pass for all of it.
            let Ok(err) = failure.recv() else { return Ok(()) };
            eprintln!("{}: {err:#}", self.name());
            std::process::exit(1)
        })
    }

    fn work(self, number: usize, threads: usize, directory: &Path, work: &Work) -> Result<()> {
        match self {
            Self::CpuSpin => spin(work),
            Self::MemoryStream => stream(work),
            Self::CacheThrash => thrash(last_level_cache_bytes() / threads, number, work),
            Self::ForkStorm => fork(work),
            Self::PageCache if number == 0 => write_and_reread(directory, work),
            Self::PageCache => hog(HOG_BYTES / (threads - 1), work),
        }
    }
}

fn spin(work: &Work) -> ! {
    let mut sum = 0u64;
    loop {
        for n in 0..1_000_000u64 {
            sum = black_box(sum.wrapping_add(n));
        }
        work.add(1);
    }
}

fn stream(work: &Work) -> ! {
    let mut memory = vec![1u64; STREAM_BYTES / 8];
    loop {
        for mebibyte in memory.chunks_mut(MIB / 8) {
            // One word of each cache line: the memory bus is the limit, not the core.
            for word in mebibyte.iter_mut().step_by(8) {
                *word = word.wrapping_add(1);
            }
            black_box(mebibyte);
            work.add(1);
        }
    }
}

fn thrash(bytes: usize, seed: usize, work: &Work) -> ! {
    let mut memory = vec![1u64; bytes / 8];
    let mut random = fastrand::Rng::with_seed(seed as u64);
    loop {
        for _ in 0..1_000_000 {
            let entry = &mut memory[random.usize(..bytes / 8)];
            *entry = entry.wrapping_add(1);
        }
        black_box(&mut memory);
        work.add(1);
    }
}

fn fork(work: &Work) -> Result<()> {
    loop {
        Command::new("/bin/true").status().context("cannot start /bin/true")?;
        work.add(1);
    }
}

fn write_and_reread(directory: &Path, work: &Work) -> Result<()> {
    let file = || {
        tempfile::tempfile_in(directory)
            .with_context(|| format!("cannot make a file in {}", directory.display()))
    };
    let mut files = (0..FILES).map(|_| file()).collect::<Result<Vec<_>>>()?;
    let mut mebibyte = vec![7u8; MIB];
    loop {
        for file in &mut files {
            file.rewind()?;
            file.set_len(0)?;
            for _ in 0..FILE_BYTES / MIB {
                file.write_all(&mebibyte).context("cannot write a file")?;
                work.add(1);
            }
            file.rewind()?;
            for _ in 0..FILE_BYTES / MIB {
                file.read_exact(&mut mebibyte)?;
                work.add(1);
            }
        }
    }
}

fn hog(bytes: usize, work: &Work) -> ! {
    loop {
        // Zeroed memory of this size is mapped anew and given back at the end of the turn.
        let mut memory = vec![0u8; bytes];
        for mebibyte in memory.chunks_mut(MIB) {
            for page in mebibyte.iter_mut().step_by(4096) {
                *page = 1;
            }
            work.add(1);
        }
        black_box(&mut memory);
    }
}

/// By the first CPU's account.
fn last_level_cache_bytes() -> usize {
    let caches = fs::read_dir("/sys/devices/system/cpu/cpu0/cache").into_iter().flatten().flatten();
    let bytes = caches.filter_map(|cache| {
        let size = fs::read_to_string(cache.path().join("size")).ok()?;
        Some(size.trim().strip_suffix('K')?.parse::<usize>().ok()? << 10)
    });
    bytes.max().unwrap_or(CACHE_BYTES)
}
