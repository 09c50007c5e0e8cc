//! What a new machine lacks.

use std::{fs, process::Command};

use anyhow::{Context as _, Result, bail};

use crate::programs::{cache, cargo, is_installed, is_root, root, run, run_quietly};

/// Later versions need a system LLVM newer than the one that the pinned rustc brings along.
const LINKER: &str = "0.10.3";

/// Debian packages, and a program of each that tells whether it is there.
#[derive(Clone, Copy, Debug)]
pub struct Package {
    pub name: &'static str,
    pub program: &'static str,
}

/// For `cargo xtask vm`.
pub const VM_PACKAGES: [Package; 3] = [
    Package { name: "qemu-system-x86", program: "qemu-system-x86_64" },
    Package { name: "busybox-static", program: "busybox" },
    Package { name: "cpio", program: "cpio" },
];

/// Real servers and load for them, for the demo and the tests.
pub const SERVER_PACKAGES: [Package; 6] = [
    Package { name: "redis-server", program: "redis-server" },
    Package { name: "nginx-light", program: "nginx" },
    Package { name: "apache2-utils", program: "ab" },
    Package { name: "curl", program: "curl" },
    Package { name: "openssl", program: "openssl" },
    Package { name: "stress-ng", program: "stress-ng" },
];

/// For `cargo xtask cluster`, beside what it builds itself.
pub const NODE_PACKAGES: [Package; 5] = [
    Package { name: "containerd", program: "containerd" },
    Package { name: "runc", program: "runc" },
    // No place on the PATH.
    Package { name: "containernetworking-plugins", program: "/usr/lib/cni/bridge" },
    Package { name: "iproute2", program: "ip" },
    // For its tests.
    Package { name: "prometheus", program: "prometheus" },
];

/// All of it.
pub fn everything() -> Result<()> {
    toolchain()?;
    linker()?;
    packages(&VM_PACKAGES)?;
    packages(&SERVER_PACKAGES)?;
    println!("setup: everything is there");
    Ok(())
}

/// The pinned toolchain with its components.
pub fn toolchain() -> Result<()> {
    let pinned = pinned_toolchain()?;
    let has = |text: &str| text.lines().any(|line| line.starts_with("rust-src"));
    let components = Command::new("rustup")
        .args(["component", "list", "--installed", "--toolchain", &pinned])
        .current_dir("/")
        .output()
        .context("cannot run rustup: install it from https://rustup.rs")?;
    let text = String::from_utf8_lossy(&components.stdout).into_owned();
    let is_complete = components.status.success()
        && has(&text)
        && ["clippy", "rustfmt"].iter().all(|name| text.lines().any(|line| line.starts_with(name)));
    if is_complete {
        return Ok(());
    }
    println!("setup: installing Rust {pinned} with rust-src, clippy and rustfmt");
    run(Command::new("rustup").current_dir("/").args([
        "toolchain",
        "install",
        &pinned,
        "--profile",
        "minimal",
        "--component",
        "rust-src",
        "--component",
        "clippy",
        "--component",
        "rustfmt",
    ]))
}

/// The pinned toolchain's library for another target.
pub fn target(target: &str) -> Result<()> {
    let pinned = pinned_toolchain()?;
    let rustup = || {
        let mut rustup = Command::new("rustup");
        rustup.current_dir("/").arg("target");
        rustup
    };
    let installed = run_quietly(rustup().args(["list", "--installed", "--toolchain", &pinned]))?;
    if String::from_utf8_lossy(&installed.stdout).lines().any(|line| line == target) {
        return Ok(());
    }
    println!("setup: installing Rust's library for {target}");
    run(rustup().args(["add", "--toolchain", &pinned, target]))
}

/// bpf-linker, which turns what rustc makes of the probes into a BPF object.
pub fn linker() -> Result<()> {
    let home = cache()?.join(format!("bpf-linker-{LINKER}"));
    if home.join("bin/bpf-linker").exists() {
        return Ok(());
    }
    println!("setup: building bpf-linker {LINKER} into {} (about a minute)", home.display());
    fs::create_dir_all(&home).with_context(|| {
        format!("cannot make {}: name a writable place in XDG_CACHE_HOME", home.display())
    })?;
    run(cargo()
        .args(["install", "--quiet", "bpf-linker", "--version", LINKER, "--locked", "--root"])
        .arg(&home))
    .context("bpf-linker could not be built; it needs a C linker such as gcc")
}

/// Where bpf-linker is.
pub fn linker_directory() -> Result<std::path::PathBuf> {
    Ok(cache()?.join(format!("bpf-linker-{LINKER}/bin")))
}

/// Debian packages that are not there yet. Needs root only if some are not.
pub fn packages(packages: &[Package]) -> Result<()> {
    let missing: Vec<&str> = packages
        .iter()
        .filter(|package| !is_installed(package.program))
        .map(|package| package.name)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.join(" ");
    if !is_root() || !is_installed("apt-get") {
        bail!("these packages are missing: {list}; install them, as root: apt-get install {list}");
    }
    println!("setup: installing {list}");
    let apt = || {
        let mut apt = Command::new("apt-get");
        // Servers are started by whoever wants them, not by the package.
        apt.env("DEBIAN_FRONTEND", "noninteractive").env("RUNLEVEL", "1").args(["-q", "-y"]);
        apt
    };
    run_quietly(apt().arg("update")).context("apt-get update failed; is there a package mirror?")?;
    run_quietly(apt().args(["install", "--no-install-recommends"]).args(&missing))?;
    Ok(())
}

/// The version in rust-toolchain.toml.
pub fn pinned_toolchain() -> Result<String> {
    let path = root().join("rust-toolchain.toml");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let channel = text.lines().find_map(|line| line.strip_prefix("channel = \"")?.strip_suffix('"'));
    channel.map(str::to_owned).with_context(|| format!("{} names no channel", path.display()))
}
