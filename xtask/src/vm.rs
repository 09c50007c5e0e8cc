//! `cargo xtask vm`: the host kernel's tests on a pure cgroup v2 host with another kernel.
//!
//! A Debian kernel boots in QEMU with an initramfs that holds busybox and statically linked programs: the agent, the
//! workloads and the tests. KVM is not used, so it runs on any machine, slowly.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use clap::ValueEnum;
use enforcer_rig::process::{Process, exec_in, installed};
use rustix::process::Signal;
use serde::Deserialize;

use crate::{
    build, interrupt,
    programs::{cache, root, run_quietly},
    setup,
    tally::Tally,
};

/// How long a machine may run.
const PATIENCE: Duration = Duration::from_mins(15);
const PASSED: &str = "exit status 0";

/// A Debian release, for its kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Suite {
    /// Linux 5.10
    Bullseye,
    /// Linux 6.1
    Bookworm,
    /// Linux 6.12
    Trixie,
    /// The newest
    Sid,
}

impl Suite {
    const fn name(self) -> &'static str {
        match self {
            Self::Bullseye => "bullseye",
            Self::Bookworm => "bookworm",
            Self::Trixie => "trixie",
            Self::Sid => "sid",
        }
    }
}

/// Which kernels.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// The Debian release whose kernel to run (repeat for several).
    #[arg(long, value_enum, default_values_t = [Suite::Bookworm])]
    suite: Vec<Suite>,
    /// All of them.
    #[arg(long, conflicts_with = "suite")]
    all: bool,
    /// Only tests whose name contains this.
    filter: Option<String>,
}

pub fn run(args: &Args) -> Result<()> {
    let suites = if args.all { Suite::value_variants() } else { &args.suite };
    let mut failed = Vec::new();
    for &suite in suites {
        if let Err(err) = test(suite, args.filter.as_deref(), &mut Tally::default()) {
            interrupt::check()?;
            println!("{}: FAILED: {err:#}", suite.name());
            failed.push(suite.name());
        }
    }
    ensure!(failed.is_empty(), "failed on {}", failed.join(", "));
    Ok(())
}

/// Runs the tests on one kernel, and counts.
pub fn test(suite: Suite, filter: Option<&str>, tally: &mut Tally) -> Result<()> {
    setup::packages(&setup::VM_PACKAGES)?;
    let programs = programs()?;
    let kernel = kernel(suite)?;
    let work = root().join("target/vm").join(suite.name());
    let initramfs = initramfs(&work, &programs, filter)?;
    println!("{}: booting {}", suite.name(), kernel.file_name().unwrap_or_default().display());
    let begun = Instant::now();
    let mut passed = false;
    let mut qemu = qemu(&kernel, &initramfs)?;
    let mut machine = Process::start("qemu", qemu.stdin(Stdio::null()).stdout(Stdio::piped()))?;
    machine.each_line(|line| {
        if let Some(line) = line {
            println!("{} | {line}", suite.name());
            passed |= line == PASSED;
            tally.read(line);
        }
        ensure!(begun.elapsed() < PATIENCE, "not done after {} s", PATIENCE.as_secs());
        interrupt::check()
    })?;
    let seconds = begun.elapsed().as_secs();
    ensure!(passed, "{} after {seconds} s: the tests did not all pass in the machine", suite.name());
    println!("{}: passed in {seconds} s, {} skipped", suite.name(), tally.skipped.len());
    Ok(())
}

/// Statically linked: where they are, and their names in the machine.
fn programs() -> Result<Vec<(PathBuf, &'static str)>> {
    build::prepare()?;
    println!("building statically linked programs (some minutes the first time)");
    build::run_static(&["build", "--package", "enforcer", "--package", "enforcer-rig"])?;
    let arguments =
        ["test", "--no-run", "--package", "enforcer-tests", "--test", "kernel", "--message-format", "json"];
    let output = run_quietly(&mut build::static_cargo(&arguments))?;
    let target = root().join("target").join(build::TARGET).join("release");
    Ok(vec![
        (target.join("enforcer"), "enforcer"),
        (target.join("workload"), "workload"),
        (test_binary(&output.stdout)?, "kernel-tests"),
    ])
}

/// The test binary among cargo's messages.
fn test_binary(messages: &[u8]) -> Result<PathBuf> {
    #[derive(Deserialize)]
    struct Message {
        executable: Option<PathBuf>,
        target: Option<Target>,
    }
    #[derive(Deserialize)]
    struct Target {
        name: String,
    }
    let messages = serde_json::Deserializer::from_slice(messages).into_iter::<Message>();
    let mut found =
        messages.flatten().filter(|message| message.target.as_ref().is_some_and(|t| t.name == "kernel"));
    found.find_map(|message| message.executable).context("cargo built no test named kernel")
}

/// The kernel image of a release, downloaded once with an apt state of its own.
fn kernel(suite: Suite) -> Result<PathBuf> {
    let home = cache()?.join("kernels").join(suite.name());
    let image = home.join("vmlinuz");
    if image.exists() {
        return Ok(image);
    }
    println!("{}: downloading the kernel", suite.name());
    for directory in ["apt/lists/partial", "apt/cache/archives/partial"] {
        fs::create_dir_all(home.join(directory))?;
    }
    fs::write(home.join("apt/status"), "")?;
    // The mirror that this machine uses already.
    let mirrors = run_quietly(Command::new("apt-get").args(["indextargets", "--format", "$(SITE)"]))?;
    let mirrors = String::from_utf8_lossy(&mirrors.stdout).into_owned();
    let mirror = mirrors.lines().find(|site| !site.contains("security")).context("apt knows no mirror")?;
    fs::write(home.join("apt/sources.list"), format!("deb [trusted=yes] {mirror} {} main\n", suite.name()))?;
    run_quietly(apt("apt-get", &home).arg("update"))?;
    let depends = |package: &str, prefix: &str| -> Result<Option<String>> {
        let output = run_quietly(apt("apt-cache", &home).args(["depends", package]))?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let found = text.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
        Ok(found.filter(|name| name.starts_with(prefix)).map(str::to_owned).next())
    };
    let package =
        depends("linux-image-amd64", "linux-image-")?.context("linux-image-amd64 depends on no image")?;
    // Newer releases keep the image itself in a package of its own.
    let package = depends(&package, "linux-binary-")?.unwrap_or(package);
    run_quietly(apt("apt-get", &home).args(["download", &package]).current_dir(&home))?;
    unpack(&home, &image)?;
    Ok(image)
}

fn apt(program: &str, home: &Path) -> Command {
    let apt = home.join("apt");
    let mut command = Command::new(program);
    for (option, path) in [
        ("Dir::Etc::sourcelist", apt.join("sources.list")),
        ("Dir::Etc::sourceparts", PathBuf::from("-")),
        ("Dir::State", apt.clone()),
        ("Dir::State::status", apt.join("status")),
        ("Dir::Cache", apt.join("cache")),
    ] {
        command.arg("-o").arg(format!("{option}={}", path.display()));
    }
    // Downloads as whoever runs this: the sandbox user may not be able to write into a private cache.
    command.args(["-o", "APT::Sandbox::User=root"]);
    command
}

fn unpack(home: &Path, image: &Path) -> Result<()> {
    let tree = home.join("tree");
    for entry in fs::read_dir(home)?.flatten() {
        if entry.path().extension().is_some_and(|extension| extension == "deb") {
            run_quietly(Command::new("dpkg").arg("-x").arg(entry.path()).arg(&tree))?;
            fs::remove_file(entry.path())?;
        }
    }
    let found =
        ["boot", "usr/lib/modules", "lib/modules"].iter().find_map(|place| find_image(&tree.join(place)));
    let found = found.with_context(|| format!("no vmlinuz in {}", tree.display()))?;
    fs::rename(&found, image).with_context(|| format!("cannot keep {}", image.display()))?;
    fs::remove_dir_all(&tree)?;
    Ok(())
}

fn find_image(directory: &Path) -> Option<PathBuf> {
    let entries: Vec<PathBuf> = fs::read_dir(directory).ok()?.flatten().map(|entry| entry.path()).collect();
    let is_image =
        |path: &&PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz"));
    entries
        .iter()
        .find(is_image)
        .cloned()
        .or_else(|| entries.iter().filter(|path| path.is_dir()).find_map(|path| find_image(path)))
}

/// What the machine runs as its first process.
const INIT: &str = "#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev; mount -t tmpfs run /run
mount -t bpf bpf /sys/fs/bpf; mount -t cgroup2 cgroup2 /sys/fs/cgroup
echo '+cpu +cpuset +memory +io +pids' > /sys/fs/cgroup/cgroup.subtree_control
ip link set lo up
echo \"Linux $(uname -r), $(nproc) CPUs\"
enforcer check && ENFORCER_TEST_SLOWNESS=5 kernel-tests --color never $(cat /filter)
echo \"exit status $?\"
poweroff -f
";

fn initramfs(work: &Path, programs: &[(PathBuf, &str)], filter: Option<&str>) -> Result<PathBuf> {
    let tree = work.join("tree");
    if tree.exists() {
        fs::remove_dir_all(&tree)?;
    }
    for directory in ["bin", "proc", "sys", "dev", "run", "tmp"] {
        fs::create_dir_all(tree.join(directory))?;
    }
    let busybox = installed("busybox")?;
    fs::copy(&busybox, tree.join("bin/busybox"))?;
    for (path, name) in programs {
        fs::copy(path, tree.join("bin").join(name))
            .with_context(|| format!("cannot copy {}", path.display()))?;
    }
    fs::write(tree.join("init"), INIT)?;
    fs::write(tree.join("filter"), filter.unwrap_or_default())?;
    fs::set_permissions(tree.join("init"), fs::Permissions::from_mode(0o755))?;
    let archive = work.join("initramfs.cpio.gz");
    let script = format!("find . | cpio --quiet -o -H newc | gzip -1 > {:?}", archive.display().to_string());
    // A pipe that breaks must not pass for an archive.
    run_quietly(Command::new("bash").args(["-o", "pipefail", "-c", &script]).current_dir(&tree))?;
    Ok(archive)
}

fn qemu(kernel: &Path, initramfs: &Path) -> Result<Command> {
    let qemu = installed("qemu-system-x86_64")?;
    let mut command = exec_in(None, Signal::KILL, &qemu)?;
    // Both CPUs on one thread: on two, QEMU 7.2 may go on executing the breakpoint that the kernel puts where it patches
    // code, as when a probe comes or goes, and the machine hangs. It costs no time: the tests hardly need both.
    // Without la57: 6.12 crashes with five-level page tables under TCG.
    command.args([
        "-accel",
        "tcg,thread=single",
        "-cpu",
        "max,-la57",
        "-m",
        "2048",
        "-smp",
        "2",
        "-nographic",
        "-no-reboot",
    ]);
    // The kernel hands what it does not know on to init as a variable.
    let rounds =
        std::env::var("ENFORCER_TEST_ROUNDS").map(|rounds| format!(" ENFORCER_TEST_ROUNDS={rounds}"));
    command
        .args(["-append", &format!("console=ttyS0 panic=-1 quiet psi=1{}", rounds.unwrap_or_default())])
        .arg("-kernel")
        .arg(kernel)
        .arg("-initrd")
        .arg(initramfs);
    Ok(command)
}
