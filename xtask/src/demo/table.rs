//! The results as a table.

use std::fmt::Write as _;

use enforcer_rig::spread::Spread;

use super::{
    phase::Phase,
    results::{Comparison, Results},
};

pub fn render(results: &Results) -> String {
    let mut text = format!(
        "\n{} server at {} requests/s; medians of {} rounds of {} s, least and greatest in brackets\n",
        results.ls, results.rate, results.rounds, results.seconds
    );
    for comparison in &results.comparisons {
        write_comparison(&mut text, comparison, results).expect("BUG: writing to a string");
    }
    text
}

fn write_comparison(text: &mut String, comparison: &Comparison, results: &Results) -> std::fmt::Result {
    writeln!(text, "\nBE: {}", comparison.be.name())?;
    let unit = comparison.be.unit();
    writeln!(text, "  {:<24} {:>22} {:>22} {:>20}   {unit}", "", "LS p50 ms", "LS p99 ms", "BE cores")?;
    for phase in Phase::ALL {
        let ms = |value: fn(&super::scene::Measured) -> f64| {
            comparison.phases.spread(phase, value).scaled(1e-3).to_string()
        };
        let cores = comparison.phases.spread(phase, |run| run.be_cores).to_string();
        let runs = &comparison.phases[phase];
        let work = runs.iter().map(|run| run.be_work).collect::<Option<Vec<_>>>();
        let work = work.map_or_else(|| "-".to_owned(), |work| format!("{:.0}", Spread::of(work).median));
        let (p50, p99) = (ms(|run| run.client.p50_us), ms(|run| run.client.p99_us));
        writeln!(text, "  {:<24} {p50:>22} {p99:>22} {cores:>20}   {work}", phase.title())?;
    }
    writeln!(text, "  {}", comparison.phases.gap().sentence())?;
    let least = comparison.phases.spread(Phase::Enforced, |run| run.be_cores_min).min;
    writeln!(
        text,
        "  BE keeps {:.0} % of its CPU time; its least mean over 10 s was {least:.3} cores (floor {:.3})",
        comparison.phases.be_cpu_kept() * 100.0,
        results.floor_cores
    )?;
    let agent = comparison.phases.spread(Phase::Enforced, |run| run.agent_cores);
    writeln!(text, "  the agent itself used {:.2} % of one core", agent.median * 100.0)
}
