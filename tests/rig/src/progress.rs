//! What is going on: a bar on a terminal, a line per step elsewhere.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// The bar.
#[derive(Debug)]
pub struct Progress(ProgressBar);

impl Progress {
    pub fn new(steps: usize) -> Self {
        let bar = ProgressBar::new(steps as u64);
        let style =
            ProgressStyle::with_template("[{pos}/{len}] {bar:24} {msg} ({elapsed} so far, about {eta} left)");
        bar.set_style(style.expect("BUG: a bad template"));
        bar.enable_steady_tick(Duration::from_millis(500));
        Self(bar)
    }

    pub fn begin(&self, step: String) {
        self.0.set_message(step);
    }

    pub fn say(&self, message: &str) {
        if self.0.is_hidden() {
            println!("{message}");
        } else {
            self.0.println(message);
        }
    }

    /// A step is done.
    pub fn done(&self, message: &str) {
        self.say(message);
        self.0.inc(1);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
