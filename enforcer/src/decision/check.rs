//! Is the plan sane? Asked before anything is written.

use super::plan::{Plan, Reason};
use crate::{
    model::GroupId,
    places::Places,
    policy::{Class, Group},
};

/// A plan that must not be carried out: a bug, and reported as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Insane {
    #[error("the plan restrains group {0:?}, which is not BE")]
    NotBe(GroupId),
    #[error("the plan gives group {0:?} less than its floor without trying anything")]
    BelowFloor(GroupId),
}

/// Checks a plan against the groups that there are, and takes all restraints out of one that must not be carried out: every
/// group keeps what its owner gave it.
///
/// # Errors
/// The first thing that is wrong.
pub fn clear_if_insane(plan: &mut Plan, groups: &Places<Group>) -> Result<(), Insane> {
    check(plan, groups).inspect_err(|_| plan.restraints.clear())
}

/// Only a trial may go below a floor, for its short windows.
fn check(plan: &Plan, groups: &Places<Group>) -> Result<(), Insane> {
    let is_trial = matches!(plan.reason, Reason::Trial { .. });
    for (&id, restraint) in &plan.restraints {
        let group = groups.get(id).filter(|group| group.class == Class::BE).ok_or(Insane::NotBe(id))?;
        let is_below = restraint.cores().is_some_and(|cores| cores < group.floor.cores());
        if is_below && !is_trial {
            return Err(Insane::BelowFloor(id));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::{
        decision::plan::Objective,
        model::{CpuLimit, Restraint, Signal},
        policy::{EXAMPLE, Policy},
    };

    #[test]
    fn only_be_is_limited_and_only_a_trial_goes_below_the_floor() {
        let policy = Policy::parse(EXAMPLE, Path::new("policy.yaml"), 4).unwrap();
        let policy: Places<Group> = policy.groups.into_iter().collect();
        let (ls, be) = (GroupId(0), GroupId(1));
        let objective = Objective { victim: ls, signal: Signal::RequestLatency };
        let plan = |group, quota_us, reason| Plan {
            restraints: [(
                group,
                Restraint::quota(CpuLimit { quota_us: Some(quota_us), period_us: 1_000_000 }),
            )]
            .into(),
            reason,
            ..Plan::default()
        };
        assert_eq!(check(&plan(ls, 500_000, Reason::Met), &policy), Err(Insane::NotBe(ls)));
        assert_eq!(check(&plan(be, 199_000, Reason::Met), &policy), Err(Insane::BelowFloor(be)));
        assert_eq!(check(&plan(be, 200_000, Reason::Met), &policy), Ok(()));
        assert_eq!(check(&plan(be, 1_000, Reason::Trial { objective }), &policy), Ok(()));
        let mut insane = plan(ls, 500_000, Reason::Met);
        assert_eq!(clear_if_insane(&mut insane, &policy), Err(Insane::NotBe(ls)));
        assert!(insane.restraints.is_empty(), "{insane:?}");
    }
}
