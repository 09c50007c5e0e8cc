//! The CPU bandwidth limit of a directory: `cpu.max` on v2, `cpu.cfs_quota_us` and `cpu.cfs_period_us` on v1.

use std::{error::Error as _, io, path::PathBuf};

use cgroups_rs::cpu::CpuController;

use super::{
    hierarchy::Hierarchy,
    setting::{self, Error},
};
use crate::model::CpuLimit;

/// A directory with a CPU limit.
#[derive(Debug)]
pub struct CpuLimitFile {
    directory: PathBuf,
    controller: CpuController,
    is_v2: bool,
}

impl CpuLimitFile {
    /// The limit of `directory`, an absolute path.
    pub fn new(hierarchy: Hierarchy, directory: PathBuf) -> Self {
        let is_v2 = hierarchy == Hierarchy::V2;
        let controller = CpuController::new(directory.clone(), is_v2);
        Self { directory, controller, is_v2 }
    }

    /// The limit in force.
    ///
    /// # Errors
    /// [`Error::Gone`], [`Error::Missing`] or what the file system says.
    pub fn read(&self) -> Result<CpuLimit, Error> {
        let read = || -> cgroups_rs::error::Result<CpuLimit> {
            let quota_us =
                u64::try_from(self.controller.cfs_quota()?).ok().filter(|&us| us < i64::MAX as u64);
            Ok(CpuLimit { quota_us, period_us: self.controller.cfs_period()? })
        };
        read().map_err(|err| self.explain(&err, None))
    }

    /// Puts a limit in force. On v1 there are two files, written in the order in which the limit between the two writes is
    /// the tighter one, or none; a period that stands already is not written, for each write takes the kernel a walk over
    /// all CPUs (`tg_set_cfs_bandwidth`). Where the second is refused, the first is undone: half a limit is nobody's wish.
    ///
    /// # Errors
    /// As for [`CpuLimitFile::read`], and [`Error::Refused`].
    pub fn write(&self, limit: CpuLimit) -> Result<(), Error> {
        let quota = limit.quota_us.map_or(-1, |us| i64::try_from(us).expect("BUG: a quota of 292,000 years"));
        let write = || -> cgroups_rs::error::Result<()> {
            if self.is_v2 {
                return self.controller.set_cfs_quota_and_period(Some(quota), Some(limit.period_us));
            }
            let period_us = self.controller.cfs_period()?;
            if limit.period_us == period_us {
                self.controller.set_cfs_quota(quota)
            } else if limit.quota_us.is_none() || limit.period_us < period_us {
                let before = self.controller.cfs_quota()?;
                self.controller.set_cfs_quota(quota)?;
                self.controller.set_cfs_period(limit.period_us).inspect_err(|_| {
                    self.controller.set_cfs_quota(before).ok();
                })
            } else {
                self.controller.set_cfs_period(limit.period_us)?;
                self.controller.set_cfs_quota(quota).inspect_err(|_| {
                    self.controller.set_cfs_period(period_us).ok();
                })
            }
        };
        write().map_err(|err| self.explain(&err, Some(limit)))
    }

    fn explain(&self, err: &cgroups_rs::error::Error, limit: Option<CpuLimit>) -> Error {
        let file = if self.is_v2 { "cpu.max" } else { "cpu.cfs_quota_us" };
        let value = limit.map(|limit| limit.to_string());
        setting::explain(&self.directory, file, cause(err), value.as_deref())
    }
}

/// What the file system said to cgroups-rs.
pub(super) fn cause(err: &cgroups_rs::error::Error) -> io::Error {
    let cause = err.source().and_then(|cause| cause.downcast_ref::<io::Error>());
    match cause.and_then(io::Error::raw_os_error) {
        Some(errno) => io::Error::from_raw_os_error(errno),
        None => io::Error::other(err.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn v1(files: &[(&str, &str)]) -> (tempfile::TempDir, CpuLimitFile) {
        let mount = tempfile::tempdir().unwrap();
        let directory = mount.path().join("batch");
        fs::create_dir(&directory).unwrap();
        for (name, text) in files {
            fs::write(directory.join(name), text).unwrap();
        }
        let file = CpuLimitFile::new(Hierarchy::V1Cpu, directory);
        (mount, file)
    }

    #[test]
    fn a_v1_limit_is_read_and_written_back() {
        let (_mount, file) = v1(&[("cpu.cfs_quota_us", "-1\n"), ("cpu.cfs_period_us", "100000\n")]);
        let owners = file.read().unwrap();
        assert_eq!(owners, CpuLimit { quota_us: None, period_us: 100_000 });
        let ours = CpuLimit { quota_us: Some(20_000), period_us: 1_000_000 };
        file.write(ours).unwrap();
        assert_eq!(file.read().unwrap(), ours);
        file.write(owners).unwrap();
        assert_eq!(file.read().unwrap(), owners);
    }

    #[test]
    fn a_directory_that_went_and_one_without_the_controller_are_told_apart() {
        let (mount, file) = v1(&[]);
        assert!(matches!(file.read(), Err(Error::Missing { .. })), "{:?}", file.read());
        fs::remove_dir_all(mount.path()).unwrap();
        assert!(matches!(file.read(), Err(Error::Gone(_))), "{:?}", file.read());
    }
}
