//! What holds for the pods of a node, unless they say otherwise themselves.

use serde::Deserialize;
use serde_saphyr::Spanned;

use super::{
    Class, Group, Slo,
    file::{DEFAULT_FLOOR, Levels, SloEntry, Wrong, levers_in, slo_of, wrong},
};
use crate::{model::Levers, units::MilliCores};

const DEFAULT_PODS: u32 = 256;
const DEFAULT_VICTIMS: u32 = 64;
/// kubelet allows 110 unless told otherwise.
const PODS: std::ops::RangeInclusive<u32> = 1..=2048;
const VICTIMS: std::ops::RangeInclusive<u32> = 1..=1024;

/// Who computes what is lent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// This agent does, and writes it into the node's status.
    #[default]
    Standalone,
    /// koord-manager does; this agent reports and obeys, as koordlet would.
    Alongside,
}

/// What BE is held back by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Suppression {
    /// What LS feels. The cpuSuppress fields of a `NodeSLO` are overridden.
    #[default]
    Latency,
    /// The same, and no more CPU than those fields leave it.
    Utilisation,
}

/// Whether pods may be evicted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Eviction {
    Off,
    /// Only say who would be.
    DryRun,
    #[default]
    On,
}

/// How the agent treats the pods of its node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kubernetes {
    pub mode: Mode,
    pub suppression: Suppression,
    pub eviction: Eviction,
    /// Of LS pods that say nothing themselves.
    pub slo: Slo,
    /// Of each BE pod.
    pub floor: MilliCores,
    pub levers: Levers,
    /// Whether what is lent allows for peaks of one second, not only for means.
    pub peaks: bool,
    /// Of `slo-controller-config`.
    pub config_namespace: String,
    /// Pods that can be told apart at once, and those among them that are promised something.
    pub pods_max: u32,
    pub victims_max: u32,
}

impl Default for Kubernetes {
    fn default() -> Self {
        Self {
            mode: Mode::default(),
            suppression: Suppression::default(),
            eviction: Eviction::default(),
            slo: Slo::default(),
            floor: DEFAULT_FLOOR,
            levers: Levers::ALL,
            peaks: true,
            config_namespace: crate::cluster::protocol::CONFIG_NAMESPACE.to_owned(),
            pods_max: DEFAULT_PODS,
            victims_max: DEFAULT_VICTIMS,
        }
    }
}

impl Kubernetes {
    /// The group that a pod is. `slo`: its own.
    pub fn group(&self, name: String, workload: String, class: Class, slo: Option<Slo>) -> Group {
        Group {
            name,
            workload,
            class,
            patterns: Vec::new(),
            slo: if class == Class::LS { slo.unwrap_or(self.slo) } else { Slo::default() },
            floor: self.floor,
            levers: self.levers,
        }
    }
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub(super) struct Entry {
    mode: Mode,
    suppression: Suppression,
    eviction: Option<Spanned<String>>,
    slo: Option<Spanned<SloEntry>>,
    floor: Option<Spanned<String>>,
    levers: Option<Levels>,
    peaks: Option<bool>,
    config_namespace: Option<String>,
}

/// `limits.pods` and `limits.victims`.
pub(super) struct Limits<'a> {
    pub pods: Option<&'a Spanned<u32>>,
    pub victims: Option<&'a Spanned<u32>>,
}

pub(super) fn of(entry: &Entry, limits: &Limits<'_>) -> Result<Kubernetes, Wrong> {
    const NAME: &str = "kubernetes";
    let defaults = Kubernetes::default();
    let eviction = match &entry.eviction {
        None => Eviction::On,
        Some(text) => match text.value.as_str() {
            "on" | "true" => Eviction::On,
            "off" | "false" => Eviction::Off,
            "dryRun" => Eviction::DryRun,
            other => {
                return Err(wrong(text, format!("kubernetes.eviction {other:?}: write on, off or dryRun")));
            }
        },
    };
    let floor = match &entry.floor {
        None => defaults.floor,
        Some(floor) => floor.value.parse().map_err(|err| wrong(floor, format!("kubernetes.floor: {err}")))?,
    };
    Ok(Kubernetes {
        mode: entry.mode,
        suppression: entry.suppression,
        eviction,
        slo: entry.slo.as_ref().map_or(Ok(defaults.slo), |slo| slo_of(NAME, &slo.value))?,
        floor,
        levers: entry.levers.as_ref().map_or(Ok(defaults.levers), |levers| levers_in(NAME, levers))?,
        peaks: entry.peaks.unwrap_or(defaults.peaks),
        config_namespace: entry.config_namespace.clone().unwrap_or(defaults.config_namespace),
        pods_max: limit("limits.pods", limits.pods, &PODS)?.unwrap_or(DEFAULT_PODS),
        victims_max: limit("limits.victims", limits.victims, &VICTIMS)?.unwrap_or(DEFAULT_VICTIMS),
    })
}

fn limit(
    name: &str,
    value: Option<&Spanned<u32>>,
    range: &std::ops::RangeInclusive<u32>,
) -> Result<Option<u32>, Wrong> {
    let Some(value) = value else { return Ok(None) };
    if !range.contains(&value.value) {
        let (low, high) = (range.start(), range.end());
        return Err(wrong(value, format!("{name} must lie between {low} and {high}, not {}", value.value)));
    }
    Ok(Some(value.value))
}

/// Reads what a pod says of itself in its annotation, JSON such as `{"requestLatency":{"p99":"5ms"}}`.
///
/// # Errors
/// What is wrong with it, in one line.
pub fn slo_of_annotation(text: &str) -> Result<Slo, String> {
    // JSON is YAML, and messages are the same for both.
    let entry: SloEntry = serde_saphyr::from_str(text).map_err(|err| super::file::unparsable(&err).what)?;
    slo_of("the pod", &entry).map_err(|wrong| wrong.what)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn an_annotation_is_read_like_a_policy() {
        let slo = slo_of_annotation(r#"{"requestLatency":{"p99":"5ms"},"runQueueWait":"auto"}"#).unwrap();
        assert_eq!(slo.request_latency_p99, Some(Duration::from_millis(5)));
        assert!(slo.run_queue_wait_auto.is_some());
        for (text, part) in [
            ("{", ""),
            (r#"{"latency":{"p99":"5ms"}}"#, "unknown field `latency`"),
            (r#"{"requestLatency":{"p99":"5"}}"#, "is no duration"),
            (r#"{"requestLatency":{"p99":"1h"}}"#, "must lie between"),
            ("5ms", ""),
        ] {
            let found = slo_of_annotation(text).expect_err(text);
            assert!(found.contains(part) && !found.is_empty() && !found.contains('\n'), "{text}: {found}");
        }
    }
}
