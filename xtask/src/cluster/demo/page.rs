//! The results as one HTML page with plots, which needs nothing else to be looked at.

use anyhow::Result;
use enforcer_rig::page::{BLUE, GREEN, RED, escape, html};

use super::{results::Results, stage::Measured, table, watch::Sample};
use crate::demo::{
    phase::Phase,
    plot::{Line, latency_lines, plot, readable_max},
};

pub fn render(results: &Results) -> Result<String> {
    let mut body = format!(
        "<p>A node of Kubernetes {} with enforcer's chart: a latency-sensitive pod (LS) beside batch pods (BE), which the webhook \
         and the scheduler have put on batch resources. LS alone, with BE and no agent, with BE and the agent. The client sends by \
         a Poisson process and counts latency from the intended time.</p>\n<pre>{}</pre>\n",
        results.kubernetes,
        escape(&table::render(results))
    );
    if let Some(excerpt) = results.excerpt() {
        body += &format!("<h2>What kubectl says</h2>\n<pre>{}</pre>\n", escape(excerpt));
    }
    for round in 0..results.phases[Phase::Alone].len() {
        body += &section(results, round)?;
    }
    Ok(html("enforcer on a Kubernetes node", 3, &body))
}

fn section(results: &Results, round: usize) -> Result<String> {
    let mut html = format!("<h3>Round {}</h3>\n", round + 1);
    // One scale for all plots of a kind, so that they can be compared by eye.
    let runs = || results.phases.runs();
    let p99s = runs().flat_map(|run| &run.client.windows).map(|window| window.p99_us / 1e3);
    let cores = runs().flat_map(|run| &run.samples).map(|sample| sample.node_cores).fold(0.5, f64::max);
    let slo_ms = results.objective.at_client.as_secs_f64() * 1e3;
    html += &row(results, round, "LS latency seen by the client, ms", readable_max(p99s.collect()), |run| {
        latency_lines(&run.client, Some(slo_ms))
    })?;
    html += &row(results, round, "CPU use and limit, cores", cores, cores_of)?;
    if let Some(explanation) = &results.phases[Phase::Enforced][round].explanation {
        html += &format!("<p class=\"why\">The agent's last word: {}</p>\n", escape(explanation));
    }
    Ok(html)
}

/// One plot for each phase.
fn row(
    results: &Results,
    round: usize,
    title: &str,
    max: f64,
    lines: impl Fn(&Measured) -> Vec<Line>,
) -> Result<String> {
    let mut html = "<div class=\"row\">".to_owned();
    for phase in Phase::ALL {
        let title = format!("{} — {title}", phase.title());
        html += &plot(&title, max, &lines(&results.phases[phase][round]))?;
    }
    Ok(html + "</div>\n")
}

fn cores_of(run: &Measured) -> Vec<Line> {
    let points = |value: fn(&Sample) -> Option<f64>| {
        run.samples.iter().filter_map(|sample| Some((sample.at_seconds, value(sample)?))).collect()
    };
    vec![
        ("BE", GREEN, points(|sample| Some(sample.be_cores))),
        ("node", BLUE, points(|sample| Some(sample.node_cores))),
        ("limit", RED, points(|sample| sample.limit_cores)),
    ]
}
