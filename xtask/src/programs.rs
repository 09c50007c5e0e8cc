//! Running other programs.

use std::{
    env,
    fs::{self, File, TryLockError},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use enforcer_rig::{
    interrupt,
    process::{Process, installed},
};

/// How often to say that something still goes on.
const TELL_EVERY: Duration = Duration::from_secs(15);
/// Lines of a failed command's output.
const SHOWN_LINES: usize = 20;

/// The project's root.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the root")
}

/// Where programs that are built once are kept: `$XDG_CACHE_HOME/enforcer`.
pub fn cache() -> Result<PathBuf> {
    let home = || env::home_dir().map(|home| home.join(".cache"));
    let cache =
        env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|path| path.is_absolute()).or_else(home);
    Ok(cache.context("neither XDG_CACHE_HOME nor HOME is set")?.join("enforcer"))
}

/// A cargo of the pinned toolchain, in the root.
pub fn cargo() -> Command {
    let mut command = Command::new("cargo");
    // Set by the cargo that runs this very program; they must not leak into another.
    for variable in ["RUSTC", "RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS"] {
        command.env_remove(variable);
    }
    command.current_dir(root());
    command
}

/// Runs a command with its output to see.
pub fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot run {}", name(command)))?;
    interrupt::check()?;
    if !status.success() {
        bail!("{} failed ({status})", name(command));
    }
    Ok(())
}

/// Runs a command and keeps its output; shows it only when the command fails.
pub fn run_quietly(command: &mut Command) -> Result<Output> {
    let output =
        command.stdin(Stdio::null()).output().with_context(|| format!("cannot run {}", name(command)))?;
    interrupt::check()?;
    if !output.status.success() {
        let text =
            String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        bail!("{} failed ({}):\n{}", name(command), output.status, text.trim_end());
    }
    Ok(output)
}

/// Runs a command that may take minutes, and says now and then that it still does. What it prints goes to a file, whose end
/// is shown when the command fails.
pub fn run_patiently(what: &str, command: &mut Command, log: &Path) -> Result<()> {
    let file = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
    let begun = Instant::now();
    let mut told_at = begun;
    command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
    let mut process = Process::start(what, command)?;
    let status = loop {
        if let Some(status) = process.ended()? {
            break status;
        }
        interrupt::sleep(Duration::from_millis(100))?;
        if told_at.elapsed() >= TELL_EVERY {
            told_at = Instant::now();
            println!("{what}: {} s so far", begun.elapsed().as_secs());
        }
    };
    interrupt::check()?;
    if !status.success() {
        let text = fs::read(log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        let end = lines[lines.len().saturating_sub(SHOWN_LINES)..].join("\n");
        bail!("{} failed ({status}); the end of {}:\n{end}", name(command), log.display());
    }
    Ok(())
}

/// Holds off others who want the same file, and is held off by them, until it is dropped.
pub fn lock(path: &Path, held_by: &str) -> Result<File> {
    let file = File::create(path).with_context(|| format!("cannot make {}", path.display()))?;
    let mut is_told = false;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) => {
                if !is_told {
                    println!("waiting for {held_by} to be done");
                    is_told = true;
                }
                interrupt::sleep(Duration::from_millis(500))?;
            }
            Err(TryLockError::Error(err)) => {
                return Err(err).with_context(|| format!("cannot lock {}", path.display()));
            }
        }
    }
}

/// Whether a program is installed.
pub fn is_installed(program: &str) -> bool {
    installed(program).is_ok()
}

/// Whether this process is root.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// The command as it would be typed.
pub fn name(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}
