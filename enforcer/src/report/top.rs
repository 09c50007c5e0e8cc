//! `enforcer top`: a live table of the groups.

use std::{io::IsTerminal as _, net::SocketAddr, time::Duration};

use anyhow::Result;
use ratatui::{
    Frame,
    crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers},
    layout::{Constraint, Layout},
    style::{Color, Style, Stylize as _},
    text::{Line, Span},
    widgets::{Cell, Paragraph, Row, Table, TableState},
};

use super::{
    client::fetch,
    status::{DurationsStatus, GroupStatus, Origin, Status},
};
use crate::policy::Class;

const REFRESH: Duration = Duration::from_secs(1);
const COLUMNS: [(&str, u16); 13] = [
    ("GROUP", 18),
    ("CLASS", 5),
    ("CPU", 6),
    ("REQ/S", 8),
    ("REQ P50", 8),
    ("REQ P99", 8),
    ("SLO", 8),
    ("OPEN", 5),
    ("OLDEST", 7),
    ("WAIT P50", 8),
    ("WAIT P99", 8),
    ("WAITED FOR", 22),
    ("CAUSE/LIMIT", 18),
];

fn status_of(agent: SocketAddr) -> Result<Status> {
    fetch(agent, "/v1/status")
}

/// Prints one table, or one JSON object.
///
/// # Errors
/// Where no agent answers.
pub fn once(agent: SocketAddr, json: bool) -> Result<()> {
    let status = status_of(agent)?;
    if json {
        println!("{}", serde_json::to_string(&status)?);
    } else {
        print!("{}", table_text(&status));
    }
    Ok(())
}

/// Prints one JSON object per second until interrupted.
///
/// # Errors
/// Where no agent answers.
pub fn follow_json(agent: SocketAddr) -> Result<()> {
    loop {
        once(agent, true)?;
        std::thread::sleep(REFRESH);
    }
}

/// Shows the table until q, Esc or Ctrl-C.
///
/// # Errors
/// Where no agent answers, or there is no terminal.
pub fn live(agent: SocketAddr) -> Result<()> {
    anyhow::ensure!(std::io::stdout().is_terminal(), "there is no terminal to draw on: use --once or --json");
    let mut status = status_of(agent)?;
    let mut terminal = ratatui::init();
    let mut selection = TableState::default();
    let result = loop {
        if let Err(err) = terminal.draw(|frame| draw(frame, &status, &mut selection)) {
            break Err(err.into());
        }
        match key_within(REFRESH) {
            Ok(Some(KeyCode::Char('q') | KeyCode::Esc)) => break Ok(()),
            Ok(Some(KeyCode::Down | KeyCode::Char('j'))) => selection.select_next(),
            Ok(Some(KeyCode::Up | KeyCode::Char('k'))) => selection.select_previous(),
            Ok(_) => {}
            Err(err) => break Err(err.into()),
        }
        match status_of(agent) {
            Ok(fresh) => status = fresh,
            Err(err) => break Err(err),
        }
    };
    ratatui::restore();
    result
}

fn key_within(wait: Duration) -> std::io::Result<Option<KeyCode>> {
    if !event::poll(wait)? {
        return Ok(None);
    }
    let Event::Key(key) = event::read()? else { return Ok(None) };
    if key.modifiers.contains(KeyModifiers::CONTROL) && key.code == KeyCode::Char('c') {
        return Ok(Some(KeyCode::Esc));
    }
    Ok((key.kind == KeyEventKind::Press).then_some(key.code))
}

fn draw(frame: &mut Frame<'_>, status: &Status, selection: &mut TableState) {
    let [head, body, foot] =
        Layout::vertical([Constraint::Length(2), Constraint::Min(3), Constraint::Length(2)])
            .areas(frame.area());
    frame.render_widget(Paragraph::new(headline(status)), head);
    let header = Row::new(COLUMNS.map(|(title, _)| title)).style(Style::new().reversed());
    let rows = status.groups.iter().map(|group| {
        let cells = cells(group);
        let styles = styles(group);
        Row::new(cells.into_iter().zip(styles).map(|(text, style)| Cell::new(text).style(style)))
    });
    let widths = COLUMNS.map(|(_, width)| Constraint::Length(width));
    let table = Table::new(rows, widths).header(header).row_highlight_style(Style::new().reversed());
    frame.render_stateful_widget(table, body, selection);
    let explanation = Line::from(vec![Span::from("why: ").bold(), Span::from(status.explanation.clone())]);
    let keys = Line::from("q quits, up and down move").dim();
    frame.render_widget(Paragraph::new(vec![explanation, keys]), foot);
}

fn headline(status: &Status) -> Vec<Line<'static>> {
    let mode = status.shadow_be_core_seconds.map_or_else(
        || "enforcing".to_owned(),
        |cost| format!("shadow: nothing is written, BE would have lost up to {cost:.0} core seconds"),
    );
    let agent = match (status.agent_cpu_seconds, status.agent_resident_bytes) {
        (Some(cpu), Some(bytes)) => {
            let percent = cpu / status.uptime_seconds.max(1e-9) * 100.0;
            format!("agent {percent:.2} % of a CPU, {:.0} MiB", bytes as f64 / f64::from(1 << 20))
        }
        _ => "agent's own cost unknown".to_owned(),
    };
    let steal =
        status.steal_ratio.map_or_else(|| "unknown".to_owned(), |steal| format!("{:.1} %", steal * 100.0));
    let left_out = status.left_out.as_ref().map_or_else(String::new, |what| format!(" — too costly: {what}"));
    vec![
        Line::from(format!("enforcer {} — {mode} — {agent} — steal {steal}", status.version)),
        Line::from(format!("figures of the last {:.0} s{left_out}", status.window_seconds)).dim(),
    ]
}

fn cells(group: &GroupStatus) -> [String; COLUMNS.len()] {
    let requests = group.requests.as_ref();
    let of_requests = |value: fn(&DurationsStatus) -> Option<f64>| requests.and_then(value);
    let objective = of_requests(|requests| requests.objective_seconds).or(group.waits.objective_seconds);
    let is_learning = |durations: &DurationsStatus| durations.objective_is == Some(Origin::Learning);
    let is_learning = requests.is_some_and(is_learning)
        || is_learning(&group.waits)
        || (group.memory.objective_is == Some(Origin::Learning) && group.memory.stalled_ratio.is_some());
    let culprit = group.blame.first().map_or_else(
        || "-".to_owned(),
        |(name, share)| {
            let of_all = share / group.blame.iter().map(|(_, share)| share).sum::<f64>();
            format!("{name} {:.0} %", of_all * 100.0)
        },
    );
    [
        group.name.clone(),
        group.class.to_string(),
        format!("{:.2}", group.cpu_cores),
        of_requests(|requests| Some(requests.rate_hz))
            .map_or_else(|| "-".to_owned(), |rate| format!("{rate:.0}")),
        time(of_requests(|requests| requests.p50_seconds)),
        time(of_requests(|requests| requests.p99_seconds)),
        if objective.is_none() && is_learning { "learning".to_owned() } else { time(objective) },
        group.in_flight.map_or_else(|| "-".to_owned(), |open| open.requests.to_string()),
        time(group.in_flight.and_then(|open| open.oldest_seconds)),
        time(group.waits.p50_seconds),
        time(group.waits.p99_seconds),
        culprit,
        // LS: what it suffers from; BE: what holds it back.
        match (group.cause, group.restraint) {
            (Some(cause), _) => cause.label().to_owned(),
            (None, Some(restraint)) => restraint.to_string(),
            (None, None) => "-".to_owned(),
        },
    ]
}

/// Percentiles beyond their objective stand out, as does what holds BE back.
fn styles(group: &GroupStatus) -> [Style; COLUMNS.len()] {
    let mut styles = [Style::new(); COLUMNS.len()];
    if group.class == Class::LS {
        styles[0] = Style::new().bold();
    }
    let missed = |durations: &DurationsStatus| {
        durations
            .objective_seconds
            .is_some_and(|objective| durations.p99_seconds.is_some_and(|p99| p99 > objective))
    };
    let alarm = Style::new().fg(Color::Red).bold();
    if group.requests.as_ref().is_some_and(missed) {
        styles[5] = alarm;
    }
    if group.in_flight.is_some_and(|open| open.overdue > 0) {
        styles[8] = alarm;
    }
    if missed(&group.waits) {
        styles[10] = alarm;
    }
    if group.restraint.is_some() {
        styles[12] = Style::new().fg(Color::Yellow);
    }
    styles
}

/// Three digits and a unit; unknown is a dash.
fn time(seconds: Option<f64>) -> String {
    let Some(seconds) = seconds else { return "-".to_owned() };
    let (value, unit) = match seconds {
        ..1e-3 => (seconds * 1e6, "us"),
        1e-3..1.0 => (seconds * 1e3, "ms"),
        _ => (seconds, "s"),
    };
    let digits = if value < 9.995 { 2 } else { usize::from(value < 99.95) };
    format!("{value:.digits$}{unit}")
}

fn table_text(status: &Status) -> String {
    use std::fmt::Write as _;
    let mut text = String::new();
    let mut line = |cells: [String; COLUMNS.len()]| {
        for (cell, (_, width)) in cells.iter().zip(COLUMNS) {
            write!(text, "{cell:<width$} ", width = usize::from(width)).expect("BUG: writing to a string");
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
    };
    line(COLUMNS.map(|(title, _)| title.to_owned()));
    status.groups.iter().for_each(|group| line(cells(group)));
    text.push_str(&format!("\nwhy: {}\n", status.explanation));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_three_digits_and_a_unit() {
        for (seconds, expected) in [
            (None, "-"),
            (Some(0.000_001_5), "1.50us"),
            (Some(0.000_999), "999us"),
            (Some(0.012_34), "12.3ms"),
            (Some(0.009_996), "10.0ms"),
            (Some(2.5), "2.50s"),
        ] {
            assert_eq!(time(seconds), expected);
        }
    }
}
