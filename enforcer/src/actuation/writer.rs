//! Writes that may block, on a thread of their own.
//!
//! Who lowers `memory.high` reclaims what is above it before `write(2)` returns, which may take seconds. The loop must not
//! wait for that: it hands the write over and asks later what became of it.

use std::{
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
};

use crate::cgroup::{
    memory,
    setting::{Error, Setting, SettingFile},
};

/// Writes that may wait their turn; the thread works them off one by one.
const QUEUE: usize = 64;

/// The thread, started with the first write.
#[derive(Debug, Default)]
pub struct Writer(Option<SyncSender<Job>>);

#[derive(Debug)]
struct Job {
    file: SettingFile,
    setting: Setting,
    progress: Progress,
}

/// How far a write has come.
#[derive(Clone, Debug)]
pub struct Progress(Arc<Mutex<State>>);

#[derive(Debug)]
enum State {
    Waiting,
    /// The system call is being made; the value may be in force already.
    Writing,
    Written(Result<(), Error>),
    /// Over, and known to be; or called off before it began.
    Over,
}

impl Writer {
    /// Hands a write over. `None`: too many wait already; try again later.
    pub fn submit(&mut self, file: SettingFile, setting: Setting) -> Option<Progress> {
        let progress = Progress(Arc::new(Mutex::new(State::Waiting)));
        let job = Job { file, setting, progress: progress.clone() };
        self.0.get_or_insert_with(start).try_send(job).ok().map(|()| progress)
    }
}

fn start() -> SyncSender<Job> {
    let (jobs, received) = sync_channel(QUEUE);
    // Not joined: the agent may end while the kernel still reclaims on the thread's behalf.
    std::thread::spawn(move || work(&received));
    jobs
}

fn work(jobs: &Receiver<Job>) {
    for Job { file, setting, progress } in jobs {
        if !progress.begin() {
            continue;
        }
        let written = file.write(&setting);
        let is_written = written.is_ok();
        progress.set(State::Written(written));
        if let (true, Setting::MemoryHigh(Some(high))) = (is_written, &setting) {
            push(file.directory(), *high);
        }
    }
}

/// The kernel gives up after some rounds and leaves the rest to the group's own tasks. One more push where that is
/// possible: what a stopped or idle group holds would stay for long.
fn push(directory: &Path, high: u64) {
    if let Err(err) = memory::push_down_to(directory, high) {
        tracing::debug!(cgroup = %directory.display(), %err, "not all was reclaimed");
    }
}

impl Progress {
    fn set(&self, state: State) -> State {
        std::mem::replace(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner), state)
    }

    fn begin(&self) -> bool {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let waits = matches!(*state, State::Waiting);
        if waits {
            *state = State::Writing;
        }
        waits
    }

    /// What became of the write, once.
    pub fn take_outcome(&self) -> Option<Result<(), Error>> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match std::mem::replace(&mut *state, State::Over) {
            State::Written(outcome) => Some(outcome),
            other => {
                *state = other;
                None
            }
        }
    }

    /// Calls the write off. Whether nothing will be written any more; otherwise it is being written right now.
    pub fn call_off(&self) -> bool {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(*state, State::Writing) {
            return false;
        }
        *state = State::Over;
        true
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, time::Duration};

    use super::*;
    use crate::cgroup::{hierarchy::Hierarchy, setting::Knob};

    /// A `memory.high` that is a pipe: writing it blocks until somebody reads, as reclaim would.
    fn blocking_file() -> (tempfile::TempDir, SettingFile) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("memory.high");
        let made = std::process::Command::new("mkfifo").arg(&path).status().unwrap();
        assert!(made.success());
        let file = SettingFile::new(Hierarchy::V2, directory.path().to_owned(), Knob::MemoryHigh);
        (directory, file)
    }

    fn outcome_of(progress: &Progress) -> Result<(), Error> {
        for _ in 0..5_000 {
            if let Some(outcome) = progress.take_outcome() {
                return outcome;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        panic!("not written: {progress:?}");
    }

    #[test]
    fn a_write_that_blocks_keeps_nobody_waiting_and_one_behind_it_can_be_called_off() {
        let (directory, first) = blocking_file();
        let (other, second) = blocking_file();
        let mut writer = Writer::default();
        let first = writer.submit(first, Setting::MemoryHigh(Some(4096))).unwrap();
        let second = writer.submit(second, Setting::MemoryHigh(Some(4096))).unwrap();
        assert!(first.take_outcome().is_none() && second.take_outcome().is_none());
        while !matches!(*first.0.lock().unwrap(), State::Writing) {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(!first.call_off(), "it is being written");
        assert!(second.call_off());
        assert_eq!(fs::read_to_string(directory.path().join("memory.high")).unwrap(), "4096");
        outcome_of(&first).unwrap();
        // The thread goes on with what comes next and leaves out what was called off.
        let (third_directory, third) = blocking_file();
        let third = writer.submit(third, Setting::MemoryHigh(None)).unwrap();
        assert_eq!(fs::read_to_string(third_directory.path().join("memory.high")).unwrap(), "max");
        outcome_of(&third).unwrap();
        assert!(second.take_outcome().is_none());
        drop(other);
    }

    #[test]
    fn a_full_queue_says_so() {
        let (_directory, blocking) = blocking_file();
        let mut writer = Writer::default();
        let _first = writer.submit(blocking, Setting::MemoryHigh(Some(4096))).unwrap();
        let taken = (0..2 * QUEUE)
            .map(|_| writer.submit(blocking_file().1, Setting::MemoryHigh(Some(4096))))
            .take_while(Option::is_some)
            .count();
        assert!((QUEUE - 1..=QUEUE + 1).contains(&taken), "{taken}");
    }
}
