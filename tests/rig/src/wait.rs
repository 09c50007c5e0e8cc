//! Waiting for something, but not for ever.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::interrupt;

/// Between two looks at something that is quickly looked at.
pub const LOOK: Duration = Duration::from_millis(20);

/// Waits until something is so, and looks every so often.
///
/// # Errors
/// What `is_so` says; where it takes longer than `patience`; where the user wants to stop.
pub fn until(
    what: &str,
    patience: Duration,
    every: Duration,
    mut is_so: impl FnMut() -> Result<bool>,
) -> Result<()> {
    let end = Instant::now() + patience;
    while !is_so()? {
        ensure!(Instant::now() < end, "waited {} s in vain until {what}", patience.as_secs());
        interrupt::sleep(every)?;
    }
    Ok(())
}
