//! Compiles the probes into `$OUT_DIR/enforcer-probes`.
//!
//! Without bpf-linker an empty object takes their place, so that everything that needs no kernel can still be built and
//! tested; the agent refuses to load it and says why.

use std::{env, fs, path::PathBuf};

use anyhow::{Context as _, Result};

/// Kept by `cargo xtask setup` under `$XDG_CACHE_HOME/enforcer`.
const LINKER: &str = "bpf-linker-0.10.3/bin";
const OBJECT: &str = "enforcer-probes";

fn main() -> Result<()> {
    println!("cargo:rerun-if-env-changed=XDG_CACHE_HOME");
    println!("cargo:rerun-if-env-changed=PATH");
    let object = PathBuf::from(env::var_os("OUT_DIR").context("OUT_DIR is not set")?).join(OBJECT);

    let linker = cache_dir().map(|cache| cache.join("enforcer").join(LINKER));
    if let Some(linker) = &linker {
        println!("cargo:rerun-if-changed={}", linker.join("bpf-linker").display());
    }
    let path = env::join_paths(
        linker.into_iter().chain(env::split_paths(&env::var_os("PATH").unwrap_or_default())),
    )?;
    // SAFETY: build scripts are single-threaded; aya-build passes both on to the compiler it starts. The probes need
    // `build-std`, which the pinned stable compiler offers under this name.
    unsafe {
        env::set_var("PATH", path);
        env::set_var("RUSTC_BOOTSTRAP", "1");
    }
    if which::which("bpf-linker").is_err() {
        println!(
            "cargo:warning=bpf-linker is missing: this build has NO kernel probes and can only run what needs none. \
             `cargo xtask setup` installs it."
        );
        return fs::write(&object, []).with_context(|| format!("cannot write {}", object.display()));
    }
    let toolchain = toolchain()?;
    let probes = aya_build::Package {
        name: "enforcer-ebpf",
        root_dir: concat!(env!("CARGO_MANIFEST_DIR"), "/../enforcer-ebpf"),
        ..Default::default()
    };
    aya_build::build_ebpf([probes], aya_build::Toolchain::Custom(&toolchain))
}

fn cache_dir() -> Option<PathBuf> {
    let home = || env::home_dir().map(|home| home.join(".cache"));
    env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|dir| dir.is_absolute()).or_else(home)
}

/// The pinned toolchain, so that it is written down in one place.
fn toolchain() -> Result<String> {
    let pin = concat!(env!("CARGO_MANIFEST_DIR"), "/../rust-toolchain.toml");
    println!("cargo:rerun-if-changed={pin}");
    let text = fs::read_to_string(pin).with_context(|| format!("cannot read {pin}"))?;
    text.lines()
        .find_map(|line| line.strip_prefix("channel = \"")?.strip_suffix('"'))
        .map(str::to_owned)
        .with_context(|| format!("{pin} names no channel"))
}
