//! Best-effort work that hurts its neighbours, each in its own way, and counts what it gets done.

use std::{hint::black_box, process::Command, thread};

use anyhow::{Context as _, Result};

use crate::work::Work;

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Antagonist {
    /// Computes without touching memory. Unit: a million additions.
    CpuSpin,
    /// Streams through memory far larger than any cache. Unit: a mebibyte.
    MemoryStream,
    /// Starts processes that end at once. Unit: a process.
    ForkStorm,
}

/// Bytes that each streaming thread walks through.
const STREAM_BYTES: usize = 128 << 20;

impl Antagonist {
    /// Runs on so many threads until the process is killed.
    ///
    /// # Errors
    /// Where a process cannot be started.
    pub fn run(self, threads: usize, work: &Work) -> Result<()> {
        thread::scope(|scope| {
            let workers: Vec<_> = (0..threads).map(|_| scope.spawn(move || self.work(work))).collect();
            workers.into_iter().try_for_each(|worker| worker.join().expect("a worker does not panic"))
        })
    }

    fn work(self, work: &Work) -> Result<()> {
        match self {
            Self::CpuSpin => spin(work),
            Self::MemoryStream => stream(work),
            Self::ForkStorm => fork(work),
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
        for mebibyte in memory.chunks_mut((1 << 20) / 8) {
            // One word of each cache line: the memory bus is the limit, not the core.
            for word in mebibyte.iter_mut().step_by(8) {
                *word = word.wrapping_add(1);
            }
            black_box(mebibyte);
            work.add(1);
        }
    }
}

fn fork(work: &Work) -> Result<()> {
    loop {
        Command::new("/bin/true").status().context("cannot start /bin/true")?;
        work.add(1);
    }
}
