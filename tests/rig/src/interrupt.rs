//! Ctrl-C ends a chore between two steps, so that what it started is taken down by destructors.

use std::{
    process::ExitCode,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::{Duration, Instant},
};

use anyhow::Result;

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// The user wants to stop.
#[derive(Debug)]
pub struct Interrupted;

impl std::fmt::Display for Interrupted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("interrupted")
    }
}

impl std::error::Error for Interrupted {}

/// Takes SIGINT, SIGTERM and SIGHUP from now on.
///
/// # Errors
/// Where somebody else has taken them already.
pub fn watch() -> Result<()> {
    Ok(ctrlc::set_handler(|| INTERRUPTED.store(true, Relaxed))?)
}

/// An error once the user wants to stop.
///
/// # Errors
/// See above.
pub fn check() -> Result<()> {
    if INTERRUPTED.load(Relaxed) {
        return Err(Interrupted.into());
    }
    Ok(())
}

/// What a program's result means to whoever started it; an error is told.
pub fn exit_code(result: Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) if err.is::<Interrupted>() => {
            eprintln!("interrupted; everything that was started has been ended");
            ExitCode::from(130)
        }
        Err(err) => {
            eprintln!("error: {err:#}");
            ExitCode::FAILURE
        }
    }
}

/// Sleeps, unless interrupted.
///
/// # Errors
/// [`Interrupted`].
pub fn sleep(time: Duration) -> Result<()> {
    let until = Instant::now() + time;
    loop {
        check()?;
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        std::thread::sleep(left.min(Duration::from_millis(50)));
    }
}
