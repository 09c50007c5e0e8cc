//! What this node lends, by what is known of it now. Pure.

use std::collections::BTreeMap;

use k8s_openapi::{api::core::v1::Node, apimachinery::pkg::apis::meta::v1::Time};

use serde::{Deserialize, Serialize};

use super::{
    batch::{self, Error, Nothing},
    config::{ColocationConfig, Wrong},
    objects::NodeMetricStatus,
    pod::Pod,
    usage::Usage,
};
use crate::{
    decision::batch::{Batch, Inputs, Offer, Strategy, calculate},
    units::Amounts,
};

/// What the API server told.
#[derive(Debug, Default)]
pub struct Known {
    pub node: Option<Node>,
    /// By UID.
    pub pods: BTreeMap<String, Pod>,
    pub config: ColocationConfig,
}

/// What is lent, for people: the answer and what it rests on.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Lent {
    /// What the node's status offers; small changes wait. `None`: nothing, or not known.
    pub offered: Offer,
    /// What would be offered right now.
    pub terms: Option<Batch>,
    /// Why there is nothing.
    pub why_nothing: Option<String>,
}

impl Lent {
    pub fn new(offered: Offer, answer: &Answer) -> Self {
        match answer {
            Answer::Lend(batch) => Self { offered, terms: Some(**batch), why_nothing: None },
            Answer::Nothing(why) => Self { offered, terms: None, why_nothing: Some(why.to_string()) },
        }
    }
}

/// What is to stand in the node's status.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    Lend(Box<Batch>),
    /// Nothing, and why.
    Nothing(Nothing),
}

impl Answer {
    pub fn offer(&self) -> Offer {
        match self {
            Self::Lend(batch) => Some(batch.offered()),
            Self::Nothing(_) => None,
        }
    }

    /// Before what other systems gave out is taken off.
    pub fn origin(&self) -> Option<Amounts> {
        match self {
            Self::Lend(batch) => Some(batch.origin()),
            Self::Nothing(_) => None,
        }
    }
}

impl Known {
    /// # Errors
    /// For settings of the node that cannot be read.
    pub fn strategy(&self) -> Result<Strategy, Wrong> {
        self.node.as_ref().map_or_else(|| Ok(Strategy::default()), |node| self.config.strategy(node))
    }

    /// What is lent, by a report made at `now`. `None`: the node is not known yet.
    ///
    /// # Errors
    /// For numbers and settings that cannot be read: what stands there stays.
    pub fn lend(&self, usage: &Usage, now: &Time, allows_for_peaks: bool) -> Result<Option<Answer>, Error> {
        let Some(node) = &self.node else { return Ok(None) };
        let strategy = self.strategy()?;
        let status = usage.status(now);
        let pods: Vec<Pod> = self.pods.values().cloned().collect();
        let more = |inputs: Inputs| Inputs {
            peaks: if allows_for_peaks { usage.peaks } else { Amounts::default() },
            held_back: usage.held_back,
            ..inputs
        };
        answer(&strategy, node, &pods, &status, now, more).map(Some)
    }
}

/// What is lent by a report, whoever made it. `more`: adds what the report does not hold.
///
/// # Errors
/// For numbers that cannot be read.
pub fn answer(
    strategy: &Strategy,
    node: &Node,
    pods: &[Pod],
    reported: &NodeMetricStatus,
    now: &Time,
    more: impl FnOnce(Inputs) -> Inputs,
) -> Result<Answer, Error> {
    if let Err(nothing) = batch::may_lend(strategy, reported.update_time.as_ref(), now) {
        return Ok(Answer::Nothing(nothing));
    }
    let inputs = more(batch::inputs(node, pods, reported)?);
    Ok(Answer::Lend(Box::new(calculate(&inputs, strategy))))
}
