//! Is the plan sane? Asked before anything is written.

use super::plan::{Plan, Reason};
use crate::{
    model::GroupId,
    policy::{Class, Policy},
};

/// A plan that must not be carried out: a bug, and reported as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Insane {
    #[error("the plan limits group {0:?}, which is not BE")]
    NotBe(GroupId),
    #[error("the plan gives group {0:?} less than its floor without trying anything")]
    BelowFloor(GroupId),
}

/// Checks a plan against the policy. Only a trial may go below a floor, for its short windows.
///
/// # Errors
/// The first thing that is wrong.
pub fn check(plan: &Plan, policy: &Policy) -> Result<(), Insane> {
    let is_trial = matches!(plan.reason, Reason::Trial { .. });
    for (&id, limit) in &plan.limits {
        let group =
            policy.groups.get(id.0).filter(|group| group.class == Class::BE).ok_or(Insane::NotBe(id))?;
        let is_below = limit.cores().is_some_and(|cores| cores < group.floor.cores());
        if is_below && !is_trial {
            return Err(Insane::BelowFloor(id));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        decision::plan::Objective,
        model::{CpuLimit, Signal},
        policy::EXAMPLE,
    };

    #[test]
    #[expect(clippy::disallowed_methods, reason = "a policy comes from a file")]
    fn only_be_is_limited_and_only_a_trial_goes_below_the_floor() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("policy.yaml");
        std::fs::write(&path, EXAMPLE).unwrap();
        let policy = Policy::load(&path, 4).unwrap();
        let (ls, be) = (GroupId(0), GroupId(1));
        let objective = Objective { victim: ls, signal: Signal::RequestLatency };
        let plan = |group, quota_us, reason| Plan {
            limits: [(group, CpuLimit { quota_us: Some(quota_us), period_us: 1_000_000 })].into(),
            reason,
        };
        assert_eq!(check(&plan(ls, 500_000, Reason::Met), &policy), Err(Insane::NotBe(ls)));
        assert_eq!(check(&plan(be, 199_000, Reason::Met), &policy), Err(Insane::BelowFloor(be)));
        assert_eq!(check(&plan(be, 200_000, Reason::Met), &policy), Ok(()));
        assert_eq!(check(&plan(be, 1_000, Reason::Trial { objective }), &policy), Ok(()));
    }
}
