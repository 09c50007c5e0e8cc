//! What was measured, phase by phase.

use std::ops::{Index, IndexMut};

use enforcer_rig::spread::Spread;

use super::{gap::Gap, phase::Phase};

/// Per phase, one measurement per round.
#[derive(Clone, Debug)]
pub struct Phases<M>([Vec<M>; 3]);

/// What every demo measures.
pub trait Run {
    /// LS latency, as the client sees it.
    fn p99_us(&self) -> f64;
    /// CPU time that BE had.
    fn be_cores(&self) -> f64;
}

impl<M> Phases<M> {
    pub const fn new() -> Self {
        Self([const { Vec::new() }; 3])
    }

    /// All measurements.
    pub fn runs(&self) -> impl Iterator<Item = &M> {
        self.0.iter().flatten()
    }

    pub fn spread(&self, phase: Phase, value: impl Fn(&M) -> f64) -> Spread {
        Spread::of(self[phase].iter().map(value))
    }
}

impl<M: Run> Phases<M> {
    /// How much worse LS fares beside BE, by the client's p99.
    pub fn gap(&self) -> Gap {
        Gap::of(Phase::ALL.map(|phase| self.spread(phase, M::p99_us)))
    }

    /// CPU time that BE has with the agent, of what it has without.
    pub fn be_cpu_kept(&self) -> f64 {
        let cores = |phase| self.spread(phase, M::be_cores).median;
        cores(Phase::Enforced) / cores(Phase::Stock)
    }
}

impl<M> Index<Phase> for Phases<M> {
    type Output = Vec<M>;

    fn index(&self, phase: Phase) -> &Vec<M> {
        &self.0[phase as usize]
    }
}

impl<M> IndexMut<Phase> for Phases<M> {
    fn index_mut(&mut self, phase: Phase) -> &mut Vec<M> {
        &mut self.0[phase as usize]
    }
}
