//! The actuator over plain files, which take any value; that kernels do not is tested on real ones.

use std::{fs, os::unix::fs::MetadataExt as _};

use super::{compare::YIELD, journal::Entry, *};
use crate::{
    cgroup::setting::Priority,
    model::{CpuLimit, GroupId},
};

struct Host {
    root: tempfile::TempDir,
    now: Duration,
}

const OWNER: &str = "max 100000";

impl Host {
    fn new(directories: &[&str]) -> Self {
        let root = tempfile::tempdir().unwrap();
        for directory in directories {
            let path = root.path().join("v2").join(directory);
            fs::create_dir_all(&path).unwrap();
            fs::write(path.join("cpu.max"), OWNER).unwrap();
        }
        Self { root, now: Duration::ZERO }
    }

    fn mounts(&self) -> Mounts {
        Mounts { v2: Some(self.root.path().join("v2")), ..Mounts::default() }
    }

    fn journal(&self) -> Journal {
        // A process that another test starts holds a copy of the lock until it has become another program.
        Journal::open_within(&self.root.path().join("run"), Duration::from_secs(1)).unwrap()
    }

    fn actuator(&self) -> Actuator {
        Actuator::new(self.mounts(), self.journal(), false)
    }

    fn directory(&self, name: &str) -> Directory {
        let inode = fs::metadata(self.mounts().point(Hierarchy::V2).join(name)).unwrap().ino();
        Directory { hierarchy: Hierarchy::V2, path: name.into(), inode, group: GroupId(1), is_top: true }
    }

    fn limit(&self, name: &str) -> String {
        fs::read_to_string(self.root.path().join("v2").join(name).join("cpu.max")).unwrap()
    }

    fn set(&self, name: &str, limit: &str) {
        fs::write(self.root.path().join("v2").join(name).join("cpu.max"), limit).unwrap();
    }

    /// Applies one limit, in ms per second, to each of the directories; a second later than the last time.
    fn apply(&mut self, actuator: &mut Actuator, wanted: &[(&Directory, u64)]) -> Applied {
        self.apply_after(COMPARE, actuator, wanted)
    }

    fn apply_after(
        &mut self,
        passed: Duration,
        actuator: &mut Actuator,
        wanted: &[(&Directory, u64)],
    ) -> Applied {
        self.now += passed;
        let quota = |ms| Setting::Quota(CpuLimit { quota_us: Some(ms * 1000), period_us: 1_000_000 });
        let targets: Vec<Target<'_>> = wanted
            .iter()
            .map(|&(directory, ms)| Target {
                directory: Cow::Borrowed(directory),
                setting: quota(ms),
                below: Vec::new(),
            })
            .collect();
        actuator.apply(self.now, &targets)
    }
}

#[test]
fn a_limit_is_written_once_and_undone_when_the_plan_drops_it() {
    let mut host = Host::new(&["batch"]);
    let (mut actuator, batch) = (host.actuator(), host.directory("batch"));
    let writes: Vec<u64> = [&[(&batch, 200)][..], &[(&batch, 200)], &[(&batch, 300)], &[], &[]]
        .map(|wanted| host.apply(&mut actuator, wanted).writes)
        .into();
    assert_eq!(writes, [1, 0, 1, 1, 0]);
    assert_eq!(host.limit("batch"), OWNER);
}

#[test]
fn every_lever_is_undone_on_its_own() {
    let mut host = Host::new(&["batch"]);
    for (file, owners) in [("cgroup.freeze", "0"), ("cpu.idle", "0"), ("cpu.weight", "7")] {
        fs::write(host.root.path().join("v2/batch").join(file), owners).unwrap();
    }
    let read =
        |host: &Host, file: &str| fs::read_to_string(host.root.path().join("v2/batch").join(file)).unwrap();
    let (mut actuator, batch) = (host.actuator(), host.directory("batch"));
    let target = |setting| Target { directory: Cow::Borrowed(&batch), setting, below: Vec::new() };
    let idle = target(Setting::Priority(Priority::Idle));
    let frozen = target(Setting::Frozen(true));
    assert_eq!(actuator.apply(host.now, &[idle.clone(), frozen]).writes, 2);
    assert_eq!((read(&host, "cgroup.freeze").as_str(), read(&host, "cpu.idle").as_str()), ("1", "1"));
    host.now += COMPARE;
    assert_eq!(actuator.apply(host.now, &[idle]).writes, 1);
    assert_eq!((read(&host, "cgroup.freeze").as_str(), read(&host, "cpu.idle").as_str()), ("0", "1"));
    actuator.release_all();
    assert_eq!((read(&host, "cpu.idle").as_str(), read(&host, "cpu.weight").as_str()), ("0", "7"));
}

/// Standing settings change one group at a time, between two looks at all of them.
#[test]
fn what_stands_is_changed_one_by_one() {
    let mut host = Host::new(&["a", "b", "c"]);
    let mut actuator = host.actuator();
    let standing = |host: &Host, name: &str, ms: u64| {
        let directory = host.directory(name);
        let path = host.mounts().point(Hierarchy::V2).join(name);
        let limit = CpuLimit { quota_us: Some(ms * 1000), period_us: 1_000_000 };
        (Key::new(Knob::Quota, path), (directory, Setting::Quota(limit)))
    };
    let (a, b, c) = (standing(&host, "a", 100), standing(&host, "b", 200), standing(&host, "c", 300));
    actuator.stand(&[], [a.clone(), b.clone()].into());
    assert_eq!(host.apply(&mut actuator, &[]).writes, 2);
    // Not time yet to look at all of them.
    let mut apply = |actuator: &mut Actuator, targets: &[Target<'_>]| {
        host.now += Duration::from_millis(1);
        actuator.apply(host.now, targets).writes
    };
    actuator.stand(std::slice::from_ref(&a.0), [c].into());
    assert_eq!(apply(&mut actuator, &[]), 2, "one comes, one goes");
    assert_eq!(apply(&mut actuator, &[]), 0);
    // The tighter one is in force, as long as it is planned.
    let tighter = Setting::Quota(CpuLimit { quota_us: Some(50_000), period_us: 1_000_000 });
    let target = Target { directory: Cow::Borrowed(&b.1.0), setting: tighter, below: Vec::new() };
    assert_eq!(apply(&mut actuator, std::slice::from_ref(&target)), 1);
    assert_eq!(apply(&mut actuator, &[target]), 0);
    assert_eq!(apply(&mut actuator, &[]), 1);
    assert_eq!((host.limit("a").as_str(), host.limit("b").as_str()), (OWNER, "200000 1000000"));
    assert_eq!(host.limit("c"), "300000 1000000");
    actuator.release_all();
    assert_eq!((host.limit("b").as_str(), host.limit("c").as_str()), (OWNER, OWNER));
}

/// The kernel's v1 interface takes no quota below that is higher than the one above.
#[test]
fn standing_quotas_make_way_for_a_planned_one_above_and_come_back() {
    let mut host = Host::new(&[]);
    let mounts = Mounts { v1_cpu: Some(host.root.path().join("v1")), ..Mounts::default() };
    for name in ["pod", "pod/main", "pod-of-another"] {
        let path = mounts.point(Hierarchy::V1Cpu).join(name);
        fs::create_dir_all(&path).unwrap();
        fs::write(path.join("cpu.cfs_quota_us"), "-1").unwrap();
        fs::write(path.join("cpu.cfs_period_us"), "100000").unwrap();
    }
    let mut actuator = Actuator::new(mounts.clone(), host.journal(), false);
    let point = mounts.point(Hierarchy::V1Cpu).to_owned();
    let directory = |name: &str| {
        let inode = fs::metadata(point.join(name)).unwrap().ino();
        let (hierarchy, group) = (Hierarchy::V1Cpu, GroupId(1));
        Directory { hierarchy, path: name.into(), inode, group, is_top: name == "pod" }
    };
    let quota = |us| Setting::Quota(CpuLimit { quota_us: Some(us), period_us: 100_000 });
    let standing = |name: &str, us| (Key::new(Knob::Quota, point.join(name)), (directory(name), quota(us)));
    let quotas = || {
        ["pod", "pod/main", "pod-of-another"]
            .map(|name| fs::read_to_string(point.join(name).join("cpu.cfs_quota_us")).unwrap())
    };
    actuator.stand(&[], ["pod", "pod/main", "pod-of-another"].map(|name| standing(name, 50_000)).into());
    host.now += COMPARE;
    actuator.apply(host.now, &[]);
    assert_eq!(quotas(), ["50000", "50000", "50000"]);

    let (pod, main) = (directory("pod"), directory("pod/main"));
    let target = Target { directory: Cow::Borrowed(&pod), setting: quota(20_000), below: vec![&main] };
    // At once, whenever all standing settings were looked at last.
    for (targets, expected) in
        [(&[target][..], ["20000", "-1", "50000"]), (&[][..], ["50000", "50000", "50000"])]
    {
        for _ in 0..2 {
            host.now += Duration::from_millis(1);
            actuator.apply(host.now, targets);
            assert_eq!(quotas(), expected);
        }
    }
}

/// Somebody else's value stays for a while; what stands is then put in force again.
#[test]
fn a_standing_setting_comes_back_after_somebody_elses() {
    let mut host = Host::new(&["a"]);
    let mut actuator = host.actuator();
    let limit = CpuLimit { quota_us: Some(100_000), period_us: 1_000_000 };
    let key = Key::new(Knob::Quota, host.mounts().point(Hierarchy::V2).join("a"));
    actuator.stand(&[], [(key, (host.directory("a"), Setting::Quota(limit)))].into());
    host.apply(&mut actuator, &[]);
    host.set("a", "300000 1000000");
    assert_eq!(host.apply(&mut actuator, &[]).foreign, 1);
    assert_eq!(host.limit("a"), "300000 1000000");
    for _ in 0..=YIELD.as_secs() {
        host.apply(&mut actuator, &[]);
    }
    assert_eq!(host.limit("a"), "100000 1000000");
    actuator.release_all();
    assert_eq!(host.limit("a"), "300000 1000000", "the owner's new wish");
}

#[test]
fn what_a_killed_agent_left_is_restored_from_the_journal() {
    let mut host = Host::new(&["batch"]);
    let mut actuator = host.actuator();
    host.apply(&mut actuator, &[(&host.directory("batch"), 200)]);
    let left = fs::read(host.root.path().join("run/journal.jsonl")).unwrap();
    // What kill -9 leaves: the limit and the journal, no destructor run.
    drop(actuator);
    host.set("batch", "200000 1000000");
    fs::write(host.root.path().join("run/journal.jsonl"), left).unwrap();

    let restored = host.journal().restore(&host.mounts()).unwrap();
    assert_eq!((restored.written, restored.errors.len()), (1, 0));
    assert_eq!(host.limit("batch"), OWNER);
    assert_eq!(host.journal().restore(&host.mounts()).unwrap().written, 0, "only once");
}

/// The kernel gives the default weight when `cpu.idle` is undone; who was killed then has not put the owner's back.
#[test]
fn idle_that_was_half_undone_ends_in_the_owners_weight() {
    let host = Host::new(&["batch"]);
    let file = |name: &str| host.root.path().join("v2/batch").join(name);
    for (name, owners) in [("cpu.idle", "0"), ("cpu.weight", "7")] {
        fs::write(file(name), owners).unwrap();
    }
    let mut actuator = host.actuator();
    let (directory, setting) = (host.directory("batch"), Setting::Priority(Priority::Idle));
    actuator.apply(host.now, &[Target { directory: Cow::Borrowed(&directory), setting, below: Vec::new() }]);
    let left = fs::read(host.root.path().join("run/journal.jsonl")).unwrap();
    drop(actuator);
    fs::write(file("cpu.weight"), "100").unwrap();
    fs::write(host.root.path().join("run/journal.jsonl"), left).unwrap();

    let restored = host.journal().restore(&host.mounts()).unwrap();
    assert_eq!((restored.written, fs::read_to_string(file("cpu.weight")).unwrap().as_str()), (1, "7"));
}

/// systemd does that where no unit needs the controller any more.
#[test]
fn a_limit_goes_with_the_controller() {
    let mut host = Host::new(&["batch"]);
    let mut actuator = host.actuator();
    host.apply(&mut actuator, &[(&host.directory("batch"), 200)]);
    fs::remove_file(host.root.path().join("v2/batch/cpu.max")).unwrap();
    let applied = actuator.finish();
    assert!(applied.errors.is_empty() && actuator.held() == 0, "{applied:?}");
}

#[test]
fn an_agent_whose_state_directory_is_gone_restores_and_says_so() {
    let mut host = Host::new(&["batch"]);
    let mut actuator = host.actuator();
    host.apply(&mut actuator, &[(&host.directory("batch"), 200)]);
    assert!(actuator.check_journal().is_ok());
    fs::remove_dir_all(host.root.path().join("run")).unwrap();
    let gone = actuator.check_journal().unwrap_err();
    assert!(gone.to_string().contains("--state-dir"), "{gone}");
    let applied = actuator.finish();
    assert!(applied.errors.is_empty(), "{:?}", applied.errors);
    assert_eq!(host.limit("batch"), OWNER);
}

#[test]
fn what_holds_in_a_directory_that_was_made_again_unseen_is_not_taken_for_the_owners() {
    let mut host = Host::new(&["a"]);
    let (mut actuator, first) = (host.actuator(), host.directory("a"));
    let v2 = host.root.path().join("v2");
    fs::rename(v2.join("a"), v2.join("earlier")).unwrap();
    fs::create_dir(v2.join("a")).unwrap();
    host.set("a", "500000 1000000");
    let applied = host.apply(&mut actuator, &[(&first, 200)]);
    assert!(applied.errors.is_empty(), "{:?}", applied.errors);
    assert_eq!((applied.writes, actuator.held(), host.limit("a").as_str()), (0, 0, "500000 1000000"));
}

#[test]
fn a_foreign_value_is_the_owners_new_wish() {
    let mut host = Host::new(&["batch"]);
    let (mut actuator, batch) = (host.actuator(), host.directory("batch"));
    host.apply(&mut actuator, &[(&batch, 200)]);
    host.set("batch", "50000 100000");
    let applied = host.apply(&mut actuator, &[(&batch, 200)]);
    assert_eq!((applied.foreign, applied.writes), (1, 0), "no fight");
    host.now += YIELD;
    host.apply(&mut actuator, &[(&batch, 200)]);
    assert_eq!(host.limit("batch"), "200000 1000000");
    actuator.release_all();
    assert_eq!(host.limit("batch"), "50000 100000");
}

#[test]
fn a_directory_that_went_or_was_made_again_is_left_alone() {
    let mut host = Host::new(&["a", "b"]);
    let mut actuator = host.actuator();
    let (a, b) = (host.directory("a"), host.directory("b"));
    host.apply(&mut actuator, &[(&a, 200), (&b, 200)]);
    fs::remove_dir_all(host.root.path().join("v2/a")).unwrap();
    let applied = host.apply(&mut actuator, &[(&a, 100), (&b, 100)]);
    assert!(applied.errors.is_empty(), "{:?}", applied.errors);
    assert_eq!((actuator.held(), host.limit("b").as_str()), (1, "100000 1000000"));
}

#[test]
fn of_a_directory_that_was_made_again_the_new_value_is_the_owners() {
    let mut host = Host::new(&["a"]);
    let (mut actuator, first) = (host.actuator(), host.directory("a"));
    host.apply(&mut actuator, &[(&first, 200)]);
    let v2 = host.root.path().join("v2");
    fs::rename(v2.join("a"), v2.join("earlier")).unwrap();
    fs::create_dir(v2.join("a")).unwrap();
    host.set("a", "500000 1000000");
    let second = host.directory("a");
    let applied = host.apply(&mut actuator, &[(&second, 200)]);
    assert_eq!((applied.writes, applied.foreign), (1, 0));
    assert_eq!(host.limit("a"), "200000 1000000");
    actuator.release_all();
    assert_eq!(
        (host.limit("a").as_str(), host.limit("earlier").as_str()),
        ("500000 1000000", "200000 1000000")
    );
}

#[test]
fn what_somebody_else_wrote_is_not_written_over_unseen() {
    let mut host = Host::new(&["batch"]);
    let (mut actuator, batch) = (host.actuator(), host.directory("batch"));
    host.apply(&mut actuator, &[(&batch, 200)]);
    host.set("batch", "50000 100000");
    let applied = host.apply_after(Duration::from_millis(1), &mut actuator, &[(&batch, 300)]);
    assert_eq!((applied.writes, applied.foreign), (0, 1));
    actuator.release_all();
    assert_eq!(host.limit("batch"), "50000 100000");
}

/// A write that took long may come after the owner's value was put back.
#[test]
fn a_late_write_of_our_own_is_not_taken_for_the_owners() {
    let mut host = Host::new(&["batch"]);
    let (mut actuator, batch) = (host.actuator(), host.directory("batch"));
    host.apply(&mut actuator, &[(&batch, 200)]);
    let key = actuator.held.keys().next().unwrap().clone();
    let entry = actuator.held.entry_mut(&key).unwrap();
    entry.intend(entry.owner.clone());
    let applied = host.apply(&mut actuator, &[]);
    assert_eq!((applied.foreign, actuator.held(), host.limit("batch").as_str()), (0, 0, OWNER));
}

#[test]
fn one_stubborn_directory_does_not_shield_the_others() {
    let mut host = Host::new(&["a", "b"]);
    let mut actuator = host.actuator();
    let (a, b) = (host.directory("a"), host.directory("b"));
    fs::remove_file(host.root.path().join("v2/a/cpu.max")).unwrap();
    fs::create_dir(host.root.path().join("v2/a/cpu.max")).unwrap();
    let applied = host.apply(&mut actuator, &[(&a, 200), (&b, 200)]);
    assert_eq!((applied.errors.len(), host.limit("b").as_str()), (1, "200000 1000000"));
}

#[test]
fn dropping_the_actuator_restores() {
    let mut host = Host::new(&["batch"]);
    let mut actuator = host.actuator();
    host.apply(&mut actuator, &[(&host.directory("batch"), 200)]);
    drop(actuator);
    assert_eq!(host.limit("batch"), OWNER);
}

#[test]
fn two_agents_do_not_share_a_journal() {
    let host = Host::new(&[]);
    let _first = host.actuator();
    let second = Journal::open(&host.root.path().join("run"));
    assert!(matches!(second, Err(journal::Error::Busy(_))), "{second:?}");
}

#[test]
fn a_garbled_journal_is_an_error_and_stays() {
    let host = Host::new(&[]);
    fs::create_dir(host.root.path().join("run")).unwrap();
    let path = host.root.path().join("run/journal.jsonl");
    fs::write(&path, "{ half").unwrap();
    let opened = Journal::open(&host.root.path().join("run"));
    assert!(matches!(opened, Err(journal::Error::Garbled { .. })), "{opened:?}");
    assert_eq!(fs::read_to_string(&path).unwrap(), "{ half");
}

/// What a journal that grows says at each moment is what it would say if it had been written at once.
#[test]
fn the_last_line_about_a_setting_holds() {
    let mut host = Host::new(&["a", "b"]);
    let (a, b) = (host.directory("a"), host.directory("b"));
    let mut actuator = host.actuator();
    let path = host.root.path().join("run/journal.jsonl");
    host.apply(&mut actuator, &[(&a, 100), (&b, 100)]);
    host.apply(&mut actuator, &[(&a, 200), (&b, 100)]);
    host.apply(&mut actuator, &[(&a, 200)]);
    let text = fs::read_to_string(&path).unwrap();
    assert_eq!(text.lines().count(), 4, "two at once, a change, an end: {text}");
    drop(actuator);
    assert_eq!(fs::read_to_string(&path).unwrap(), "", "nothing is held any more");

    // As if it had been killed at the end of the text, or in the middle of its last line.
    for (killed_at, written) in [(text.len(), 1), (text.len() - 9, 2)] {
        host.set("a", "200000 1000000");
        host.set("b", "100000 1000000");
        fs::write(&path, &text[..killed_at]).unwrap();
        let restored = host.journal().restore(&host.mounts()).unwrap();
        assert_eq!((restored.written, restored.errors.len()), (written, 0));
        assert_eq!(host.limit("a"), OWNER);
    }
    fs::write(&path, text.replacen("owner", "own", 1)).unwrap();
    let opened = Journal::open(&host.root.path().join("run"));
    assert!(matches!(opened, Err(journal::Error::Garbled { .. })), "{opened:?}");
}

#[test]
fn a_journal_does_not_grow_for_ever_and_comes_back_when_it_was_removed() {
    let mut host = Host::new(&["batch"]);
    let batch = host.directory("batch");
    let mut actuator = host.actuator();
    let path = host.root.path().join("run/journal.jsonl");
    let mut longest = 0;
    for ms in 0..500 {
        host.apply(&mut actuator, &[(&batch, 100 + ms)]);
        longest = longest.max(fs::read_to_string(&path).unwrap().lines().count());
    }
    assert!((10..200).contains(&longest), "{longest}");
    fs::remove_file(&path).unwrap();
    host.apply(&mut actuator, &[(&batch, 50)]);
    assert_eq!(fs::read_to_string(&path).unwrap().lines().count(), 1);
}

#[test]
fn a_journal_that_names_other_places_is_not_followed() {
    let host = Host::new(&["batch"]);
    let elsewhere = host.root.path().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    fs::write(elsewhere.join("cpu.max"), "200000 1000000").unwrap();
    let quota = |quota_us, period_us| Setting::Quota(CpuLimit { quota_us, period_us });
    for directory in [elsewhere.clone(), host.root.path().join("v2/../elsewhere")] {
        let inode = fs::metadata(&elsewhere).unwrap().ino();
        let mut entry = Entry::new(Hierarchy::V2, directory, inode, quota(None, 100_000));
        entry.intend(quota(Some(200_000), 1_000_000));
        let entries: BTreeMap<Key, Entry> = [(Key::new(entry.knob(), entry.directory.clone()), entry)].into();
        host.journal().save(entries.keys(), &entries).unwrap();
        let restored = host.journal().restore(&host.mounts()).unwrap();
        assert_eq!((restored.written, restored.untouched), (0, 0));
        assert!(restored.errors[0].to_string().contains("--cgroup-root"), "{:?}", restored.errors);
        let left = fs::read_to_string(host.root.path().join("run/journal.jsonl")).unwrap();
        assert_eq!(left.lines().count(), 1, "an agent with the right root may yet come");
    }
    assert_eq!(fs::read_to_string(elsewhere.join("cpu.max")).unwrap(), "200000 1000000");
}
