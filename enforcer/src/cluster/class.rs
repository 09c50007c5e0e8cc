//! Koordinator's classes of service and of priority, and how they follow from a pod.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::protocol::{PRIORITY_CLASS, QOS_CLASS};
use crate::cgroup::kubepods::PodQos;

/// Quality of service, label `koordinator.sh/qosClass`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Qos {
    /// Exclusive CPUs.
    #[serde(rename = "LSE")]
    Lse,
    /// Reserved CPUs.
    #[serde(rename = "LSR")]
    Lsr,
    #[serde(rename = "LS")]
    Ls,
    #[serde(rename = "BE")]
    Be,
    #[serde(rename = "SYSTEM")]
    System,
}

impl Qos {
    pub const ALL: [Self; 5] = [Self::Lse, Self::Lsr, Self::Ls, Self::Be, Self::System];

    /// As in the label.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Lse => "LSE",
            Self::Lsr => "LSR",
            Self::Ls => "LS",
            Self::Be => "BE",
            Self::System => "SYSTEM",
        }
    }

    /// By the label; `None`: none, or one that nobody knows.
    pub fn of_labels(labels: &BTreeMap<String, String>) -> Option<Self> {
        let text = labels.get(QOS_CLASS)?;
        Self::ALL.into_iter().find(|class| class.label() == text)
    }

    /// What Koordinator takes a pod without a label for.
    pub const fn of_kubernetes(class: PodQos) -> Self {
        match class {
            PodQos::Guaranteed => Self::Lsr,
            PodQos::Burstable => Self::Ls,
            PodQos::BestEffort => Self::Be,
        }
    }
}

/// Class of priority, by label or by the band that `spec.priority` lies in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Priority {
    #[serde(rename = "koord-free")]
    Free,
    #[serde(rename = "koord-batch")]
    Batch,
    #[serde(rename = "koord-mid")]
    Mid,
    #[serde(rename = "koord-prod")]
    Prod,
}

impl Priority {
    pub const ALL: [Self; 4] = [Self::Free, Self::Batch, Self::Mid, Self::Prod];

    /// As in the label, and as its `PriorityClass` is named.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Free => "koord-free",
            Self::Batch => "koord-batch",
            Self::Mid => "koord-mid",
            Self::Prod => "koord-prod",
        }
    }

    /// By its name.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|class| class.label() == text)
    }

    /// The values of `spec.priority` that mean it.
    pub const fn band(self) -> std::ops::RangeInclusive<i32> {
        match self {
            Self::Free => 3_000..=3_999,
            Self::Batch => 5_000..=5_999,
            Self::Mid => 7_000..=7_999,
            Self::Prod => 9_000..=9_999,
        }
    }

    /// The label wins; it is meant for pods that run already. `None`: no class.
    pub fn of(labels: &BTreeMap<String, String>, priority: Option<i32>) -> Option<Self> {
        if let Some(label) = labels.get(PRIORITY_CLASS) {
            return Self::parse(label);
        }
        Self::ALL.into_iter().find(|class| class.band().contains(&priority.unwrap_or_default()))
    }

    /// What a quality of service implies where there is no class of priority.
    pub const fn implied_by(qos: Qos) -> Self {
        match qos {
            Qos::System | Qos::Lse | Qos::Lsr | Qos::Ls => Self::Prod,
            Qos::Be => Self::Batch,
        }
    }
}

/// From here on a pod keeps the node going: `system-cluster-critical` and `system-node-critical`.
pub const SYSTEM_CRITICAL: i32 = 2_000_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bands_are_koordinators_and_have_gaps() {
        let none = BTreeMap::new();
        for (priority, expected) in [
            (None, None),
            (Some(0), None),
            (Some(3_000), Some(Priority::Free)),
            (Some(4_500), None),
            (Some(5_999), Some(Priority::Batch)),
            (Some(6_000), None),
            (Some(7_500), Some(Priority::Mid)),
            (Some(9_000), Some(Priority::Prod)),
            (Some(10_000), None),
            (Some(SYSTEM_CRITICAL), None),
        ] {
            assert_eq!(Priority::of(&none, priority), expected, "{priority:?}");
        }
        let label = BTreeMap::from([(PRIORITY_CLASS.to_owned(), "koord-mid".to_owned())]);
        assert_eq!(Priority::of(&label, Some(5_500)), Some(Priority::Mid), "the label wins");
        let unknown = BTreeMap::from([(PRIORITY_CLASS.to_owned(), "gold".to_owned())]);
        assert_eq!(Priority::of(&unknown, Some(5_500)), None);
    }

    #[test]
    fn an_unknown_label_is_none() {
        let labels = |value: &str| BTreeMap::from([(QOS_CLASS.to_owned(), value.to_owned())]);
        assert_eq!(Qos::of_labels(&labels("LSR")), Some(Qos::Lsr));
        for text in ["ls", "", "Guaranteed"] {
            assert_eq!(Qos::of_labels(&labels(text)), None, "{text}");
        }
    }
}
