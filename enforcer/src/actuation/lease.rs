//! The agent's sign of life, for the guardian, and the guardian's word to the agent.
//!
//! Numbers in a file beside the journal: when the agent last began a tick, how often the guardian took back what the
//! agent had done because no tick began, and what the guardian costs. Each is written by one side only, so none has to
//! be locked.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::clock;

const FILE: &str = "lease";
const BEAT_AT: u64 = 0;
const REVOCATIONS_AT: u64 = 8;
const GUARDIAN_AT: u64 = 16;

/// The lease cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {source}")]
pub struct Error {
    path: PathBuf,
    source: io::Error,
}

/// Whether the agent's limits are still its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    Kept,
    /// The guardian has restored the owners' values since the last renewal.
    Revoked,
}

/// What a guardian has used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuardianCost {
    /// When it was started, on the monotonic clock: tells one from another.
    pub since: Duration,
    pub cpu: Duration,
}

/// The lease of the agent that holds the journal.
#[derive(Debug)]
pub struct Lease {
    path: PathBuf,
    file: File,
    /// The agent: when it last looked. The guardian: not used.
    revocations: Option<u64>,
}

impl Lease {
    /// Opens the lease in `state_dir`.
    ///
    /// # Errors
    /// What the file system says.
    pub fn open(state_dir: &Path) -> Result<Self, Error> {
        let path = state_dir.join(FILE);
        match File::options().read(true).write(true).create(true).truncate(false).open(&path) {
            Ok(file) => Ok(Self { path, file, revocations: None }),
            Err(source) => Err(Error { path, source }),
        }
    }

    /// The agent begins a tick. Before it writes any limit, it must undo its own if the lease was revoked: one of its
    /// writes may have come after the guardian's.
    ///
    /// # Errors
    /// What the file system says.
    pub fn renew(&mut self) -> Result<Standing, Error> {
        self.write(BEAT_AT, [clock::monotonic_ns()])?;
        let found = self.read(REVOCATIONS_AT)?;
        let before = self.revocations.replace(found);
        Ok(if before.is_some_and(|before| before != found) { Standing::Revoked } else { Standing::Kept })
    }

    /// When the agent last began a tick, on the monotonic clock. Zero: never.
    ///
    /// # Errors
    /// What the file system says.
    pub fn beat(&self) -> Result<Duration, Error> {
        self.read(BEAT_AT).map(Duration::from_nanos)
    }

    /// The guardian takes back what the agent did.
    ///
    /// # Errors
    /// What the file system says.
    pub fn revoke(&self) -> Result<(), Error> {
        let revocations = self.read(REVOCATIONS_AT)?;
        self.write(REVOCATIONS_AT, [revocations.wrapping_add(1)])
    }

    /// What the guardian told of itself last. `None`: none did.
    ///
    /// # Errors
    /// What the file system says.
    pub fn guardian_cost(&self) -> Result<Option<GuardianCost>, Error> {
        let since = self.read(GUARDIAN_AT)?;
        let cpu = self.read(GUARDIAN_AT + 8)?;
        let cost = GuardianCost { since: Duration::from_nanos(since), cpu: Duration::from_nanos(cpu) };
        Ok((since != 0).then_some(cost))
    }

    /// The guardian tells what it costs; of two, the one that was started later does. `now`: on the monotonic clock.
    ///
    /// # Errors
    /// What the file system says.
    pub fn tell_cost(&self, GuardianCost { since, cpu }: GuardianCost, now: Duration) -> Result<(), Error> {
        // One from the future was written before the last boot.
        let is_later = |other: &GuardianCost| other.since > since && other.since <= now;
        if self.guardian_cost()?.as_ref().is_some_and(is_later) {
            return Ok(());
        }
        let ns = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.write(GUARDIAN_AT, [ns(since), ns(cpu)])
    }

    /// Zero where nothing was written yet.
    fn read(&self, at: u64) -> Result<u64, Error> {
        let mut bytes = [0; 8];
        match self.file.read_exact_at(&mut bytes, at) {
            Err(err) if err.kind() != io::ErrorKind::UnexpectedEof => Err(self.error(err)),
            _ => Ok(u64::from_ne_bytes(bytes)),
        }
    }

    fn write<const N: usize>(&self, at: u64, words: [u64; N]) -> Result<(), Error> {
        let bytes = words.map(u64::to_ne_bytes);
        self.file.write_all_at(bytes.as_flattened(), at).map_err(|err| self.error(err))
    }

    fn error(&self, source: io::Error) -> Error {
        Error { path: self.path.clone(), source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_learns_of_a_revocation_once_and_not_of_those_before_its_time() {
        let directory = tempfile::tempdir().unwrap();
        let guardian = Lease::open(directory.path()).unwrap();
        assert_eq!(guardian.beat().unwrap(), Duration::ZERO);
        guardian.revoke().unwrap();
        let mut agent = Lease::open(directory.path()).unwrap();
        assert_eq!(agent.renew().unwrap(), Standing::Kept);
        assert!(guardian.beat().unwrap() > Duration::ZERO && guardian.beat().unwrap() <= clock::monotonic());
        guardian.revoke().unwrap();
        assert_eq!(agent.renew().unwrap(), Standing::Revoked);
        assert_eq!(agent.renew().unwrap(), Standing::Kept);
    }

    #[test]
    fn of_two_guardians_the_later_one_tells_what_it_costs() {
        let directory = tempfile::tempdir().unwrap();
        let lease = Lease::open(directory.path()).unwrap();
        assert_eq!(lease.guardian_cost().unwrap(), None);
        let at = Duration::from_secs;
        let of = |since, ms| GuardianCost { since: at(since), cpu: Duration::from_millis(ms) };
        for (told, now, kept) in [
            (of(100, 5), 101, of(100, 5)),
            (of(200, 1), 201, of(200, 1)),
            (of(100, 6), 202, of(200, 1)),
            // The clock began anew with the host.
            (of(3, 2), 4, of(3, 2)),
        ] {
            lease.tell_cost(told, at(now)).unwrap();
            assert_eq!(lease.guardian_cost().unwrap(), Some(kept), "{told:?}");
        }
    }
}
