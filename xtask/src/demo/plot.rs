//! One plot of a report: lines over the time of a phase.

use anyhow::Result;
use enforcer_rig::{
    client::Report,
    page::{Area, BLUE, RED, YELLOW, svg},
};
use plotters::{
    prelude::{
        AreaSeries, ChartBuilder, IntoFont as _, LineSeries, PathElement, RGBColor, SeriesLabelPosition,
    },
    style::{Color as _, TextStyle, WHITE},
};

/// In pixels.
const SIZE: (u32, u32) = (560, 230);

/// One line of it: its name, colour and points.
pub type Line = (&'static str, RGBColor, Vec<(f64, f64)>);

/// A plot as SVG. Values above `max` are cut off.
pub fn plot(title: &str, max: f64, lines: &[Line]) -> Result<String> {
    svg(SIZE, |area| draw(area, title, max * 1.08, lines))
}

/// The end of a scale on which a few outliers do not hide the rest.
pub fn readable_max(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let greatest = values.last().copied().unwrap_or(1.0);
    let usual = values.get(values.len() * 95 / 100).copied().unwrap_or(1.0);
    greatest.min(usual * 2.0)
}

/// What the client saw, in ms, and what it was promised.
pub fn latency_lines(client: &Report, slo_ms: Option<f64>) -> Vec<Line> {
    let windows = || client.windows.iter().filter(|window| window.requests > 0);
    let mut lines: Vec<Line> = vec![
        ("p99", RED, windows().map(|window| (window.at_seconds, window.p99_us / 1e3)).collect()),
        ("p50", BLUE, windows().map(|window| (window.at_seconds, window.p50_us / 1e3)).collect()),
    ];
    if let Some(slo_ms) = slo_ms {
        let end = windows().map(|window| window.at_seconds).fold(0.0, f64::max);
        lines.push(("objective", YELLOW, vec![(0.0, slo_ms), (end, slo_ms)]));
    }
    lines
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
