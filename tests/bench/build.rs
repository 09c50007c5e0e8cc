//! Compiles the programs that enforcer's probe is compared with. `cargo xtask bench` puts bpf-linker on the PATH.

use anyhow::{Context as _, Result};

fn main() -> Result<()> {
    let pin = concat!(env!("CARGO_MANIFEST_DIR"), "/../../rust-toolchain.toml");
    println!("cargo:rerun-if-changed={pin}");
    let text = std::fs::read_to_string(pin).with_context(|| format!("cannot read {pin}"))?;
    let toolchain = text.lines().find_map(|line| line.strip_prefix("channel = \"")?.strip_suffix('"'));
    let probes = aya_build::Package {
        name: "enforcer-bench-probes",
        root_dir: concat!(env!("CARGO_MANIFEST_DIR"), "/probes"),
        ..Default::default()
    };
    // SAFETY: build scripts are single-threaded; aya-build passes it on to the compiler it starts.
    unsafe { std::env::set_var("RUSTC_BOOTSTRAP", "1") };
    aya_build::build_ebpf([probes], aya_build::Toolchain::Custom(toolchain.context("no channel is pinned")?))
}
