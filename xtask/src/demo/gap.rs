//! The harm that BE does to LS, and how much of it the agent takes away.

use enforcer_rig::spread::Spread;

/// The client's p99 in each phase, in any unit.
#[derive(Clone, Copy, Debug)]
pub struct Gap {
    alone: Spread,
    stock: Spread,
    enforced: Spread,
}

impl Gap {
    /// In the order of the phases.
    pub const fn of([alone, stock, enforced]: [Spread; 3]) -> Self {
        Self { alone, stock, enforced }
    }

    /// Of the distance between stock weights and alone, how much is gone with the agent. `None` where BE did no harm: there
    /// is nothing to close.
    pub fn closed(&self) -> Option<f64> {
        let [alone, stock, enforced] = [self.alone, self.stock, self.enforced].map(|spread| spread.median);
        (stock > alone).then(|| (stock - enforced) / (stock - alone))
    }

    /// Whether BE did harm that stands out of the noise: no round alone was as bad as any with BE at stock weights, and the
    /// difference is one that somebody would notice.
    pub fn stands_out(&self) -> bool {
        self.stock.min > self.alone.max && self.stock.median > self.alone.median * 1.1
    }

    /// In words.
    pub fn sentence(&self) -> String {
        self.closed().filter(|_| self.stands_out()).map_or_else(
            || "no p99 gap between alone and stock that stands out of the noise".to_owned(),
            |closed| format!("p99 gap between alone and stock closed by {:.0} %", closed * 100.0),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gap(medians: [f64; 3], width: f64) -> Gap {
        Gap::of(medians.map(|median| Spread { median, min: median - width, max: median + width }))
    }

    #[test]
    fn a_gap_within_the_noise_is_none() {
        assert!(gap([2.0, 4.0, 3.0], 0.5).sentence().contains("closed by 50 %"));
        assert!(gap([2.0, 4.0, 3.0], 1.5).sentence().contains("no p99 gap"));
        assert_eq!(gap([4.0, 2.0, 3.0], 0.1).closed(), None);
    }
}
