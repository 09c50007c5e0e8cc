//! The policy file: YAML to [`Policy`], with the line of whatever is wrong.

use std::time::Duration;

use serde::{Deserialize, Deserializer, de};
use serde_saphyr::Spanned;

use super::{Class, Group, OBJECTIVE, Policy, STALLED, Slo, kubernetes};
use crate::{
    cgroup::pattern::Pattern,
    model::Levers,
    units::{Factor, MilliCores, Share},
};

/// Kept by BE groups whose policy says nothing.
pub(super) const DEFAULT_FLOOR: MilliCores = MilliCores(100);
const DEFAULT_CGROUPS: u32 = 1024;
/// Generous: several times what it takes with a thousand groups on two CPUs.
const DEFAULT_OVERHEAD: Share = Share::percent(2);
const OVERHEADS: std::ops::RangeInclusive<Share> = Share { millionths: 10 }..=Share::percent(50);
const CGROUPS: std::ops::RangeInclusive<u32> = 16..=16_384;
/// Victim rows and culprit columns are 16-bit numbers in the probes, and blame is their product.
const GROUPS_MAX: usize = 4096;
/// What is learned, times this: within [`FACTORS`], because the histograms are right within 12 % at best.
const DEFAULT_FACTOR: Factor = Factor(1500);
const FACTORS: std::ops::RangeInclusive<Factor> = Factor(1050)..=Factor(10_000);
const NAME_MAX: usize = 63;

/// What is wrong, and in which line (1 is the first).
#[derive(Debug, PartialEq, Eq)]
pub struct Wrong {
    pub line: u64,
    pub what: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    groups: Vec<Spanned<GroupEntry>>,
    kubernetes: Option<kubernetes::Entry>,
    #[serde(default)]
    limits: Limits,
}

/// Names of levers.
pub(super) type Levels = Spanned<Vec<Spanned<String>>>;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GroupEntry {
    name: Spanned<String>,
    class: Class,
    cgroups: Spanned<Vec<Spanned<String>>>,
    slo: Option<Spanned<SloEntry>>,
    floor: Option<Spanned<String>>,
    levers: Option<Levels>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct SloEntry {
    request_latency: Option<Spanned<Promise>>,
    run_queue_wait: Option<Spanned<Promise>>,
    memory_stall: Option<Spanned<Promise>>,
}

/// `auto`, or a mapping.
enum Promise {
    Auto,
    Entry(Box<PromiseEntry>),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PromiseEntry {
    p99: Option<Spanned<String>>,
    share: Option<Spanned<String>>,
    auto: Option<Spanned<String>>,
}

impl<'de> Deserialize<'de> for Promise {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Promise;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("auto, or a mapping such as { p99: 5ms }, { share: 1% } or { auto: 1.5 }")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Promise, E> {
                if text == "auto" {
                    return Ok(Promise::Auto);
                }
                Err(E::invalid_value(de::Unexpected::Str(text), &self))
            }

            fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<Promise, A::Error> {
                let entry = PromiseEntry::deserialize(de::value::MapAccessDeserializer::new(map))?;
                Ok(Promise::Entry(Box::new(entry)))
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Limits {
    cgroups: Option<Spanned<u32>>,
    pods: Option<Spanned<u32>>,
    victims: Option<Spanned<u32>>,
    overhead: Option<Spanned<String>>,
}

/// Parses and checks a policy for a node with `cpus` CPUs.
pub fn parse(text: &str, cpus: u32) -> Result<Policy, Wrong> {
    let file: File = serde_saphyr::from_str(text).map_err(|err| unparsable(&err))?;
    let mut groups: Vec<Group> = Vec::new();
    let mut lines = Vec::new();
    let mut floors = MilliCores(0);
    for entry in &file.groups {
        let (group, pattern_lines) = group(&entry.value)?;
        if groups.iter().any(|earlier| earlier.name == group.name) {
            return Err(wrong(
                &entry.value.name,
                format!("a group named {:?} exists already: rename one", group.name),
            ));
        }
        for (pattern, line) in group.patterns.iter().zip(&pattern_lines) {
            refuse_overlap(pattern, *line, &groups, &lines)?;
        }
        if group.class == Class::BE {
            floors.0 = floors.0.saturating_add(group.floor.0);
            check_floors(floors, cpus, &group, &entry.value)?;
        }
        groups.push(group);
        lines.push(pattern_lines);
    }
    // On a node of a cluster the pods may be all there is.
    let least = usize::from(file.kubernetes.is_none());
    if groups.len() < least || groups.len() > GROUPS_MAX {
        let what = format!(
            "a policy names 1 to {GROUPS_MAX} groups, this one {}; one with a section `kubernetes` need not name any",
            groups.len()
        );
        return Err(Wrong { line: 1, what });
    }
    let limits =
        kubernetes::Limits { pods: file.limits.pods.as_ref(), victims: file.limits.victims.as_ref() };
    Ok(Policy {
        groups,
        kubernetes: kubernetes::of(&file.kubernetes.unwrap_or_default(), &limits)?,
        cgroups_max: cgroups_max(&file.limits)?,
        overhead: overhead(&file.limits)?,
        cpus,
    })
}

fn group(entry: &GroupEntry) -> Result<(Group, Vec<u64>), Wrong> {
    let name = &entry.name.value;
    let allowed =
        |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.' | '_' | '/');
    if name.is_empty() || name.len() > NAME_MAX || !name.chars().all(allowed) {
        let what = format!("{name:?} cannot name a group: use 1 to {NAME_MAX} of a-z, 0-9, -, ., _ and /");
        return Err(wrong(&entry.name, what));
    }
    if entry.cgroups.value.is_empty() {
        let what = format!("group {name:?} names no cgroups: give at least one pattern, such as batch.slice");
        return Err(wrong(&entry.cgroups, what));
    }
    let compile = |text: &Spanned<String>| {
        Pattern::new(&text.value).map_err(|err| wrong(text, format!("group {name:?}: {err}")))
    };
    let patterns = entry.cgroups.value.iter().map(compile).collect::<Result<Vec<_>, _>>()?;
    let lines = entry.cgroups.value.iter().map(line_of).collect();

    let slo = match (entry.class, &entry.slo) {
        (_, None) => Slo::default(),
        (Class::LS, Some(slo)) => slo_of(name, &slo.value)?,
        (class @ (Class::BE | Class::SYSTEM), Some(slo)) => {
            let what =
                format!("group {name:?} is {class} and cannot have an slo: make it LS, or remove the slo");
            return Err(wrong(slo, what));
        }
    };
    let floor = match (entry.class, &entry.floor) {
        (_, None) => DEFAULT_FLOOR,
        (Class::BE, Some(floor)) => {
            floor.value.parse().map_err(|err| wrong(floor, format!("group {name:?}: floor {err}")))?
        }
        (class @ (Class::LS | Class::SYSTEM), Some(floor)) => {
            let what =
                format!("group {name:?} is {class}, which is never limited: remove the floor, or make it BE");
            return Err(wrong(floor, what));
        }
    };
    let levers = levers_of(entry)?;
    let (name, workload) = (name.clone(), name.clone());
    Ok((Group { name, workload, class: entry.class, patterns, slo, floor, levers }, lines))
}

fn levers_of(entry: &GroupEntry) -> Result<Levers, Wrong> {
    let name = &entry.name.value;
    match (entry.class, &entry.levers) {
        (_, None) => Ok(Levers::ALL),
        (Class::BE, Some(levers)) => levers_in(name, levers),
        (class @ (Class::LS | Class::SYSTEM), Some(levers)) => {
            let what = format!(
                "group {name:?} is {class}, which is never held back: remove the levers, or make it BE"
            );
            Err(wrong(levers, what))
        }
    }
}

pub(super) fn levers_in(name: &str, levers: &Levels) -> Result<Levers, Wrong> {
    levers.value.iter().try_fold(Levers::default(), |levers, text| match text.value.parse() {
        Ok(lever) => Ok(levers.with(lever)),
        Err(err) => Err(wrong(text, format!("group {name:?}: {err}"))),
    })
}

pub(super) fn slo_of(group: &str, entry: &SloEntry) -> Result<Slo, Wrong> {
    let p99 = |what, entry| -> Result<_, Wrong> {
        let (given, auto) = promise(group, what, Field::P99, entry)?;
        Ok((given.map(|p99| threshold(group, what, p99)).transpose()?, auto))
    };
    let (request_latency_p99, request_latency_auto) = p99("requestLatency", entry.request_latency.as_ref())?;
    let (run_queue_wait_p99, run_queue_wait_auto) = p99("runQueueWait", entry.run_queue_wait.as_ref())?;
    let (share, memory_stall_auto) =
        promise(group, "memoryStall", Field::Share, entry.memory_stall.as_ref())?;
    Ok(Slo {
        request_latency_p99,
        run_queue_wait_p99,
        memory_stall: share.map(|share| memory_stall(group, share)).transpose()?,
        request_latency_auto,
        run_queue_wait_auto,
        memory_stall_auto,
    })
}

/// What an objective takes beside `auto`.
#[derive(Clone, Copy)]
enum Field {
    P99,
    Share,
}

/// What is given in place of `auto`, or the factor to learn it with.
fn promise<'a>(
    group: &str,
    what: &str,
    field: Field,
    promise: Option<&'a Spanned<Promise>>,
) -> Result<(Option<&'a Spanned<String>>, Option<Factor>), Wrong> {
    let Some(at) = promise else { return Ok((None, None)) };
    let Promise::Entry(entry) = &at.value else { return Ok((None, Some(DEFAULT_FACTOR))) };
    let PromiseEntry { p99, share, auto } = &**entry;
    let (given, stranger, takes) = match field {
        Field::P99 => (p99, share, "a p99, such as 5ms"),
        Field::Share => (share, p99, "a share, such as 1%"),
    };
    match (given, stranger, auto) {
        (Some(given), None, None) => Ok((Some(given), None)),
        (None, None, Some(auto)) => Ok((None, Some(factor(group, what, auto)?))),
        _ => Err(wrong(at, format!("group {group:?}: {what} takes either {takes}, or auto"))),
    }
}

fn threshold(group: &str, what: &str, p99: &Spanned<String>) -> Result<Duration, Wrong> {
    let duration = humantime::parse_duration(&p99.value).map_err(|err| {
        wrong(
            p99,
            format!("group {group:?}: {what} {:?} is no duration ({err}): write 5ms or 250us", p99.value),
        )
    })?;
    if !OBJECTIVE.contains(&duration) {
        let (low, high) = (OBJECTIVE.start(), OBJECTIVE.end());
        let what = format!("group {group:?}: {what} must lie between {low:?} and {high:?}, not {duration:?}");
        return Err(wrong(p99, what));
    }
    Ok(duration)
}

fn factor(group: &str, what: &str, auto: &Spanned<String>) -> Result<Factor, Wrong> {
    let factor: Factor =
        auto.value.parse().map_err(|err| wrong(auto, format!("group {group:?}: {what} {err}")))?;
    if !FACTORS.contains(&factor) {
        let (low, high) = (FACTORS.start(), FACTORS.end());
        let what = format!("group {group:?}: {what} auto must lie between {low} and {high}, not {factor}");
        return Err(wrong(auto, what));
    }
    Ok(factor)
}

fn memory_stall(group: &str, share: &Spanned<String>) -> Result<Share, Wrong> {
    let stalled =
        share.value.parse().map_err(|err| wrong(share, format!("group {group:?}: memoryStall {err}")))?;
    if !STALLED.contains(&stalled) {
        let (low, high) = (STALLED.start(), STALLED.end());
        let what = format!("group {group:?}: memoryStall must lie between {low} and {high}, not {stalled}");
        return Err(wrong(share, what));
    }
    Ok(stalled)
}

fn refuse_overlap(pattern: &Pattern, line: u64, groups: &[Group], lines: &[Vec<u64>]) -> Result<(), Wrong> {
    for (group, lines) in groups.iter().zip(lines) {
        for (other, other_line) in group.patterns.iter().zip(lines) {
            if pattern.overlaps(other) {
                let what = format!(
                    "`{pattern}` and `{other}` of group {:?} (line {other_line}) can name the same cgroup, or one below \
                     the other: make them disjoint",
                    group.name
                );
                return Err(Wrong { line, what });
            }
        }
    }
    Ok(())
}

fn check_floors(floors: MilliCores, cpus: u32, group: &Group, entry: &GroupEntry) -> Result<(), Wrong> {
    if floors.0 <= cpus.saturating_mul(1000) {
        return Ok(());
    }
    let line = entry.floor.as_ref().map_or_else(|| line_of(&entry.name), line_of);
    let what = format!(
        "the floors of the BE groups up to {:?} add up to {} cores, and the node has {cpus}: lower them",
        group.name,
        floors.cores()
    );
    Err(Wrong { line, what })
}

fn cgroups_max(limits: &Limits) -> Result<u32, Wrong> {
    let Some(cgroups) = &limits.cgroups else { return Ok(DEFAULT_CGROUPS) };
    if !CGROUPS.contains(&cgroups.value) {
        let what = format!(
            "limits.cgroups must lie between {} and {}, not {}",
            CGROUPS.start(),
            CGROUPS.end(),
            cgroups.value
        );
        return Err(wrong(cgroups, what));
    }
    Ok(cgroups.value)
}

fn overhead(limits: &Limits) -> Result<Share, Wrong> {
    let Some(overhead) = &limits.overhead else { return Ok(DEFAULT_OVERHEAD) };
    let share = overhead.value.parse().map_err(|err| wrong(overhead, format!("limits.overhead: {err}")))?;
    if !OVERHEADS.contains(&share) {
        let (low, high) = (OVERHEADS.start(), OVERHEADS.end());
        let what = format!("limits.overhead must lie between {low} and {high}, not {share}");
        return Err(wrong(overhead, what));
    }
    Ok(share)
}

fn line_of<T>(item: &Spanned<T>) -> u64 {
    item.referenced.line()
}

pub(super) fn wrong<T>(at: &Spanned<T>, what: String) -> Wrong {
    Wrong { line: line_of(at), what }
}

pub(super) fn unparsable(err: &serde_saphyr::Error) -> Wrong {
    let line = err.location().map_or(1, |location| location.line());
    // The first line says what; the rest is a picture of the place, which the line number names already.
    let text = err.without_snippet().to_string();
    Wrong { line, what: text.lines().next().unwrap_or_default().to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_is_a_valid_policy() {
        let policy = parse(super::super::EXAMPLE, 4).unwrap();
        let names: Vec<_> = policy.groups.iter().map(|group| (group.name.as_str(), group.class)).collect();
        assert_eq!(names, [("web", Class::LS), ("batch", Class::BE)]);
        assert_eq!(policy.groups[0].slo.request_latency_p99, Some(Duration::from_millis(5)));
        assert_eq!(policy.groups[0].slo.memory_stall, Some(Share::percent(1)));
        assert_eq!(policy.groups[1].floor, MilliCores(200));
        assert_eq!(policy.groups[1].levers, Levers::ALL, "the example shows the default");
        assert_eq!(policy.cgroups_max, DEFAULT_CGROUPS, "the example shows the defaults");
        assert_eq!(policy.overhead, DEFAULT_OVERHEAD);
    }

    #[test]
    fn every_mistake_names_its_line_and_the_cure() {
        let ls = "groups:\n- name: web\n  class: LS\n  cgroups: [web]\n";
        let be = "groups:\n- name: job\n  class: BE\n  cgroups: [job]\n";
        for (text, line, part) in [
            (format!("{ls}  colour: red\n"), 5, "unknown field `colour`"),
            (format!("{ls}  slo: {{ latency: {{ p99: 5ms }} }}\n"), 5, "unknown field `latency`"),
            (format!("{ls}  slo: {{ requestLatency: {{ p99: 0ms }} }}\n"), 5, "must lie between 10µs and 8s"),
            (format!("{ls}  slo: {{ requestLatency: {{ p99: fast }} }}\n"), 5, "write 5ms or 250us"),
            (format!("{ls}  slo: {{ memoryStall: {{ share: 0.01 }} }}\n"), 5, "such as 1% or 0.5%"),
            (
                format!("{ls}  slo: {{ memoryStall: {{ share: 80% }} }}\n"),
                5,
                "between 0.01% and 50%, not 80%",
            ),
            (
                format!("{ls}  slo: {{ memoryStall: {{ p99: 1ms }} }}\n"),
                5,
                "either a share, such as 1%, or auto",
            ),
            (format!("{ls}  slo: {{ memoryStall: {{ auto: 20 }} }}\n"), 5, "between 1.05 and 10, not 20"),
            (format!("{ls}  slo: {{ memoryStall: {{ share: 1%, auto: 2 }} }}\n"), 5, "either a share"),
            (format!("{ls}  slo: {{ requestLatency: {{ share: 1% }} }}\n"), 5, "either a p99, such as 5ms"),
            (format!("{ls}  slo: {{ requestLatency: often }}\n"), 5, "expected auto, or a mapping"),
            (format!("{ls}  slo: {{ requestLatency: {{ auto: much }} }}\n"), 5, "write a number such as 1.5"),
            (
                format!("{ls}  slo:\n    runQueueWait:\n      auto: 1.01\n"),
                7,
                "between 1.05 and 10, not 1.01",
            ),
            (format!("{ls}  slo: {{ runQueueWait: {{ auto: 2, p99: 1ms }} }}\n"), 5, "either a p99"),
            (format!("{ls}  slo: {{ runQueueWait: {{ p95: 1ms }} }}\n"), 5, "unknown field `p95`"),
            (format!("{ls}  floor: 1\n"), 5, "never limited"),
            (format!("{be}  floor: 64\n"), 5, "the node has 4: lower them"),
            (format!("{be}  floor: much\n"), 5, "write cores (0.5)"),
            (format!("{be}  levers: [quota, crowbar]\n"), 5, "`crowbar` is no lever: freeze, idle"),
            (format!("{ls}  levers: [quota]\n"), 5, "never held back"),
            (format!("{be}  slo: {{ runQueueWait: {{ p99: 1ms }} }}\n"), 5, "remove the slo"),
            (format!("{ls}- name: job\n  class: BE\n  cgroups:\n  - batch\n  - web/*\n"), 9, "(line 4)"),
            (format!("{ls}- name: web\n  class: BE\n  cgroups: [job]\n"), 5, "rename one"),
            (format!("{ls}  - broken"), 5, ""),
            ("groups:\n- name: Web!\n  class: LS\n  cgroups: [a]\n".into(), 2, "use 1 to 63 of a-z"),
            ("groups:\n- name: web\n  class: LS\n  cgroups: ['a[b']\n".into(), 4, "without its `]`"),
            ("groups:\n- name: web\n  class: LS\n  cgroups: []\n".into(), 4, "at least one pattern"),
            ("groups:\n- name: web\n  class: XX\n  cgroups: [a]\n".into(), 3, "LS"),
            ("groups: []\n".into(), 1, "1 to 4096 groups"),
            (format!("{ls}limits:\n  overhead: 2\n"), 6, "write percent, such as 1%"),
            (format!("{ls}limits:\n  overhead: 60%\n"), 6, "between 0.001% and 50%, not 60%"),
            (format!("{ls}limits:\n  cgroups: 5\n"), 6, "between 16 and 16384"),
            (format!("{ls}limits:\n  pods: 0\n"), 6, "limits.pods must lie between 1 and 2048"),
            ("kubernetes:\n  mode: solo\n".into(), 2, "unknown variant `solo`"),
            ("kubernetes:\n  eviction: maybe\n".into(), 2, "write on, off or dryRun"),
            ("kubernetes:\n  levers: [crowbar]\n".into(), 2, "`crowbar` is no lever"),
            ("kubernetes:\n  slo: { runQueueWait: { p99: 1h } }\n".into(), 2, "must lie between"),
        ] {
            let found = parse(&text, 4).expect_err(&text);
            assert_eq!(found.line, line, "{text}\n{found:?}");
            assert!(found.what.contains(part), "{text}\n{found:?}");
            assert!(!found.what.contains('\n'), "{found:?}");
        }
    }

    #[test]
    fn an_objective_may_be_left_to_be_learned() {
        let slo = |promise: &str| {
            let text =
                format!("groups:\n- {{ name: web, class: LS, cgroups: [web], slo: {{ {promise} }} }}\n");
            parse(&text, 4).unwrap().groups[0].slo
        };
        for (promise, factor) in [
            ("requestLatency: auto", 1500),
            ("requestLatency: { auto: 2 }", 2000),
            ("requestLatency: { auto: '1.05' }", 1050),
        ] {
            let expected = Slo { request_latency_auto: Some(Factor(factor)), ..Slo::default() };
            assert_eq!(slo(promise), expected, "{promise}");
        }
        assert_eq!(slo("memoryStall: auto").memory_stall_auto, Some(DEFAULT_FACTOR));
        let stalls = slo("memoryStall: { auto: 3 }");
        assert_eq!((stalls.memory_stall_auto, stalls.memory_stall), (Some(Factor(3000)), None));
        let both = slo("runQueueWait: auto, requestLatency: { p99: 5ms }");
        assert_eq!((both.run_queue_wait_auto, both.run_queue_wait_p99), (Some(DEFAULT_FACTOR), None));
        assert_eq!(both.request_latency_p99, Some(Duration::from_millis(5)));
    }

    #[test]
    fn a_floor_is_a_number_or_a_text() {
        for floor in ["0.25", "250m", "'0.25'"] {
            let text = format!("groups:\n- name: job\n  class: BE\n  cgroups: [job]\n  floor: {floor}\n");
            assert_eq!(parse(&text, 4).unwrap().groups[0].floor, MilliCores(250), "{floor}");
        }
    }
}
