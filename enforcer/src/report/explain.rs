//! `enforcer explain`: the latest decisions of a running agent.

use std::{fmt::Write as _, net::SocketAddr};

use anyhow::Result;

use crate::decision::cause::Evidence;

use super::{
    client::fetch,
    history::{Change, Decision, Outcome, Victim},
};

/// Prints the latest decisions, oldest first.
///
/// # Errors
/// Where no agent answers.
pub fn explain(agent: SocketAddr, last: usize, json: bool) -> Result<()> {
    let decisions: Vec<Decision> = fetch(agent, "/v1/decisions")?;
    let decisions = &decisions[decisions.len().saturating_sub(last)..];
    if json {
        println!("{}", serde_json::to_string_pretty(decisions)?);
    } else if decisions.is_empty() {
        println!("nothing had to be decided so far");
    } else {
        for decision in decisions {
            print!("{}", paragraph(decision));
        }
    }
    Ok(())
}

fn paragraph(decision: &Decision) -> String {
    let mut text = format!("{:>9.1} s  {}\n", decision.at_seconds, decision.explanation);
    let mut detail = |line: String| writeln!(text, "             {line}").expect("BUG: writing to a string");
    if let Some(victim) = &decision.victim {
        detail(evidence(victim));
    }
    if let Some((cause, evidence)) = decision.cause.zip(decision.evidence) {
        detail(format!("cause: {cause}{}", waits(&evidence)));
    }
    for Change { group, before, after } in &decision.changes {
        detail(format!("{group}: {before} -> {after}"));
    }
    if let Some(reaction) = decision.reaction {
        detail(format!("{:.1} ms after the kernel told", reaction.took().as_secs_f64() * 1e3));
    }
    if let Some(Outcome { after_seconds, slow_ratio, be_cores }) = decision.outcome {
        let slow = slow_ratio.map_or_else(String::new, |slow| format!("{:.1} % slow, ", slow * 100.0));
        detail(format!("in the {after_seconds:.0} s after it: {slow}BE used {be_cores:.2} cores"));
    }
    text
}

/// Waits in milliseconds per second, where there were any.
fn waits(evidence: &Evidence) -> String {
    let waited = [
        ("BE", evidence.waited_for_be),
        ("itself", evidence.waited_for_own),
        ("other LS", evidence.waited_for_ls),
        ("others", evidence.waited_for_others),
        ("somebody it is not known who", evidence.waited_for_unknown),
    ];
    let mut text = String::new();
    for (whom, seconds) in waited.into_iter().filter(|(_, seconds)| *seconds >= 1e-4) {
        write!(text, ", waited for {whom} {:.1} ms/s", seconds * 1e3).expect("BUG: writing to a string");
    }
    if let Some(throttled) = evidence.throttled.filter(|share| *share > 0.0) {
        write!(text, ", throttled {:.0} % of the time", throttled * 100.0).expect("BUG: writing to a string");
    }
    text
}

fn evidence(victim: &Victim) -> String {
    let ms = |seconds: Option<f64>| {
        seconds.map_or_else(|| "unknown".to_owned(), |seconds| format!("{:.2} ms", seconds * 1e3))
    };
    let slow = victim.slow_ratio.map_or_else(String::new, |slow| format!(", {:.1} % slow", slow * 100.0));
    let waited = victim.waited_for.as_ref().map_or_else(String::new, |(culprit, ratio)| {
        format!("; waited for a CPU mostly for {culprit}, {:.1} ms per second", ratio * 1e3)
    });
    let stalled = victim.lacked_memory_for.as_ref().map_or_else(String::new, |(user, ratio)| {
        format!("; stalled for memory that likely went to {user}, {:.1} ms per second", ratio * 1e3)
    });
    if let Some(promised) = victim.objective_ratio {
        let share = victim
            .slow_ratio
            .map_or_else(|| "an unknown share".to_owned(), |share| format!("{:.1} %", share * 100.0));
        let promised = promised * 100.0;
        return format!(
            "{}: stalled for {share} of the time, {promised} % promised{stalled}{waited}",
            victim.name
        );
    }
    format!(
        "{}: {} p99 {} of {} promised{slow}{waited}{stalled}",
        victim.name,
        victim.signal,
        ms(victim.p99_seconds),
        ms(victim.objective_seconds)
    )
}
