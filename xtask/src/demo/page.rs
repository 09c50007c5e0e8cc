//! The results as one HTML page with plots, which needs nothing else to be looked at.

use anyhow::Result;
use enforcer_rig::page::{Area, BLUE, GREEN, RED, YELLOW, escape, html, svg};
use plotters::{
    prelude::{
        AreaSeries, ChartBuilder, IntoFont as _, LineSeries, PathElement, RGBColor, SeriesLabelPosition,
    },
    style::{Color as _, TextStyle, WHITE},
};

use super::{
    results::{Comparison, Phase, Results},
    scene::Measured,
    table,
};

/// Of one plot, in pixels.
const SIZE: (u32, u32) = (560, 230);

/// One line of a plot: its name, colour and points.
type Line = (&'static str, RGBColor, Vec<(f64, f64)>);

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
    let rounds = comparison.phases[0].len();
    // One scale for all plots of a kind, so that they can be compared by eye.
    let runs = || comparison.phases.iter().flatten();
    let latency_max =
        runs().flat_map(|run| &run.client.windows).map(|window| window.p99_us / 1e3).fold(1.0, f64::max);
    let latency_max = latency_max.min(percentile_95(runs()) * 2.0);
    let cores_max = runs().flat_map(|run| &run.samples).map(|sample| sample.be_cores).fold(0.5, f64::max);
    let blame_max = runs().flat_map(|run| &run.samples).map(|sample| sample.blame).fold(0.01, f64::max);
    for round in 0..rounds {
        html += &format!("<h3>Round {}</h3>\n", round + 1);
        let shown = || Phase::ALL.map(|phase| (phase, &comparison.phases[phase as usize][round]));
        for (title, max, lines) in [
            ("LS latency seen by the client, ms", latency_max, latency as fn(&Measured) -> Vec<Line>),
            ("BE CPU use and limit, cores", cores_max, cores),
            ("LS waiting time charged to BE, seconds per second", blame_max, blame),
        ] {
            html += "<div class=\"row\">";
            for (phase, run) in shown() {
                let title = format!("{} — {title}", phase.title());
                html += &svg(SIZE, |area| draw(area, &title, max * 1.08, &lines(run)))?;
            }
            html += "</div>\n";
        }
        let enforced = &comparison.phases[Phase::Enforced as usize][round];
        let slo = enforced.slo.map_or(f64::NAN, |slo| slo.as_secs_f64() * 1e3);
        html += &format!(
            "<p class=\"why\">Objective of this round: {slo:.2} ms in the kernel. The agent's last word: {}</p>\n",
            escape(&enforced.explanation)
        );
    }
    Ok(html)
}

fn percentile_95<'a>(runs: impl Iterator<Item = &'a Measured>) -> f64 {
    let mut all: Vec<f64> =
        runs.flat_map(|run| &run.client.windows).map(|window| window.p99_us / 1e3).collect();
    all.sort_by(f64::total_cmp);
    all.get(all.len() * 95 / 100).copied().unwrap_or(1.0)
}

fn latency(run: &Measured) -> Vec<Line> {
    let windows = || run.client.windows.iter().filter(|window| window.requests > 0);
    let mut lines: Vec<Line> = vec![
        ("p99", RED, windows().map(|window| (window.at_seconds, window.p99_us / 1e3)).collect()),
        ("p50", BLUE, windows().map(|window| (window.at_seconds, window.p50_us / 1e3)).collect()),
    ];
    if let Some(slo) = run.slo {
        let slo_ms = slo.as_secs_f64() * 1e3;
        let ends = windows().map(|window| window.at_seconds).fold((0.0, 0.0), |(from, _), at| (from, at));
        lines.push(("objective", YELLOW, vec![(ends.0, slo_ms), (ends.1, slo_ms)]));
    }
    lines
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

fn draw(area: &Area<'_>, title: &str, y_max: f64, lines: &[Line]) -> Result<(), Box<dyn std::error::Error>> {
    let x_max = lines.iter().flat_map(|(_, _, points)| points).map(|(x, _)| *x).fold(1.0, f64::max);
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 13))
        .margin(6)
        .x_label_area_size(22)
        .y_label_area_size(44)
        .build_cartesian_2d(0.0..x_max, 0.0..y_max)?;
    let small = TextStyle::from(("sans-serif", 11).into_font());
    chart
        .configure_mesh()
        .light_line_style(WHITE)
        .x_labels(8)
        .y_labels(5)
        .label_style(small.clone())
        .draw()?;
    for (index, (name, colour, points)) in lines.iter().enumerate() {
        if points.is_empty() {
            continue;
        }
        let visible = points.iter().map(|&(x, y)| (x, y.min(y_max)));
        if index == 0 {
            chart.draw_series(AreaSeries::new(visible.clone(), 0.0, colour.mix(0.12)))?;
        }
        let line = LineSeries::new(visible, colour.stroke_width(2));
        let colour = *colour;
        chart
            .draw_series(line)?
            .label(*name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 14, y)], colour.stroke_width(2)));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .label_font(small)
        .background_style(WHITE.mix(0.7))
        .draw()?;
    area.present()?;
    Ok(())
}
