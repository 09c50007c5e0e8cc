//! HTML pages with plots that need nothing else to be looked at.

use anyhow::{Result, anyhow};
use plotters::{
    coord::Shift,
    prelude::{DrawingArea, IntoDrawingArea as _, RGBColor, SVGBackend},
};

/// Colours that are told apart with any kind of colour vision (P. Tol, "bright").
pub const BLUE: RGBColor = RGBColor(68, 119, 170);
pub const RED: RGBColor = RGBColor(238, 102, 119);
pub const GREEN: RGBColor = RGBColor(34, 136, 51);
pub const YELLOW: RGBColor = RGBColor(180, 150, 20);
pub const CYAN: RGBColor = RGBColor(60, 160, 200);
pub const PURPLE: RGBColor = RGBColor(170, 51, 119);
pub const GREY: RGBColor = RGBColor(130, 130, 130);

/// Where a plot is drawn.
pub type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// A whole page. `columns`: plots beside each other in a `<div class="row">`. `body` is HTML.
pub fn html(title: &str, columns: usize, body: &str) -> String {
    format!(
        "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\"><title>{title}</title>\n<style>\n\
         body {{ font: 15px/1.45 system-ui, sans-serif; max-width: 1760px; margin: 2em auto; padding: 0 1em; color: #222 }}\n\
         pre {{ background: #f6f6f4; padding: 1em; overflow-x: auto; font-size: 13px }}\n\
         .row {{ display: grid; grid-template-columns: repeat({columns}, minmax(0, 1fr)); gap: .6em }}\n\
         .row svg {{ width: 100%; height: auto }}\n\
         h3 {{ margin: .8em 0 .1em; font-size: 15px }}\n\
         .why {{ color: #555; margin: .2em 0 }}\n\
         </style>\n<h1>{title}</h1>\n{body}</html>\n"
    )
}

/// A plot as SVG, so many pixels wide and high.
///
/// # Errors
/// What `draw` says.
pub fn svg(
    size: (u32, u32),
    draw: impl FnOnce(&Area<'_>) -> Result<(), Box<dyn std::error::Error>>,
) -> Result<String> {
    let mut svg = String::new();
    let area = SVGBackend::with_string(&mut svg, size).into_drawing_area();
    draw(&area).map_err(|err| anyhow!("cannot draw a plot: {err}"))?;
    drop(area);
    Ok(svg)
}

/// Text as HTML.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
