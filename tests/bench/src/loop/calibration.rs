//! What the node serves with LS alone, and what latency may be expected of it.

use anyhow::{Result, bail, ensure};
use enforcer_rig::{
    arrivals::Profile,
    client::{Load, Report},
    spread::Spread,
};

use super::stage::Stage;

/// Of each try of a rate.
const TRY_SECONDS: u32 = 2;
/// Halvings of the range in which the capacity lies.
const TRIES: u32 = 6;
/// Requests that are under way at once at saturation: enough to keep every CPU busy.
const SATURATING_CONNECTIONS: usize = 16;
/// A rate is served if p90 is at most so many times the median of a server that has little to do. p99 would rather show the
/// hiccups of the host in so short a time; a server that falls behind shows it in all percentiles.
const SANE_FACTOR: f64 = 10.0;
/// A server that answers more slowly than that at a load has fallen behind: no SLO can be made of it.
const KEEPS_UP_US: f64 = 10_000.0;
/// Nor can it where the SLO is so many times that of a greater load: the host has become slower since.
pub const SLOWER: f64 = 2.0;
/// Then each of some longer tries must be served, else the rate is lowered, so often at most.
const LONG_SECONDS: u32 = 6;
pub const LOWERED: f64 = 0.85;
pub const LOWERINGS: u32 = 8;
/// Measurements of LS alone.
const TIMES: u32 = 3;
/// At most, of a window that the SLO is judged by.
const WINDOW_SECONDS: u32 = 10;

/// The greatest rate at which latency stays sane.
///
/// Saturation alone would not do: a server that is asked again as soon as it has answered never waits and keeps its caches
/// warm, and answers more than twice as many requests as it can bear at random times.
///
/// `alone`: puts a load on the server and nothing else.
pub fn sane_hz(alone: impl Fn(&Load) -> Result<Report>) -> Result<f64> {
    let load = |rate| Load::open_loop(Profile::constant(rate), TRY_SECONDS);
    let saturating = Load { saturate: true, connections: SATURATING_CONNECTIONS, ..load(1.0) };
    let saturation_hz = alone(&saturating)?.requests as f64 / f64::from(TRY_SECONDS);
    // The least of some: a hiccup of the host must not pass for the server's own pace.
    let light = (0..TIMES).map(|_| Ok(alone(&load(saturation_hz / 10.0))?.p50_us));
    let sane_us = SANE_FACTOR * Spread::of(light.collect::<Result<Vec<_>>>()?).min;
    let is_served = |rate| -> Result<bool> {
        // Once more if not: a hiccup of the host is no limit of the server.
        Ok(alone(&load(rate))?.p90_us <= sane_us || alone(&load(rate))?.p90_us <= sane_us)
    };
    let (mut served, mut beyond) = (0.0, saturation_hz);
    for _ in 0..TRIES {
        let middle = f64::midpoint(served, beyond);
        *(if is_served(middle)? { &mut served } else { &mut beyond }) = middle;
    }
    ensure!(served > 0.0, "the node does not serve {beyond:.0} requests/s: something else keeps it busy");
    // Nor is a good moment of the host the server's strength: what is served is served for longer, time and again.
    for _ in 0..=LOWERINGS {
        let long = Load::open_loop(Profile::constant(served), LONG_SECONDS);
        let times = (0..TIMES).map(|_| Ok(alone(&long)?.p90_us));
        if Spread::of(times.collect::<Result<Vec<_>>>()?).max <= sane_us {
            return Ok(served);
        }
        served *= LOWERED;
    }
    bail!(
        "the node served {beyond:.0} requests/s for some seconds and not even {served:.0} for longer: something else keeps \
         it busy, or its host does"
    )
}

/// So many times the p99 of LS alone at a rate: the median of three windows. `None`: it does not keep up with it.
pub fn slo_us(stage: &Stage, rate: f64) -> Result<Option<f64>> {
    let seconds = stage.settings.seconds.min(WINDOW_SECONDS);
    let p99_us = |time: u32| {
        let load = Load { seed: u64::from(time) + 1, ..Load::open_loop(Profile::constant(rate), seconds) };
        Ok(stage.alone(&load)?.p99_us)
    };
    let alone = Spread::of((0..TIMES).map(p99_us).collect::<Result<Vec<_>>>()?).median;
    Ok((alone <= KEEPS_UP_US).then_some(alone * stage.settings.slo_factor))
}
