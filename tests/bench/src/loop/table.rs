//! Results as text.

use std::fmt::Write as _;

use enforcer_rig::spread::Spread;

use super::{
    policy::Policy,
    record::Record,
    scenario::Scenario,
    summary::{Comparison, Summary},
    verdict::{Judgement, Target, Verdict},
};

/// What was run, in a few lines.
pub fn heading(record: &Record) -> String {
    let settings = &record.settings;
    let capacity = record.capacity_hz.map_or_else(|| "unknown".to_owned(), |hz| format!("{hz:.0}"));
    let others = record.cells.iter().map(|cell| cell.outcome.other_cores);
    let others = if record.cells.is_empty() { String::new() } else { Spread::of(others).to_string() };
    format!(
        "{} CPUs, Linux {}; the node serves {capacity} requests/s with LS alone; loads are percentages of that.\n\
         The SLO is {} times the p99 of LS alone at the load (the greatest load, where it changes), over windows of 10 s.\n\
         {} s measured in each cell after the first {} s; medians, least and greatest in brackets: p99 over windows, the rest \
         over rounds.\n\
         Everybody else, the client included, used {others} cores meanwhile.\n",
        settings.cpus, settings.kernel, settings.slo_factor, settings.seconds, settings.warm_up_seconds
    )
}

/// One scenario.
pub fn scenario(comparison: &Comparison<'_>) -> String {
    let mut text = String::new();
    write_scenario(&mut text, comparison).expect("BUG: writing to a string");
    text
}

/// What became of each promise in it.
pub fn judgements(judgements: &[Judgement]) -> String {
    let line = |Judgement { verdict, target, why, .. }: &Judgement| {
        format!("  {verdict:<7} {}: {why}\n", target.title())
    };
    judgements.iter().map(line).collect()
}

fn write_scenario(text: &mut String, comparison: &Comparison<'_>) -> std::fmt::Result {
    let Scenario { be, .. } = comparison.scenario;
    writeln!(text, "{}: SLO {:.2} ms", comparison.scenario, comparison.slo_us / 1e3)?;
    writeln!(
        text,
        "  {:<20} {:>22} {:>8} {:>23} {:>28} {:>9} {:>18}",
        "",
        "LS p99 ms",
        "windows",
        "slow %",
        format!("BE {}", be.unit()),
        "of stock",
        "BE cores"
    )?;
    let oracle = comparison.oracle().map(|oracle| oracle.policy);
    for summary in &comparison.summaries {
        write_policy(text, comparison, summary)?;
        let is_oracle = oracle == Some(summary.policy);
        writeln!(text, "{}", if is_oracle { "   oracle" } else { "" })?;
    }
    if comparison.is_disturbed() {
        writeln!(
            text,
            "  NOTE    LS misses the SLO even alone: something else disturbs it, and what follows says little"
        )?;
    }
    if let Some(Summary { policy, rounds, held_back: Some(held_back), .. }) =
        comparison.of_policy(Policy::Enforcer)
    {
        let therefore = if *held_back == 0 {
            ": beside stock weights it only costs what the agent does, and the rest is noise"
        } else {
            ""
        };
        writeln!(text, "  {policy} held BE back in {held_back} of {rounds} rounds{therefore}")?;
    }
    Ok(())
}

fn write_policy(text: &mut String, comparison: &Comparison<'_>, summary: &Summary) -> std::fmt::Result {
    let of_stock = comparison
        .of_policy(Policy::Stock)
        .filter(|stock| stock.be_work.median > 0.0)
        .map_or_else(String::new, |stock| {
            format!("{:.0} %", summary.be_work.median / stock.be_work.median * 100.0)
        });
    let shares = summary.slow_share_by_round.scaled(100.0);
    write!(
        text,
        "  {:<20} {:>22} {:>8} {:>23} {:>28} {:>9} {:>18}",
        summary.policy,
        summary.p99_us.scaled(1e-3).to_string(),
        format!("{}/{}", summary.windows_met, summary.windows),
        shares.to_string(),
        format!("{:.0}", summary.be_work),
        of_stock,
        summary.be_cores.to_string(),
    )
}

/// How often each promise was kept, and where not.
pub fn verdicts(all: &[(Scenario, Vec<Judgement>)]) -> String {
    let mut text = "Targets over all scenarios:\n".to_owned();
    for target in Target::ALL {
        let of = |verdict: Verdict| {
            let all = all.iter().flat_map(|(scenario, judgements)| {
                judgements.iter().map(move |judgement| (scenario, judgement))
            });
            all.filter(|(_, judgement)| judgement.target == target && judgement.verdict == verdict)
                .map(|(scenario, _)| scenario.to_string())
                .collect::<Vec<_>>()
        };
        let missed = of(Verdict::Missed);
        text += &format!(
            "  {:<52} met {}, missed {}, not applicable {}{}\n",
            target.title(),
            of(Verdict::Met).len(),
            missed.len(),
            of(Verdict::NotApplicable).len(),
            if missed.is_empty() { String::new() } else { format!(": {}", missed.join(", ")) }
        );
    }
    text
}
