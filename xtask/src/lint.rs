//! `cargo xtask lint`.

use anyhow::{Context as _, Result};

use crate::{
    build,
    programs::{cargo, run},
};

/// Crates that are compiled for the BPF target.
const PROBES: [&str; 2] = ["enforcer-ebpf", "enforcer-bench-probes"];

pub fn run_all() -> Result<()> {
    build::prepare()?;
    println!("lint: formatting");
    run(cargo().args(["fmt", "--all", "--check"])).context("run `cargo fmt --all`")?;
    println!("lint: clippy for the host");
    let host = ["clippy", "--quiet", "--workspace", "--all-targets", "--", "--deny", "warnings"];
    run(build::with_linker(&mut cargo())?.args(host))?;
    println!("lint: clippy for the probes");
    let mut probes = cargo();
    // What aya-build passes when it compiles them.
    probes.env("RUSTC_BOOTSTRAP", "1").env("CARGO_ENCODED_RUSTFLAGS", "--cfg=bpf_target_arch=\"x86_64\"");
    probes.args([
        "clippy",
        "--quiet",
        "--bins",
        "--lib",
        "--target",
        "bpfel-unknown-none",
        "-Z",
        "build-std=core",
    ]);
    probes.args(PROBES.iter().flat_map(|name| ["--package", name]));
    run(probes.args(["--", "--deny", "warnings"]))
}
