//! BE strikes once.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    thread::sleep,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use enforcer_rig::{
    agent::Agent,
    antagonist::Antagonist,
    cast, interrupt,
    sandbox::Group,
    work::{Work, monotonic},
};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::watch::{Look, Watch};

/// How often to look.
const STEP: Duration = Duration::from_micros(200);
/// BE that has not been limited by then is not limited at all.
const PATIENCE: Duration = Duration::from_secs(4);
/// Seen for so long after the limit: does BE stand still?
const AFTERWARDS: Duration = Duration::from_millis(300);
/// BE stands still when it uses less than this of a CPU over the following stretch.
const STILL: f64 = 0.1;
const STRETCH: Duration = Duration::from_millis(10);
/// Between strikes: LS recovers, and BE is free again for so long.
const CALM: Duration = Duration::from_millis(1_700);
/// A limit that stays for longer without any BE is a bug.
const FREE_WITHIN: Duration = Duration::from_secs(30);
/// For the agent to publish what it decided.
const PUBLISHED: Duration = Duration::from_secs(3);

/// Where it happens.
pub struct Stage<'a> {
    pub be: &'a Group,
    scratch: PathBuf,
    watch: Watch,
    /// What BE's limits are where there are none.
    free: String,
}

/// What was seen; times on the monotonic clock.
#[derive(Clone, Debug)]
pub struct Strike {
    began: Duration,
    in_force: Option<Duration>,
    still: Option<Duration>,
    /// When the kernel told the agent, by the agent's account.
    onset: Option<Duration>,
}

/// As much of `/v1/decisions` as is needed here.
#[derive(Deserialize)]
struct Decision {
    changes: Vec<serde::de::IgnoredAny>,
    reaction: Option<Reaction>,
}

#[derive(Deserialize)]
struct Reaction {
    onset_at: Duration,
}

impl<'a> Stage<'a> {
    pub fn new(be: &'a Group, scratch: &Path) -> Result<Self> {
        let watch = Watch::new(be)?;
        let free = watch.look()?.limits;
        Ok(Self { be, scratch: scratch.to_owned(), watch, free })
    }

    /// Waits until BE has been free for a while: otherwise the next strike would find the last one's limit.
    fn wait_until_free(&self) -> Result<()> {
        let until = monotonic() + FREE_WITHIN;
        let mut free_since = monotonic();
        while monotonic() < free_since + CALM {
            interrupt::sleep(Duration::from_millis(20))?;
            if self.watch.look()?.limits != self.free {
                free_since = monotonic();
            }
            ensure!(monotonic() < until, "BE is still limited {FREE_WITHIN:?} after it ended");
        }
        Ok(())
    }

    /// Lets BE strike until it is limited. `meanwhile` is called at every look.
    pub fn strike(&self, mut meanwhile: impl FnMut() -> Result<()>) -> Result<Strike> {
        self.wait_until_free()?;
        let path = self.scratch.join("work");
        fs::remove_file(&path).ok();
        let work = Work::open(&path)?;
        let antagonist = cast::antagonist(Antagonist::CpuSpin, self.be, &[], &path)?;
        let started = monotonic();
        let mut looks: Vec<Look> = Vec::new();
        let mut in_force: Option<Duration> = None;
        loop {
            interrupt::check()?;
            meanwhile()?;
            let look = self.watch.look()?;
            if in_force.is_none() && look.limits != self.free {
                in_force = Some(look.at);
            }
            let until = in_force.map_or(started + PATIENCE, |at| at + AFTERWARDS);
            let is_over = look.at >= until;
            looks.push(look);
            if is_over {
                break;
            }
            sleep(STEP);
        }
        drop(antagonist);
        let began = work.began().context("the antagonist did not begin")?;
        let still = in_force.and_then(|from| still_from(&looks, from));
        Ok(Strike { began, in_force, still, onset: None })
    }
}

/// From when on BE uses next to nothing.
fn still_from(looks: &[Look], from: Duration) -> Option<Duration> {
    looks.iter().enumerate().filter(|(_, look)| look.at >= from).find_map(|(place, look)| {
        let later = looks[place..].iter().find(|later| later.at >= look.at + STRETCH)?;
        let used = later.used.saturating_sub(look.used);
        (used < later.at.saturating_sub(look.at).mul_f64(STILL)).then_some(look.at)
    })
}

impl Strike {
    /// Asks the agent when the kernel had told it.
    pub fn find_onset(&mut self, agent: &Agent) -> Result<()> {
        let Some(in_force) = self.in_force else { return Ok(()) };
        let until = monotonic() + PUBLISHED;
        while self.onset.is_none() && monotonic() < until {
            interrupt::sleep(Duration::from_millis(100))?;
            let decisions: Vec<Decision> = agent.get("/v1/decisions")?;
            let acted = decisions.iter().filter(|decision| !decision.changes.is_empty());
            let onsets =
                acted.filter_map(|decision| decision.reaction.as_ref()).map(|reaction| reaction.onset_at);
            self.onset = onsets.filter(|at| (self.began..in_force).contains(at)).max();
        }
        Ok(())
    }

    /// LS was in trouble already, and BE was limited while its program was still being loaded.
    fn was_expected(&self) -> bool {
        self.in_force.is_some_and(|at| at < self.began)
    }

    fn ms(from: Option<Duration>, to: Option<Duration>) -> Option<f64> {
        Some(to?.saturating_sub(from?).as_secs_f64() * 1e3)
    }
}

impl fmt::Display for Strike {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |ms: Option<f64>| ms.map_or_else(|| "-".to_owned(), |ms| format!("{ms:.1}"));
        write!(
            f,
            "BE's first instruction to the limit {} ms, kernel's word to the limit {} ms, limit to standstill {} ms",
            ms(Self::ms(Some(self.began), self.in_force)),
            ms(Self::ms(self.onset, self.in_force)),
            ms(Self::ms(self.in_force, self.still)),
        )
    }
}

/// Percentiles of what was seen.
pub fn summary(strikes: &[Strike]) -> Value {
    let of = |ms: &dyn Fn(&Strike) -> Option<f64>| {
        let surprises = strikes.iter().filter(|strike| !strike.was_expected());
        let mut values: Vec<f64> = surprises.filter_map(ms).collect();
        values.sort_by(f64::total_cmp);
        // The smallest value that covers the share asked for.
        let at = |per_cent: usize| values.get((values.len() * per_cent).div_ceil(100).saturating_sub(1));
        json!({ "count": values.len(), "p50_ms": at(50), "p99_ms": at(99), "max_ms": values.last() })
    };
    json!({
        "strikes": strikes.len(),
        "limited_before_first_instruction": strikes.iter().filter(|strike| strike.was_expected()).count(),
        "never_limited": strikes.iter().filter(|strike| strike.in_force.is_none()).count(),
        // One that is never limited hurts for as long as was waited for it, at least.
        "first_instruction_to_limit": of(&|strike| {
            Strike::ms(Some(strike.began), strike.in_force.or(Some(strike.began + PATIENCE)))
        }),
        "kernel_event_to_limit": of(&|strike| Strike::ms(strike.onset, strike.in_force)),
        "limit_to_standstill": of(&|strike| Strike::ms(strike.in_force, strike.still)),
        "first_instruction_to_standstill": of(&|strike| Strike::ms(Some(strike.began), strike.still)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn be_stands_still_where_its_cpu_time_no_longer_grows() {
        // Two CPUs until 20 ms, nothing afterwards; a look per millisecond.
        let looks: Vec<Look> = (0..60)
            .map(|ms| Look {
                at: Duration::from_millis(ms),
                limits: String::new(),
                used: Duration::from_millis(2 * ms.min(20)),
            })
            .collect();
        assert_eq!(still_from(&looks, Duration::from_millis(10)), Some(Duration::from_millis(20)));
        assert_eq!(still_from(&looks[..25], Duration::from_millis(10)), None, "not seen for long enough");
    }
}
