//! The results as a table.

use std::fmt::Write as _;

use super::{
    results::Results,
    stage::{Measured, Objective},
};
use crate::demo::phase::Phase;

const GIB: f64 = (1u64 << 30) as f64;

pub fn render(results: &Results) -> String {
    let mut text = String::new();
    write(&mut text, results).expect("BUG: writing to a string");
    text
}

fn write(text: &mut String, results: &Results) -> std::fmt::Result {
    let Objective { in_kernel, at_client } = results.objective;
    writeln!(
        text,
        "\nLS: {} at {} requests/s, promised {in_kernel:.2?} in the kernel, which is {at_client:.2?} at the client; BE: {}\n\
         medians of {} rounds of {} s, least and greatest in brackets\n",
        results.ls,
        results.rate,
        results.be.name(),
        results.rounds,
        results.seconds
    )?;
    writeln!(
        text,
        "  {:<22} {:>18} {:>22} {:>20} {:>17} {:>17} {:>10} {:>9} {:>10}",
        "",
        "LS p50 ms",
        "LS p99 ms",
        "too slow %",
        "BE cores",
        "node cores",
        "lent cores",
        "lent GiB",
        "held back"
    )?;
    for phase in Phase::ALL {
        write_phase(text, results, phase)?;
    }
    writeln!(text, "  {}", results.phases.gap().sentence())?;
    writeln!(text, "  BE keeps {:.0} % of its CPU time", results.phases.be_cpu_kept() * 100.0)?;
    let last = results.phases[Phase::Enforced].last();
    if let Some(explanation) = last.and_then(|run| run.explanation.as_ref()) {
        writeln!(text, "  the agent's last word: {explanation}")?;
    }
    results.events.iter().try_for_each(|event| writeln!(text, "  event: {event}"))
}

fn write_phase(text: &mut String, results: &Results, phase: Phase) -> std::fmt::Result {
    let spread =
        |value: fn(&Measured) -> f64, factor: f64| results.phases.spread(phase, value).scaled(factor);
    let held_back: Vec<f64> = results.phases[phase].iter().filter_map(|run| run.held_back_ratio).collect();
    let held_back = if held_back.is_empty() {
        "-".to_owned()
    } else {
        format!("{:.0} %", held_back.iter().sum::<f64>() / held_back.len() as f64 * 100.0)
    };
    writeln!(
        text,
        "  {:<22} {:>18} {:>22} {:>20} {:>17} {:>17} {:>10.2} {:>9.1} {:>10}",
        phase.title(),
        spread(|run| run.client.p50_us, 1e-3).to_string(),
        spread(|run| run.client.p99_us, 1e-3).to_string(),
        spread(Measured::slow_ratio, 1e2).to_string(),
        spread(|run| run.be_cores, 1.0).to_string(),
        spread(|run| run.node_cores, 1.0).to_string(),
        spread(|run| run.lent.cores, 1.0).median,
        spread(|run| run.lent.bytes, 1.0 / GIB).median,
        held_back
    )
}
