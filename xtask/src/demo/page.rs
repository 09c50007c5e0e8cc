//! The results as one HTML page with plots, which needs nothing else to be looked at.

use anyhow::Result;
use enforcer_rig::page::{GREEN, RED, escape, html};

use super::{
    phase::Phase,
    plot::{Line, latency_lines, plot, readable_max},
    results::{Comparison, Results},
    scene::Measured,
    table,
};

pub fn render(results: &Results) -> Result<String> {
    let mut sections = String::new();
    for comparison in &results.comparisons {
        sections += &section(comparison)?;
    }
    let body = format!(
        "<p>A latency-sensitive server (LS) beside best-effort work (BE): alone; with the weights of stock Kubernetes; with \
         enforcer. The client sends by a Poisson process and counts latency from the intended time.</p>\n\
         <pre>{}</pre>\n{sections}",
        escape(&table::render(results))
    );
    Ok(html("enforcer demo", 3, &body))
}

fn section(comparison: &Comparison) -> Result<String> {
    let mut html = format!("<h2>BE: {}</h2>\n", comparison.be.name());
    let rounds = comparison.phases[Phase::Alone].len();
    // One scale for all plots of a kind, so that they can be compared by eye.
    let runs = || comparison.phases.runs();
    let p99s = runs().flat_map(|run| &run.client.windows).map(|window| window.p99_us / 1e3);
    let latency_max = readable_max(p99s.collect());
    let cores_max = runs().flat_map(|run| &run.samples).map(|sample| sample.be_cores).fold(0.5, f64::max);
    let blame_max = runs().flat_map(|run| &run.samples).map(|sample| sample.blame).fold(0.01, f64::max);
    for round in 0..rounds {
        html += &format!("<h3>Round {}</h3>\n", round + 1);
        let shown = || Phase::ALL.map(|phase| (phase, &comparison.phases[phase][round]));
        for (title, max, lines) in [
            ("LS latency seen by the client, ms", latency_max, latency as fn(&Measured) -> Vec<Line>),
            ("BE CPU use and limit, cores", cores_max, cores),
            ("LS waiting time charged to BE, seconds per second", blame_max, blame),
        ] {
            html += "<div class=\"row\">";
            for (phase, run) in shown() {
                let title = format!("{} — {title}", phase.title());
                html += &plot(&title, max, &lines(run))?;
            }
            html += "</div>\n";
        }
        let enforced = &comparison.phases[Phase::Enforced][round];
        let slo = enforced.slo.map_or(f64::NAN, |slo| slo.as_secs_f64() * 1e3);
        html += &format!(
            "<p class=\"why\">Objective of this round: {slo:.2} ms in the kernel. The agent's last word: {}</p>\n",
            escape(&enforced.explanation)
        );
    }
    Ok(html)
}

fn latency(run: &Measured) -> Vec<Line> {
    latency_lines(&run.client, run.slo.map(|slo| slo.as_secs_f64() * 1e3))
}

fn cores(run: &Measured) -> Vec<Line> {
    let measured = || run.samples.iter().filter(|sample| sample.at_seconds >= 0.0);
    let used = measured().map(|sample| (sample.at_seconds, sample.be_cores)).collect();
    let limit = measured().filter_map(|sample| Some((sample.at_seconds, sample.limit_cores?))).collect();
    vec![("BE", GREEN, used), ("limit", RED, limit)]
}

fn blame(run: &Measured) -> Vec<Line> {
    let measured = run.samples.iter().filter(|sample| sample.at_seconds >= 0.0);
    vec![("blame", RED, measured.map(|sample| (sample.at_seconds, sample.blame)).collect())]
}
