//! What is done about BE.

use std::{fmt, str::FromStr};

use anyhow::Context as _;
use enforcer_rig::cast::{BE_SHARES, LS_SHARES};
use serde::{Deserialize, Serialize};

/// A way to run LS and BE beside each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Policy {
    /// No BE at all.
    Alone,
    /// The weights of stock Kubernetes.
    Stock,
    /// BE weighs as much as LS.
    Equal,
    Static(Quota),
    /// Koordinator's rule, by quota.
    KoordinatorQuota,
    /// Koordinator's rule, by CPUs.
    KoordinatorCpuset,
    Enforcer,
}

/// A quota that never changes, at stock weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Quota {
    /// Of the node's CPU time.
    pub percent: u32,
    pub period_ms: u32,
}

impl Quota {
    /// What users set.
    pub const USUAL_PERIOD_MS: u32 = 100;

    pub fn cores(self, cpus: usize) -> f64 {
        cpus as f64 * f64::from(self.percent) / 100.0
    }
}

impl Policy {
    pub const fn usual_static(percent: u32) -> Self {
        Self::Static(Quota { percent, period_ms: Quota::USUAL_PERIOD_MS })
    }

    /// cpu.shares of BE.
    pub const fn be_shares(self) -> u32 {
        if matches!(self, Self::Equal) { LS_SHARES } else { BE_SHARES }
    }

    /// Whether it could have been chosen as the oracle: a setting that nobody changes. Weights other than stock are not in
    /// the sweep.
    pub const fn is_static(self) -> bool {
        matches!(self, Self::Stock | Self::Static(_))
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&match self {
            Self::Alone => "alone".to_owned(),
            Self::Stock => "stock".to_owned(),
            Self::Equal => "equal".to_owned(),
            Self::Static(Quota { percent, period_ms }) => format!("static-{percent}-{period_ms}ms"),
            Self::KoordinatorQuota => "koordinator-quota".to_owned(),
            Self::KoordinatorCpuset => "koordinator-cpuset".to_owned(),
            Self::Enforcer => "enforcer".to_owned(),
        })
    }
}

impl FromStr for Policy {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let quota = || -> Option<Self> {
            let (percent, period) = text.strip_prefix("static-")?.strip_suffix("ms")?.split_once('-')?;
            Some(Self::Static(Quota { percent: percent.parse().ok()?, period_ms: period.parse().ok()? }))
        };
        let named = [
            Self::Alone,
            Self::Stock,
            Self::Equal,
            Self::KoordinatorQuota,
            Self::KoordinatorCpuset,
            Self::Enforcer,
        ];
        let found = named.into_iter().find(|policy| policy.to_string() == text).or_else(quota);
        found.with_context(|| format!("{text:?} is no policy: say static-20-100ms or one of {named:?}"))
    }
}

impl TryFrom<String> for Policy {
    type Error = anyhow::Error;

    fn try_from(text: String) -> anyhow::Result<Self> {
        text.parse()
    }
}

impl From<Policy> for String {
    fn from(policy: Policy) -> Self {
        policy.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_is_read_as_it_is_written() {
        for policy in [Policy::Alone, Policy::usual_static(5), Policy::KoordinatorCpuset, Policy::Enforcer] {
            assert_eq!(policy.to_string().parse::<Policy>().unwrap(), policy);
        }
        assert!("static-5".parse::<Policy>().is_err());
    }
}
