//! Settings that stand until they are replaced, whatever the plan says beside them.

use std::{
    collections::{BTreeMap, BTreeSet},
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{Actuator, Target, Wanted, compare::COMPARE, key::Key};
use crate::{
    cgroup::{
        hierarchy::Hierarchy,
        setting::{Knob, Setting, SettingFile},
        tree::Directory,
    },
    model::CpuLimit,
};

/// What is to be in force until it is replaced, whatever the plan says beside it.
pub type Standing = BTreeMap<Key, (Directory, Setting)>;

impl Actuator {
    /// From now on these are standing settings, and `gone`, as far as they are not among them, no longer are.
    pub fn stand(&mut self, gone: &[Key], new: Standing) {
        // Nothing would ever take them in, and they would pile up.
        if self.shadow {
            return;
        }
        for key in gone.iter().filter(|key| !new.contains_key(key)) {
            if self.standing.remove(key).is_some() {
                self.loose.insert(key.clone());
            }
        }
        if !new.is_empty() {
            self.unsettled.extend(new.keys().cloned());
            self.settle_at = Duration::ZERO;
        }
        self.standing.extend(new);
    }

    /// Adds standing settings that may not be in force to those of the plan, which go before.
    pub(super) fn add_standing<'a>(
        &mut self,
        now: Duration,
        standing: &'a Standing,
        wanted: &mut Wanted<'a>,
    ) {
        if !self.planned.iter().eq(wanted.keys()) {
            let planned: BTreeSet<Key> = wanted.keys().cloned().collect();
            for key in self.planned.symmetric_difference(&planned) {
                self.unsettled.insert(key.clone());
                self.unsettled.extend(quotas_below(key, standing));
                self.loose.insert(key.clone());
            }
            self.planned = planned;
            self.settle_at = Duration::ZERO;
        }
        let quotas: Vec<PathBuf> = wanted
            .iter()
            .filter(|(key, (directory, _))| {
                key.knob == Knob::Quota && directory.hierarchy == Hierarchy::V1Cpu
            })
            .map(|(key, _)| key.path.clone())
            .collect();
        for (key, (_, planned)) in wanted.iter_mut() {
            if let Some((_, setting)) = standing.get(key) {
                *planned = planned.clone().within(setting);
            }
        }
        if now < self.settle_at {
            return;
        }
        self.settle_at = now + COMPARE;
        for key in std::mem::take(&mut self.unsettled) {
            if let Some((key, value)) = standing.get_key_value(&key) {
                want_standing(key, value, &quotas, wanted);
            }
        }
    }

    /// Quotas below a v1 directory that is to be lowered are lifted; the directory's own does their work.
    pub(super) fn want_no_quota_below<'a>(&self, target: &Target<'a>, wanted: &mut Wanted<'a>) {
        for &below in &target.below {
            let path = self.path_of(below);
            let key = Key::new(Knob::Quota, path.clone());
            let owners = match self.held.get(&key) {
                Some(held) if held.entry().inode == below.inode => Ok(held.entry().owner.clone()),
                _ => SettingFile::new(below.hierarchy, path, Knob::Quota).read(),
            };
            if let Ok(Setting::Quota(owners)) = owners
                && owners.quota_us.is_some()
            {
                let none = Setting::Quota(CpuLimit { quota_us: None, ..owners });
                wanted.insert(key, (below, none));
            }
        }
    }
}

/// Standing quotas of directories below the one whose quota this is.
fn quotas_below(Key { knob, path: above }: &Key, standing: &Standing) -> Vec<Key> {
    if *knob != Knob::Quota {
        return Vec::new();
    }
    let is_near = |key: &&Key| {
        key.knob == Knob::Quota && key.path.as_os_str().as_bytes().starts_with(above.as_os_str().as_bytes())
    };
    let near = standing.range(Key::new(Knob::Quota, above.clone())..).map(|(key, _)| key).take_while(is_near);
    near.filter(|key| is_below(&key.path, above)).cloned().collect()
}

/// Where a plan sets a quota above, that one does its work; v1 allows no higher one below.
fn want_standing<'a>(
    key: &'a Key,
    (directory, setting): &'a (Directory, Setting),
    quotas: &[PathBuf],
    wanted: &mut Wanted<'a>,
) {
    if wanted.contains_key(key) {
        return;
    }
    let lies_below = |quota: &PathBuf| is_below(&key.path, quota);
    let setting = match setting {
        Setting::Quota(limit) if quotas.iter().any(lies_below) => {
            Setting::Quota(CpuLimit { quota_us: None, ..*limit })
        }
        setting => setting.clone(),
    };
    wanted.insert(key.clone(), (directory, setting));
}

fn is_below(path: &Path, above: &Path) -> bool {
    path != above && path.starts_with(above)
}
