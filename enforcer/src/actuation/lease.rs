//! The agent's sign of life, for the guardian, and the guardian's word to the agent.
//!
//! Two numbers in a file beside the journal: when the agent last began a tick, and how often the guardian took back what
//! the agent had done because no tick began. Each is written by one process only, so neither has to be locked.

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
        self.write(BEAT_AT, clock::monotonic_ns())?;
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
        self.write(REVOCATIONS_AT, revocations.wrapping_add(1))
    }

    /// Zero where nothing was written yet.
    fn read(&self, at: u64) -> Result<u64, Error> {
        let mut bytes = [0; 8];
        match self.file.read_exact_at(&mut bytes, at) {
            Err(err) if err.kind() != io::ErrorKind::UnexpectedEof => Err(self.error(err)),
            _ => Ok(u64::from_ne_bytes(bytes)),
        }
    }

    fn write(&self, at: u64, word: u64) -> Result<(), Error> {
        self.file.write_all_at(&word.to_ne_bytes(), at).map_err(|err| self.error(err))
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
}
