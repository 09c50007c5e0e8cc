//! The three settings that a demo compares.

/// The setting of a phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Alone,
    Stock,
    Enforced,
}

impl Phase {
    pub const ALL: [Self; 3] = [Self::Alone, Self::Stock, Self::Enforced];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Alone => "alone",
            Self::Stock => "stock",
            Self::Enforced => "enforced",
        }
    }

    pub const fn title(self) -> &'static str {
        match self {
            Self::Alone => "LS alone",
            Self::Stock => "LS + BE, stock weights",
            Self::Enforced => "LS + BE, enforcer",
        }
    }
}
