//! What profiles make of a pod (koordinator `pkg/webhook/pod/mutating`).
//!
//! The same pod, facts and draws give the same pod; mutating the result again changes nothing. A pod that no profile selects is
//! left alone, but for the annotation about batch resources that it asks for by itself.
#![deny(clippy::disallowed_methods)]

use std::{collections::BTreeMap, fmt};

use serde_json::Value;

use super::{
    apply::{Failed, apply},
    convert::{Names, convert},
    extended_spec,
    json::{Malformed, Strings, strings},
    known::Known,
    merge::are_same_but_for_order,
    pod::{LABELS, priority_or_implied, resources, spec},
    profile::{BadProbability, ClusterColocationProfile},
    record::Record,
    selector::{BadSelector, Unmet, selects_all, unmet},
};
use crate::cluster::class::Priority;

/// Draws lie below.
pub const DRAWS: u8 = 100;

/// What was drawn where a profile is for a part of its pods only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Draw {
    /// 0 to 99.
    pub drawn: u8,
    /// The profile is applied if less was drawn: its probability in percent.
    pub below: u8,
}

/// What became of one profile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Selected and applied; with the draw, if there was one.
    Applied(Option<Draw>),
    /// Selected, and left out by its probability. Resources are converted nevertheless.
    Skipped(Option<Draw>),
    NamespaceUnmet(Unmet),
    /// It has a namespaceSelector, and nobody knows of the pod's namespace.
    NamespaceUnknown(String),
    PodUnmet(Unmet),
    /// It cannot be evaluated, and therefore selects nothing; with the selector's field.
    Unusable(&'static str, BadSelector),
}

impl Verdict {
    pub const fn is_selected(&self) -> bool {
        matches!(self, Self::Applied(_) | Self::Skipped(_))
    }

    /// Whether somebody should look at the profile.
    pub const fn is_warning(&self) -> bool {
        matches!(self, Self::Unusable(..) | Self::NamespaceUnknown(_))
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Applied(None) => f.write_str("applied"),
            Self::Applied(Some(draw)) => write!(f, "applied: {} was drawn, below {}", draw.drawn, draw.below),
            Self::Skipped(None) => f.write_str("skipped: its probability is 0"),
            Self::Skipped(Some(draw)) => {
                write!(f, "skipped: {} was drawn, not below {}", draw.drawn, draw.below)
            }
            Self::NamespaceUnmet(unmet) => write!(f, "does not match: namespaceSelector {unmet}"),
            Self::NamespaceUnknown(name) => {
                write!(f, "cannot match: it has a namespaceSelector, and no Namespace {name} is known")
            }
            Self::PodUnmet(unmet) => write!(f, "does not match: selector {unmet}"),
            Self::Unusable(which, bad) => write!(f, "does not match: its {which} cannot be evaluated: {bad}"),
        }
    }
}

/// What became of resources.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resources {
    /// No profile selects the pod.
    Unselected,
    /// A profile or an option says that they stay.
    LeftAlone,
    /// This class keeps cpu and memory.
    Kept(Priority),
    /// Nothing was left to convert.
    Unchanged(Priority),
    Converted(Priority),
}

impl fmt::Display for Resources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unselected => f.write_str("kept: no profile selects the pod"),
            Self::LeftAlone => f.write_str("kept: they are not to be converted"),
            Self::Kept(class) => write!(f, "kept: {} works with cpu and memory", class.label()),
            Self::Unchanged(class) => write!(f, "nothing to convert for {}", class.label()),
            Self::Converted(class) => write!(f, "converted for {}", class.label()),
        }
    }
}

/// A mutated pod, and why it is so.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    pub pod: Value,
    /// Of all profiles, in the order in which they are applied.
    pub verdicts: Vec<(String, Verdict)>,
    pub resources: Resources,
    /// What its owner should know; whole sentences.
    pub warnings: Vec<String>,
}

impl Outcome {
    /// The profiles that select the pod.
    fn selected(&self) -> impl Iterator<Item = &str> {
        self.verdicts.iter().filter(|(_, verdict)| verdict.is_selected()).map(|(name, _)| name.as_str())
    }

    /// From the pod that came to the pod that goes. Empty if they are the same.
    pub fn patch(&self, original: &Value) -> json_patch::Patch {
        json_patch::diff(original, &self.pod)
    }
}

/// Why a pod cannot be admitted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error(transparent)]
    Malformed(#[from] Malformed),
    #[error("ClusterColocationProfile {profile}: {source}")]
    Probability { profile: String, source: BadProbability },
    #[error("ClusterColocationProfile {profile}: {source}")]
    Profile { profile: String, source: Failed },
}

/// Applies the profiles that select a pod, by name, and converts its resources. `draw` gives 0 to 99, and is asked where a
/// profile is for a part of its pods, unless the pod remembers.
///
/// # Errors
/// [`Refusal`], where Koordinator refuses the pod, too.
pub fn mutate(original: &Value, known: &Known<'_>, draw: &mut dyn FnMut() -> u8) -> Result<Outcome, Refusal> {
    let mut before = original.clone();
    let record = Record::take(&mut before)?;
    let remembered = match &record {
        Some(record) => {
            let now = before.clone();
            record.undo(&mut before)?;
            Some(now)
        }
        None => None,
    };
    let mut draws = Draws { known: record.unwrap_or_default().draws, used: BTreeMap::new(), draw };
    let mut outcome = once(&before, known, &mut draws)?;
    if outcome.selected().next().is_none() {
        // Whatever the record says, this pod is nobody's business.
        outcome.pod = original.clone();
        if extended_spec::is_wanted(&outcome.pod)? {
            extended_spec::annotate(&mut outcome.pod)?;
        }
        return Ok(outcome);
    }
    if remembered.is_some_and(|now| are_same_but_for_order(&outcome.pod, &now)) {
        outcome.pod = original.clone();
        if let Resources::Converted(class) = outcome.resources {
            outcome.resources = Resources::Unchanged(class);
        }
        return Ok(outcome);
    }
    let used = draws.used.clone();
    // By the same profiles, too: one that others' labels select may be left to chance.
    let is_same = |again: Outcome| again.pod == outcome.pod && again.selected().eq(outcome.selected());
    let is_stable = once(&outcome.pod, known, &mut draws).is_ok_and(is_same);
    if !used.is_empty() || !is_stable {
        Record::between(&before, &outcome.pod, used)?.write(&mut outcome.pod)?;
    }
    Ok(outcome)
}

struct Draws<'a> {
    known: BTreeMap<String, u8>,
    used: BTreeMap<String, u8>,
    draw: &'a mut dyn FnMut() -> u8,
}

impl Draws<'_> {
    fn of(&mut self, profile: &str) -> u8 {
        let drawn = *self.known.entry(profile.to_owned()).or_insert_with(&mut self.draw);
        let drawn = drawn.min(DRAWS - 1);
        self.used.insert(profile.to_owned(), drawn);
        drawn
    }
}

/// Without regard to what the pod remembers.
fn once(pod: &Value, known: &Known<'_>, draws: &mut Draws<'_>) -> Result<Outcome, Refusal> {
    let labels = strings(pod, LABELS)?;
    let mut profiles = known.profiles.clone();
    profiles.sort_by_key(|profile| profile.sort_key());
    let (mut verdicts, mut selected) = (Vec::new(), Vec::new());
    for profile in profiles {
        let name = profile.sort_key().to_owned();
        let verdict = if let Some(verdict) = unmatched(profile, known, &labels) {
            verdict
        } else {
            selected.push(profile);
            chance(profile, &name, draws)?
        };
        verdicts.push((name, verdict));
    }
    let mut mutated = pod.clone();
    for profile in &selected {
        let name = profile.sort_key();
        let is_applied =
            verdicts.iter().any(|(other, verdict)| other == name && matches!(verdict, Verdict::Applied(_)));
        if is_applied {
            apply(&mut mutated, profile, known)
                .map_err(|source| Refusal::Profile { profile: name.to_owned(), source })?;
        }
    }
    let resources = convert_selected(&mut mutated, &selected, known)?;
    if !selected.is_empty() {
        extended_spec::annotate(&mut mutated)?;
    }
    let warnings = warnings(&mutated, &verdicts, resources)?;
    Ok(Outcome { pod: mutated, verdicts, resources, warnings })
}

/// Why a profile does not select a pod. `None`: it does.
fn unmatched(profile: &ClusterColocationProfile, known: &Known<'_>, labels: &Strings) -> Option<Verdict> {
    if let Some(selector) = profile.spec.namespace_selector.as_ref().filter(|selector| !selects_all(selector))
    {
        let nothing = Strings::new();
        let found = unmet(selector, known.namespace.labels.as_ref().unwrap_or(&nothing));
        match (found, &known.namespace.labels) {
            (Err(bad), _) => return Some(Verdict::Unusable("namespaceSelector", bad)),
            (Ok(_), None) => return Some(Verdict::NamespaceUnknown(known.namespace.name.clone())),
            (Ok(Some(unmet)), Some(_)) => return Some(Verdict::NamespaceUnmet(unmet)),
            (Ok(None), Some(_)) => {}
        }
    }
    match unmet(profile.spec.selector.as_ref()?, labels) {
        Err(bad) => Some(Verdict::Unusable("selector", bad)),
        Ok(unmet) => unmet.map(Verdict::PodUnmet),
    }
}

fn chance(profile: &ClusterColocationProfile, name: &str, draws: &mut Draws<'_>) -> Result<Verdict, Refusal> {
    let below =
        profile.spec.percent().map_err(|source| Refusal::Probability { profile: name.to_owned(), source })?;
    Ok(match below {
        0 => Verdict::Skipped(None),
        DRAWS => Verdict::Applied(None),
        _ => {
            let draw = Draw { drawn: draws.of(name), below };
            if draw.drawn < below { Verdict::Applied(Some(draw)) } else { Verdict::Skipped(Some(draw)) }
        }
    })
}

/// Once for all profiles, and even if probability left every one of them out: the pod may be of such a class by itself.
fn convert_selected(
    pod: &mut Value,
    selected: &[&ClusterColocationProfile],
    known: &Known<'_>,
) -> Result<Resources, Malformed> {
    if selected.is_empty() {
        return Ok(Resources::Unselected);
    }
    if known.skip_resources || selected.iter().any(|profile| profile.skips_resources()) {
        return Ok(Resources::LeftAlone);
    }
    let class = priority_or_implied(pod)?;
    let Some(names) = Names::of(class) else { return Ok(Resources::Kept(class)) };
    Ok(if convert(pod, names)? { Resources::Converted(class) } else { Resources::Unchanged(class) })
}

fn warnings(
    pod: &Value,
    verdicts: &[(String, Verdict)],
    became: Resources,
) -> Result<Vec<String>, Malformed> {
    let of_profiles = verdicts.iter().filter(|(_, verdict)| verdict.is_warning());
    let mut warnings: Vec<String> =
        of_profiles.map(|(name, verdict)| format!("ClusterColocationProfile {name} {verdict}")).collect();
    if let (Resources::Converted(class) | Resources::Unchanged(class), Some(_)) = (became, spec(pod)?) {
        let of_pod = resources(&pod["spec"], "spec")?;
        if of_pod.iter().any(|(_, list)| list.contains_key("cpu") || list.contains_key("memory")) {
            warnings.push(format!(
                "spec.resources cannot be converted: this pod of {} stays outside the best-effort cgroup; give its \
                 containers resources instead",
                class.label()
            ));
        }
    }
    Ok(warnings)
}
