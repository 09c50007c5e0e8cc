//! Spark with Java and Python in a small Debian, made once per version and kept in the cache: as a directory, in which
//! jobs are submitted, and as the image of their pods.

use std::{
    fs::{self, File, Permissions},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use anyhow::{Context as _, Result};
use enforcer_rig::cluster::image;

use crate::{
    programs::{cache, lock, run_patiently, run_quietly},
    setup::{self, Package},
};

/// The last of Spark 4.0, which runs on Debian 12's Java and Python.
const VERSION: &str = "4.0.1";
pub const IMAGE: &str = "localhost/spark:4.0.1";
const DEBIAN: &str = "bookworm";
const DEBIAN_PACKAGES: &str = "openjdk-17-jre-headless,procps,tini,python3";
/// What takes place in an image and is of no use there.
const USELESS: [&str; 6] =
    ["usr/share/doc", "usr/share/man", "usr/share/locale", "var/cache/apt", "var/lib/apt/lists", "var/log"];
const ENTRYPOINT: &str = include_str!("entrypoint.sh");
const PACKAGES: [Package; 2] = [
    Package { name: "debootstrap", program: "debootstrap" },
    Package { name: "python3-pip", program: "pip3" },
];

/// Where it is.
#[derive(Debug)]
pub struct Distribution {
    /// The root of a file system with everything in it.
    pub root: PathBuf,
    /// The image, for the container runtime.
    pub archive: PathBuf,
}

impl Distribution {
    /// From the cache, where it is put first if need be. It is complete if it is there: it is moved into its place when all
    /// of it is made.
    pub fn find_or_make() -> Result<Self> {
        let cache = cache()?;
        let home = cache.join(format!("spark-{VERSION}"));
        let distribution = Self { root: home.join("root"), archive: home.join("image.tar") };
        if home.exists() {
            return Ok(distribution);
        }
        setup::packages(&PACKAGES)?;
        fs::create_dir_all(&cache).with_context(|| {
            format!("cannot make {}: name a writable place in XDG_CACHE_HOME", cache.display())
        })?;
        // Held against other makers of the same.
        let _lock = lock(&cache.join(format!("spark-{VERSION}.lock")), "another maker of Spark's image")?;
        if !home.exists() {
            let draft = cache.join(format!("spark-{VERSION}.draft"));
            if draft.exists() {
                fs::remove_dir_all(&draft).with_context(|| format!("cannot remove {}", draft.display()))?;
            }
            make(&draft)?;
            fs::rename(&draft, &home).with_context(|| format!("cannot keep {}", home.display()))?;
        }
        Ok(distribution)
    }
}

fn make(draft: &Path) -> Result<()> {
    let what = format!("Spark {VERSION}");
    println!("{what}: making its image, once (some minutes)");
    let begun = Instant::now();
    fs::create_dir_all(draft)?;
    let root = draft.join("root");
    // It mounts /proc and /sys in there: what is broken off must not leave them behind, nor what it had started.
    let mut debootstrap = Command::new("unshare");
    debootstrap.args(["--mount", "--pid", "--fork", "--kill-child", "debootstrap"]);
    debootstrap.args(["--variant=minbase", &format!("--include={DEBIAN_PACKAGES}"), DEBIAN]).arg(&root);
    run_patiently(&format!("{what}: Debian with Java"), &mut debootstrap, &draft.join("debootstrap.log"))?;

    let wheels = draft.join("pip");
    let mut pip = Command::new("pip3");
    pip.args(["install", "--no-deps", "--no-compile", "--root-user-action=ignore", "--target"]).arg(&wheels);
    pip.arg(format!("pyspark=={VERSION}"));
    run_patiently(&format!("{what}: pyspark from PyPI"), &mut pip, &draft.join("pip.log"))?;
    // All of a Spark is in the package, under the names that its own scripts expect.
    let opt = root.join("opt/spark");
    fs::rename(wheels.join("pyspark"), &opt).context("pip installed no pyspark")?;
    fs::remove_dir_all(&wheels)?;

    let entrypoint = opt.join("entrypoint.sh");
    fs::write(&entrypoint, ENTRYPOINT)?;
    fs::set_permissions(&entrypoint, Permissions::from_mode(0o755))?;
    for directory in USELESS.map(|directory| root.join(directory)).iter().filter(|path| path.exists()) {
        fs::remove_dir_all(directory).with_context(|| format!("cannot empty {}", directory.display()))?;
        fs::create_dir(directory)?;
    }
    let layer = draft.join("layer.tar");
    let mut tar = Command::new("tar");
    tar.arg("--directory").arg(&root).args([
        "--create",
        "--numeric-owner",
        "--sort=name",
        "--exclude=./dev/*",
    ]);
    run_quietly(tar.arg("--file").arg(&layer).arg("."))?;
    let file = File::open(&layer).with_context(|| format!("cannot read {}", layer.display()))?;
    image::pack(IMAGE, &["/opt/spark/entrypoint.sh"], file, &draft.join("image.tar"))?;
    fs::remove_file(&layer)?;
    println!("{what}: made in {} s", begun.elapsed().as_secs());
    Ok(())
}
