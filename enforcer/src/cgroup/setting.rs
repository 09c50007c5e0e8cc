//! The values that enforcer may replace in a directory, each read and written whole.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use cgroups_rs::cpuset::CpuSetController;
use serde::{Deserialize, Serialize};

use super::{
    cpu_limit::{self, CpuLimitFile},
    cpu_list::CpuList,
    hierarchy::Hierarchy,
};
use crate::model::{CpuLimit, Lever};

/// v1 rounds its greatest number down to whole pages.
const V1_UNLIMITED: u64 = 1 << 62;

/// Why a value could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The cgroup ended. Expected; the next scan will not contain it.
    #[error("{0} is gone")]
    Gone(PathBuf),
    #[error(
        "{0} lies outside of the cgroup root: name the earlier agent's with --cgroup-root, or restore what the journal says of \
         it by hand and remove the journal"
    )]
    Outside(PathBuf),
    #[error("{directory} has no {file}: {cure}")]
    Missing { directory: PathBuf, file: &'static str, cure: &'static str },
    #[error("{directory} refuses {value}: {why}")]
    Refused { directory: PathBuf, value: String, why: &'static str },
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("{path} holds {found:?}, expected {expected}")]
    Unreadable { path: PathBuf, found: String, expected: &'static str },
}

/// A value for one knob.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Setting {
    Frozen(bool),
    Priority(Priority),
    Quota(CpuLimit),
    Cpus(CpuList),
    /// `memory.high` in bytes, whole pages; `None`: no limit.
    MemoryHigh(Option<u64>),
    /// `memory.max`, or `memory.limit_in_bytes` on v1.
    MemoryMax(Option<u64>),
    /// `memory.min` and `memory.low` in bytes.
    MemoryMin(u64),
    MemoryLow(u64),
    /// What may be saved of a quota: `cpu.max.burst`, or `cpu.cfs_burst_us` on v1, in microseconds.
    Burst(u64),
}

/// One of the things that can be set. What is quickest to undo comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Knob {
    Freeze,
    Priority,
    Quota,
    Burst,
    Cpus,
    MemoryHigh,
    MemoryMax,
    MemoryMin,
    MemoryLow,
}

impl From<Lever> for Knob {
    fn from(lever: Lever) -> Self {
        match lever {
            Lever::Freeze => Self::Freeze,
            Lever::Idle => Self::Priority,
            Lever::Quota => Self::Quota,
            Lever::Cpuset => Self::Cpus,
            Lever::Memory => Self::MemoryHigh,
        }
    }
}

/// Who goes first when several directories want the same CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Priority {
    /// `cpu.idle`: only when nobody else wants it. The kernel then refuses to have the weight written.
    Idle,
    /// `cpu.weight` on v2, `cpu.shares` on v1.
    Weight(u64),
}

impl Priority {
    /// What the kernel gives a directory that is made, and one that is idle no longer (`sched_group_set_idle`).
    pub const fn by_default(hierarchy: Hierarchy) -> Self {
        match hierarchy {
            Hierarchy::V2 => Self::Weight(100),
            Hierarchy::V1Cpu | Hierarchy::V1Cpuset | Hierarchy::V1Memory => Self::Weight(1024),
        }
    }
}

impl Setting {
    /// What it is a value for.
    pub const fn knob(&self) -> Knob {
        match self {
            Self::Frozen(_) => Knob::Freeze,
            Self::Priority(_) => Knob::Priority,
            Self::Quota(_) => Knob::Quota,
            Self::Cpus(_) => Knob::Cpus,
            Self::MemoryHigh(_) => Knob::MemoryHigh,
            Self::MemoryMax(_) => Knob::MemoryMax,
            Self::MemoryMin(_) => Knob::MemoryMin,
            Self::MemoryLow(_) => Knob::MemoryLow,
            Self::Burst(_) => Knob::Burst,
        }
    }
}

impl Setting {
    /// Whether writing it may take long: the kernel makes whoever lowers a memory limit reclaim what is above it.
    pub const fn may_block(&self) -> bool {
        matches!(self, Self::MemoryHigh(Some(_)) | Self::MemoryMax(Some(_)))
    }

    /// The tighter one of this and what the owner allows: enforcer takes away, it never gives.
    #[must_use]
    pub fn within(self, owner: &Self) -> Self {
        match (&self, owner) {
            (Self::Quota(ours), Self::Quota(owners))
                if ours.quota_us.is_some()
                    && owners.cores().is_some_and(|owners| ours.cores() >= Some(owners)) =>
            {
                owner.clone()
            }
            (Self::Cpus(ours), Self::Cpus(owners)) if !owners.is_empty() => {
                Self::Cpus(owners.last(ours.len()))
            }
            (Self::MemoryHigh(ours), Self::MemoryHigh(Some(owners)))
            | (Self::MemoryMax(ours), Self::MemoryMax(Some(owners)))
                if ours.is_none_or(|ours| ours >= *owners) =>
            {
                owner.clone()
            }
            (Self::Frozen(false), Self::Frozen(true))
            | (Self::Priority(_), Self::Priority(Priority::Idle)) => owner.clone(),
            _ => self,
        }
    }
}

impl std::fmt::Display for Setting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Frozen(frozen) => write!(f, "cgroup.freeze {}", u8::from(*frozen)),
            Self::Priority(Priority::Idle) => f.write_str("cpu.idle 1"),
            Self::Priority(Priority::Weight(weight)) => write!(f, "weight {weight}"),
            Self::Quota(limit) => write!(f, "CPU quota {limit}"),
            Self::Cpus(cpus) => write!(f, "cpuset.cpus {cpus}"),
            Self::MemoryHigh(Some(bytes)) => write!(f, "memory.high {bytes}"),
            Self::MemoryHigh(None) => f.write_str("memory.high max"),
            Self::MemoryMax(Some(bytes)) => write!(f, "memory limit {bytes}"),
            Self::MemoryMax(None) => f.write_str("memory limit max"),
            Self::MemoryMin(bytes) => write!(f, "memory.min {bytes}"),
            Self::MemoryLow(bytes) => write!(f, "memory.low {bytes}"),
            Self::Burst(us) => write!(f, "CPU burst {us} us"),
        }
    }
}

/// One knob of one directory.
#[derive(Debug)]
pub struct SettingFile {
    hierarchy: Hierarchy,
    directory: PathBuf,
    file: File,
}

#[derive(Debug)]
enum File {
    Freeze,
    Priority,
    Quota(CpuLimitFile),
    Cpuset(CpuSetController),
    /// One number in one file; `max` where there is no limit.
    Limit(&'static str),
    Amount(&'static str),
}

impl SettingFile {
    /// `directory` is absolute.
    pub fn new(hierarchy: Hierarchy, directory: PathBuf, knob: Knob) -> Self {
        let is_v2 = hierarchy == Hierarchy::V2;
        let file = match knob {
            Knob::Freeze => File::Freeze,
            Knob::Priority => File::Priority,
            Knob::Quota => File::Quota(CpuLimitFile::new(hierarchy, directory.clone())),
            Knob::Burst => File::Amount(if is_v2 { "cpu.max.burst" } else { "cpu.cfs_burst_us" }),
            Knob::Cpus => File::Cpuset(CpuSetController::new(directory.clone(), is_v2)),
            Knob::MemoryHigh => File::Limit("memory.high"),
            Knob::MemoryMax => File::Limit(if is_v2 { "memory.max" } else { "memory.limit_in_bytes" }),
            Knob::MemoryMin => File::Amount("memory.min"),
            Knob::MemoryLow => File::Amount("memory.low"),
        };
        Self { hierarchy, directory, file }
    }

    /// Whose it is.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// What is in force.
    ///
    /// # Errors
    /// [`Error::Gone`], [`Error::Missing`] or what the file system says.
    pub fn read(&self) -> Result<Setting, Error> {
        match &self.file {
            File::Freeze => Ok(Setting::Frozen(self.number("cgroup.freeze")? != 0)),
            File::Priority => {
                let is_idle = self.is_idle()?;
                let weight = || self.number(self.weight_file()).map(Priority::Weight);
                Ok(Setting::Priority(if is_idle { Priority::Idle } else { weight()? }))
            }
            File::Quota(file) => Ok(Setting::Quota(file.read()?)),
            File::Cpuset(_) => {
                let text = self.text("cpuset.cpus")?;
                let expected = "a list of CPUs";
                let cpus = text.parse().map_err(|_| Error::Unreadable {
                    path: self.directory.join("cpuset.cpus"),
                    found: text,
                    expected,
                })?;
                Ok(Setting::Cpus(cpus))
            }
            File::Limit(file) => self.limit(file).map(|limit| match *file {
                "memory.high" => Setting::MemoryHigh(limit),
                _ => Setting::MemoryMax(limit),
            }),
            File::Amount(file) => self.limit(file).map(|amount| {
                let amount = amount.unwrap_or(u64::MAX);
                match *file {
                    "memory.min" => Setting::MemoryMin(amount),
                    "memory.low" => Setting::MemoryLow(amount),
                    _ => Setting::Burst(amount),
                }
            }),
        }
    }

    /// Before Linux 5.15 nothing is.
    fn is_idle(&self) -> Result<bool, Error> {
        match self.number("cpu.idle") {
            Err(Error::Missing { .. }) => Ok(false),
            number => number.map(|number| number != 0),
        }
    }

    /// `None`: no limit, for which v1 has its greatest number.
    fn limit(&self, file: &'static str) -> Result<Option<u64>, Error> {
        if self.text(file)?.trim() == "max" {
            return Ok(None);
        }
        let number = self.number(file)?;
        Ok((number < V1_UNLIMITED).then_some(number))
    }

    /// Puts a value in force.
    ///
    /// # Errors
    /// As for [`SettingFile::read`], and [`Error::Refused`].
    ///
    /// # Panics
    /// If it is a value for another knob.
    pub fn write(&self, setting: &Setting) -> Result<(), Error> {
        match (&self.file, setting) {
            (File::Freeze, Setting::Frozen(frozen)) => {
                self.put("cgroup.freeze", if *frozen { "1" } else { "0" })
            }
            (File::Priority, Setting::Priority(Priority::Idle)) => self.put("cpu.idle", "1"),
            (File::Priority, Setting::Priority(Priority::Weight(weight))) => {
                // The kernel gives a directory that is no longer idle the default weight, and takes no other one before.
                if self.is_idle()? {
                    self.put("cpu.idle", "0")?;
                }
                self.put(self.weight_file(), &weight.to_string())
            }
            (File::Quota(file), Setting::Quota(limit)) => Ok(file.write(*limit)?),
            // v1 refuses an empty list that v2 takes for "as the parent's".
            (File::Cpuset(_), Setting::Cpus(cpus)) if cpus.is_empty() => self.put("cpuset.cpus", "\n"),
            (File::Cpuset(controller), Setting::Cpus(cpus)) => {
                controller.set_cpus(&cpus.to_string()).map_err(|err| {
                    let why = cpu_limit::cause(&err);
                    self.explain("cpuset.cpus", why, Some(&cpus.to_string()))
                })
            }
            (File::Limit(file), Setting::MemoryHigh(limit) | Setting::MemoryMax(limit)) => {
                let none = if self.hierarchy == Hierarchy::V2 { "max" } else { "-1" };
                self.put(file, &limit.map_or_else(|| none.to_owned(), |bytes| bytes.to_string()))
            }
            (
                File::Amount(file),
                Setting::MemoryMin(amount) | Setting::MemoryLow(amount) | Setting::Burst(amount),
            ) => {
                let text = if *amount == u64::MAX { "max".to_owned() } else { amount.to_string() };
                self.put(file, &text)
            }
            (file, setting) => panic!("BUG: {setting} written to {file:?}"),
        }
    }

    const fn weight_file(&self) -> &'static str {
        match self.hierarchy {
            Hierarchy::V2 => "cpu.weight",
            Hierarchy::V1Cpu | Hierarchy::V1Cpuset | Hierarchy::V1Memory => "cpu.shares",
        }
    }

    fn text(&self, file: &'static str) -> Result<String, Error> {
        fs::read_to_string(self.directory.join(file)).map_err(|err| self.explain(file, err, None))
    }

    fn number(&self, file: &'static str) -> Result<u64, Error> {
        let text = self.text(file)?;
        text.trim().parse().map_err(|_| Error::Unreadable {
            path: self.directory.join(file),
            found: text,
            expected: "a number",
        })
    }

    fn put(&self, file: &'static str, value: &str) -> Result<(), Error> {
        fs::write(self.directory.join(file), value).map_err(|err| self.explain(file, err, Some(value)))
    }

    fn explain(&self, file: &'static str, err: io::Error, value: Option<&str>) -> Error {
        explain(&self.directory, file, err, value)
    }
}

/// What a control file's error means. `value`: what was to be written.
pub(super) fn explain(directory: &Path, file: &'static str, err: io::Error, value: Option<&str>) -> Error {
    use rustix::io::Errno;
    let directory = directory.to_owned();
    let errno = err.raw_os_error().map(Errno::from_raw_os_error);
    match (errno, value) {
        (Some(Errno::INVAL | Errno::BUSY | Errno::NOSPC), Some(value)) => {
            Error::Refused { directory, value: format!("{file} {value}"), why: why_refused(file) }
        }
        // Opening a control file that is not there is refused rather than not found, cgroupfs being closed to new files.
        _ if !directory.is_dir() => Error::Gone(directory),
        (Some(Errno::NOENT | Errno::ACCESS | Errno::PERM), _) if !directory.join(file).exists() => {
            Error::Missing { directory, file, cure: cure(file) }
        }
        _ => Error::Io { path: directory.join(file), source: err },
    }
}

fn why_refused(file: &str) -> &'static str {
    match file {
        "cpu.max" | "cpu.cfs_quota_us" => {
            "a v1 parent's limit must not be below its children's, nor a quota below cpu.cfs_burst_us"
        }
        "cpuset.cpus" => {
            "a v1 parent must have the CPUs of its children, and an exclusive sibling may own them"
        }
        "cpu.weight" | "cpu.shares" => "cpu.idle is set there",
        "memory.limit_in_bytes" => "more is in use there, and it cannot be reclaimed",
        "cpu.max.burst" | "cpu.cfs_burst_us" => "a burst must not be more than the quota",
        _ => "the kernel does not take this value there",
    }
}

fn cure(file: &str) -> &'static str {
    match file {
        "cpu.max" | "cpu.cfs_quota_us" | "cpu.weight" | "cpu.shares" => {
            "the cpu controller is not enabled there; add +cpu to cgroup.subtree_control of its parents"
        }
        "cpuset.cpus" => {
            "the cpuset controller is not enabled there; add +cpuset to cgroup.subtree_control of its parents"
        }
        "memory.high" | "memory.max" | "memory.min" | "memory.low" => {
            "the memory controller is on v1 or not enabled there; boot with systemd.unified_cgroup_hierarchy=1, or add \
             +memory to cgroup.subtree_control of its parents"
        }
        "cpu.idle" => "use Linux 5.15 or newer",
        "cpu.max.burst" | "cpu.cfs_burst_us" => "use Linux 5.14 or newer",
        _ => "use cgroup v2 and a newer kernel",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory(files: &[(&str, &str)]) -> (tempfile::TempDir, PathBuf) {
        let mount = tempfile::tempdir().unwrap();
        let directory = mount.path().join("batch");
        fs::create_dir(&directory).unwrap();
        for (name, text) in files {
            fs::write(directory.join(name), text).unwrap();
        }
        (mount, directory)
    }

    #[test]
    fn each_knob_reads_what_it_wrote() {
        let (_mount, path) = directory(&[
            ("cgroup.freeze", "0\n"),
            ("cpu.idle", "0\n"),
            ("cpu.weight", "100\n"),
            ("cpu.max", "max 100000\n"),
            ("cpuset.cpus", "\n"),
            ("memory.high", "max\n"),
            ("memory.max", "max\n"),
            ("memory.min", "0\n"),
            ("memory.low", "0\n"),
            ("cpu.max.burst", "0\n"),
        ]);
        let ours = [
            Setting::Frozen(true),
            Setting::Priority(Priority::Idle),
            Setting::Quota(CpuLimit { quota_us: Some(20_000), period_us: 1_000_000 }),
            Setting::Cpus("1,3".parse().unwrap()),
            Setting::MemoryHigh(Some(64 << 20)),
            Setting::MemoryMax(Some(64 << 20)),
            Setting::MemoryMin(32 << 20),
            Setting::MemoryLow(32 << 20),
            Setting::Burst(20_000),
        ];
        for ours in ours {
            let file = SettingFile::new(Hierarchy::V2, path.clone(), ours.knob());
            let owners = file.read().unwrap();
            assert_ne!(owners, ours);
            file.write(&ours).unwrap();
            assert_eq!(file.read().unwrap(), ours);
            file.write(&owners).unwrap();
            assert_eq!(file.read().unwrap(), owners, "{owners}");
        }
    }

    #[test]
    fn what_the_owner_allows_is_never_exceeded() {
        let quota = |quota_us| Setting::Quota(CpuLimit { quota_us, period_us: 100_000 });
        assert_eq!(quota(Some(90_000)).within(&quota(Some(50_000))), quota(Some(50_000)));
        assert_eq!(quota(Some(20_000)).within(&quota(Some(50_000))), quota(Some(20_000)));
        assert_eq!(quota(Some(20_000)).within(&quota(None)), quota(Some(20_000)));
        // Lifted for a moment, because the directory above carries the limit.
        assert_eq!(quota(None).within(&quota(Some(50_000))), quota(None));
        let high = Setting::MemoryHigh;
        assert_eq!(high(Some(2 << 20)).within(&high(Some(1 << 20))), high(Some(1 << 20)));
        assert_eq!(high(Some(1 << 20)).within(&high(Some(2 << 20))), high(Some(1 << 20)));
        assert_eq!(high(Some(1 << 20)).within(&high(None)), high(Some(1 << 20)));
        assert_eq!(high(None).within(&high(Some(1 << 20))), high(Some(1 << 20)));
        let cpus = |text: &str| Setting::Cpus(text.parse().unwrap());
        assert_eq!(cpus("6-7").within(&cpus("0-3")), cpus("2-3"));
        assert_eq!(cpus("6-7").within(&cpus("")), cpus("6-7"));
    }

    #[test]
    fn a_directory_that_went_and_one_without_the_file_are_told_apart() {
        let (mount, path) = directory(&[]);
        let file = SettingFile::new(Hierarchy::V2, path, Knob::Burst);
        let missing = file.read().unwrap_err();
        assert!(missing.to_string().contains("has no cpu.max.burst: use Linux 5.14"), "{missing}");
        fs::remove_dir_all(mount.path()).unwrap();
        assert!(matches!(file.read(), Err(Error::Gone(_))), "{:?}", file.read());
    }
}
