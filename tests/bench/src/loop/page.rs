//! Results as a page: SLO windows against BE work, one point per policy.

use anyhow::Result;
use enforcer_rig::{
    page::{Area, BLUE, CYAN, GREEN, GREY, PURPLE, RED, YELLOW, escape, html, svg},
    spread::Spread,
};
use plotters::{
    prelude::{ChartBuilder, Circle, EmptyElement, IntoFont as _, PathElement, RGBColor, Text},
    style::{Color as _, TextStyle, WHITE},
};

use super::{
    policy::Policy,
    record::Record,
    scenario::Scenario,
    summary::{Comparison, Summary},
    table,
    verdict::Judgement,
};

/// Of one plot, in pixels.
const SIZE: (u32, u32) = (760, 400);

/// A policy in a plot: BE work across, what LS got upwards, in percent.
struct Point {
    label: String,
    /// Where the label begins, in pixels from the point.
    label_at: (i32, i32),
    colour: RGBColor,
    across: Spread,
    upwards: Spread,
}

pub fn render(
    record: &Record,
    comparisons: &[Comparison<'_>],
    verdicts: &[(Scenario, Vec<Judgement>)],
) -> Result<String> {
    let mut body = format!(
        "<p>One latency-sensitive (LS) server beside best-effort (BE) work under several policies. {}</p>\n<pre>{}</pre>\n",
        escape(&table::heading(record)),
        escape(&table::verdicts(verdicts))
    );
    for (comparison, (_, judgements)) in comparisons.iter().zip(verdicts) {
        body += &section(comparison, judgements)?;
    }
    Ok(html("enforcer: LS against BE", 2, &body))
}

fn section(comparison: &Comparison<'_>, judgements: &[Judgement]) -> Result<String> {
    let mut section = format!("<h2>{}</h2>\n<div class=\"row\">", comparison.scenario);
    let stock = comparison.of_policy(Policy::Stock).map_or(0.0, |stock| stock.be_work.median);
    let points = |upwards: fn(&Summary) -> Spread| -> Vec<Point> {
        let point = |summary: &Summary| Point {
            label: label(summary.policy),
            label_at: label_at(summary.policy),
            colour: colour(summary.policy),
            across: summary.be_work.scaled(if stock > 0.0 { 100.0 / stock } else { 0.0 }),
            upwards: upwards(summary).scaled(100.0),
        };
        comparison.summaries.iter().map(point).collect()
    };
    let windows = points(|summary| Spread {
        median: summary.windows_met as f64 / summary.windows as f64,
        ..summary.windows_met_by_round
    });
    let slow = points(|summary| Spread { median: summary.slow_share, ..summary.slow_share_by_round });
    let highest = slow.iter().map(|point| point.upwards.max).fold(2.0, f64::max);
    for (title, top, points) in [
        ("10 s windows that meet the SLO, % (up is better)", 100.0, windows),
        ("requests slower than the SLO, % (down is better)", highest, slow),
    ] {
        section += &svg(SIZE, |area| draw(area, title, top, &points))?;
    }
    // Sentences are wrapped, tables are not.
    section += &format!("</div>\n<pre>{}</pre>\n<ul>\n", escape(&table::scenario(comparison)));
    for Judgement { verdict, target, why, .. } in judgements {
        section += &format!("<li><b>{verdict}</b> {}: {}</li>\n", target.title(), escape(why));
    }
    section += "</ul>\n";
    Ok(section)
}

fn label(policy: Policy) -> String {
    match policy {
        Policy::Static(quota) => format!("{} %, {} ms", quota.percent, quota.period_ms),
        other => other.to_string(),
    }
}

/// In pixels from the point: the static sweep below and enforcer on top, so that neighbours do not hide each other.
const fn label_at(policy: Policy) -> (i32, i32) {
    match policy {
        Policy::Static(_) => (8, 3),
        Policy::Enforcer => (8, -26),
        _ => (8, -13),
    }
}

const fn colour(policy: Policy) -> RGBColor {
    match policy {
        Policy::Alone => GREY,
        Policy::Stock => RED,
        Policy::Equal => PURPLE,
        Policy::Static(_) => BLUE,
        Policy::KoordinatorQuota => YELLOW,
        Policy::KoordinatorCpuset => CYAN,
        Policy::Enforcer => GREEN,
    }
}

fn draw(area: &Area<'_>, title: &str, top: f64, points: &[Point]) -> Result<(), Box<dyn std::error::Error>> {
    let right = points.iter().map(|point| point.across.max).fold(100.0, f64::max);
    area.fill(&WHITE)?;
    // Room for the labels on the right, and for points on the edges.
    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 15))
        .margin(8)
        .x_label_area_size(38)
        .y_label_area_size(48)
        .build_cartesian_2d(-right * 0.02..right * 1.18, -top * 0.05..top * 1.08)?;
    let small = TextStyle::from(("sans-serif", 12).into_font());
    chart
        .configure_mesh()
        .light_line_style(WHITE)
        .x_desc("BE work, % of that at stock weights")
        .x_labels(8)
        .y_labels(6)
        .label_style(small.clone())
        .draw()?;
    for point in points {
        let Point { across, upwards, .. } = point;
        for line in [
            [(across.min, upwards.median), (across.max, upwards.median)],
            [(across.median, upwards.min), (across.median, upwards.max)],
        ] {
            chart.draw_series([PathElement::new(line, point.colour.mix(0.6))])?;
        }
        let marker = EmptyElement::at((across.median, upwards.median))
            + Circle::new((0, 0), 5, point.colour.filled())
            + Text::new(point.label.clone(), point.label_at, small.color(&point.colour));
        chart.draw_series([marker])?;
    }
    area.present()?;
    Ok(())
}
