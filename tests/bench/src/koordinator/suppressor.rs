//! Measures usage once per second and writes what the rule says, as Koordinator's node agent does.

use std::time::Duration;

use anyhow::Result;
use enforcer_rig::{cpuset::Cpuset, sandbox::Group};

use super::rule::{PERIOD_US, cpus, quota_us, target_cores};
use crate::accounts::Accounts;

/// What the rule changes.
pub enum Lever<'a> {
    /// In microseconds; `None` is no limit.
    Quota(Option<f64>),
    Cpus(&'a Cpuset, usize),
}

/// The rule at work.
pub struct Suppressor<'a> {
    cpus: usize,
    ls: &'a Group,
    be: &'a Group,
    lever: Lever<'a>,
    last: Accounts,
}

impl<'a> Suppressor<'a> {
    pub fn new(cpus: usize, ls: &'a Group, be: &'a Group, lever: Lever<'a>) -> Result<Self> {
        Ok(Self { cpus, ls, be, lever, last: Accounts::read(ls, be)? })
    }

    /// Once per second.
    pub fn tick(&mut self) -> Result<()> {
        let now = Accounts::read(self.ls, self.be)?;
        let usage = now.usage_since(self.last);
        self.last = now;
        let target = target_cores(self.cpus, usage);
        match &mut self.lever {
            Lever::Quota(current) => {
                if let Some(quota) = quota_us(target, self.cpus, *current) {
                    self.be.set_cpu_limit(quota / PERIOD_US, Duration::from_secs_f64(PERIOD_US / 1e6))?;
                    *current = Some(quota);
                }
            }
            Lever::Cpus(cpuset, current) => {
                *current = cpus(target, self.cpus, *current);
                cpuset.allow(*current)?;
            }
        }
        Ok(())
    }
}
