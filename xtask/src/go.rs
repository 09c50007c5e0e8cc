//! Programs that are built from Go modules, once per version, and kept in the cache.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use anyhow::{Context as _, Result};
use clap::ValueEnum;
use serde::Deserialize;

use crate::programs::{cache, is_installed, lock, run_patiently, run_quietly};

/// A Kubernetes release. These are complete on the Go module proxy, which lacks modules of some others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Kubernetes {
    #[value(name = "1.33.13")]
    V1_33,
    #[default]
    #[value(name = "1.35.4")]
    V1_35,
    #[value(name = "1.37.2")]
    V1_37,
}

impl Kubernetes {
    pub const fn version(self) -> &'static str {
        match self {
            Self::V1_33 => "1.33.13",
            Self::V1_35 => "1.35.4",
            Self::V1_37 => "1.37.2",
        }
    }
}

impl fmt::Display for Kubernetes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.version())
    }
}

/// Older ones, such as Debian's, cannot stream lists, which some clients need.
pub const ETCD: &str = "3.6.8";

/// What answers for names of services.
const COREDNS: &str = "1.14.7";

/// The last of Helm 3, which every chart's reader has.
const HELM: &str = "3.22.0";
/// The Kubernetes that Helm takes a cluster for when it is asked about none: that of its own client library.
const HELM_KUBERNETES_MINOR: &str = "37";

/// A program is neither there nor can it be built.
#[derive(Debug, thiserror::Error)]
#[error(
    "{program} {version} has to be built, and Go is not installed: install Go 1.26 or later, or this version of {program}, on \
     the PATH or in a directory that KUBEBUILDER_ASSETS names"
)]
pub struct NoGo {
    program: String,
    version: &'static str,
}

/// What a program is built from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Module {
    Kubernetes(Kubernetes),
    Etcd,
    CoreDns,
    Helm,
}

impl Module {
    pub const fn version(self) -> &'static str {
        match self {
            Self::Kubernetes(release) => release.version(),
            Self::Etcd => ETCD,
            Self::CoreDns => COREDNS,
            Self::Helm => HELM,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Kubernetes(_) => "kubernetes",
            Self::Etcd => "etcd",
            Self::CoreDns => "coredns",
            Self::Helm => "helm",
        }
    }

    /// The module's path.
    const fn path(self) -> &'static str {
        match self {
            Self::Kubernetes(_) => "k8s.io/kubernetes",
            Self::Etcd => "go.etcd.io/etcd/server/v3",
            Self::CoreDns => "github.com/coredns/coredns",
            Self::Helm => "helm.sh/helm/v3",
        }
    }

    /// The package of one of its programs.
    fn package(self, program: &str) -> String {
        match self {
            Self::Kubernetes(_) | Self::Helm => format!("{}/cmd/{program}", self.path()),
            Self::Etcd | Self::CoreDns => self.path().to_owned(),
        }
    }

    /// What makes the programs tell their version, on which clients and servers rely.
    fn linker_flags(self) -> String {
        let mut flags = "-s -w".to_owned();
        let mut set = |variable: &str, value: &str| flags += &format!(" -X {variable}={value}");
        match self {
            Self::Kubernetes(release) => {
                let version = release.version();
                let base = "k8s.io/component-base/version";
                set(&format!("{base}.gitMajor"), "1");
                set(&format!("{base}.gitMinor"), version.split('.').nth(1).unwrap_or_default());
                set(&format!("{base}.gitVersion"), &format!("v{version}"));
                set("k8s.io/client-go/pkg/version.gitVersion", &format!("v{version}"));
            }
            Self::Etcd | Self::CoreDns => {}
            Self::Helm => {
                let path = self.path();
                set(&format!("{path}/internal/version.version"), &format!("v{HELM}"));
                for package in ["chartutil", "lint/rules"] {
                    set(&format!("{path}/pkg/{package}.k8sVersionMajor"), "1");
                    set(&format!("{path}/pkg/{package}.k8sVersionMinor"), HELM_KUBERNETES_MINOR);
                }
            }
        }
        flags
    }

    /// The version of the modules that Kubernetes keeps in its own tree: 1.35.4 goes with 0.35.4.
    fn staging_version(self) -> Option<String> {
        let Self::Kubernetes(release) = self else { return None };
        Some(format!("v0{}", release.version().strip_prefix('1')?))
    }

    /// A program of this module, from the cache, where it is put first if need be. Every file there is complete: it is moved
    /// into its place when it is built.
    pub fn program(self, program: &str) -> Result<PathBuf> {
        let home = cache()?.join(format!("{}-{}", self.name(), self.version()));
        let place = home.join(program);
        if place.exists() {
            return Ok(place);
        }
        if !is_installed("go") {
            return Err(NoGo { program: program.to_owned(), version: self.version() }.into());
        }
        let draft = home.join("draft");
        make_in_cache(&draft)?;
        // Held against other builds of the same version.
        let _lock = lock(&home.join("lock"), "another build")?;
        if !place.exists() {
            self.build(program, &home, &draft.join(program))?;
            fs::rename(draft.join(program), &place)
                .with_context(|| format!("cannot keep {}", place.display()))?;
        }
        Ok(place)
    }

    /// Builds a program in a module of our own that requires the program's: `go install` refuses modules that replace others.
    fn build(self, program: &str, home: &Path, output: &Path) -> Result<()> {
        let what = format!("{program} {}", self.version());
        println!("{what}: building, once (some minutes for the first of its kind, about one for others)");
        let begun = Instant::now();
        let module = home.join("module");
        fs::create_dir_all(&module)?;
        if !module.join("go.mod").exists() {
            fs::write(module.join("go.mod"), self.requirements(&module)?)?;
        }
        let mut go = go(&module);
        go.args(["build", "-mod=mod", "-trimpath", "-ldflags", &self.linker_flags(), "-o"]);
        go.arg(output).arg(self.package(program));
        run_patiently(&what, &mut go, &home.join(format!("{program}.log")))?;
        println!("{what}: built in {} s", begun.elapsed().as_secs());
        Ok(())
    }

    /// The text of go.mod.
    fn requirements(self, directory: &Path) -> Result<String> {
        let Downloaded { go_mod, .. } = download(directory, self.path(), self.version())?;
        let theirs =
            fs::read_to_string(&go_mod).with_context(|| format!("cannot read {}", go_mod.display()))?;
        requirements(self.path(), self.version(), &theirs, self.staging_version().as_deref())
            .with_context(|| format!("{} is not understood", go_mod.display()))
    }
}

/// A go.mod that requires a module whose own go.mod is `theirs`. The modules that it replaces by directories of its
/// repository are replaced by their releases. `None`: theirs is of an unknown form.
fn requirements(path: &str, version: &str, theirs: &str, staging_version: Option<&str>) -> Option<String> {
    let language = theirs.lines().find_map(|line| line.strip_prefix("go "))?;
    let mut text = format!("module enforcer\n\ngo {language}\n\nrequire {path} v{version}\n\n");
    let replaced = theirs.lines().filter_map(|line| line.trim().split_once(" => ./staging/"));
    for (module, _) in replaced {
        text += &format!("replace {module} => {module} {}\n", staging_version?);
    }
    Some(text)
}

/// Where the files of a module are, which Go downloads and keeps.
pub fn sources(module: &str, version: &str) -> Result<PathBuf> {
    let home = cache()?;
    make_in_cache(&home)?;
    Ok(download(&home, module, version)?.sources)
}

/// A module as Go keeps it.
#[derive(Deserialize)]
struct Downloaded {
    #[serde(rename = "Dir")]
    sources: PathBuf,
    #[serde(rename = "GoMod")]
    go_mod: PathBuf,
}

/// Has Go, in some directory, download a module unless it has it.
fn download(directory: &Path, module: &str, version: &str) -> Result<Downloaded> {
    let wanted = format!("{module}@v{version}");
    let output = run_quietly(go(directory).args(["mod", "download", "-json", &wanted]))
        .with_context(|| format!("{wanted} is needed, which Go downloads"))?;
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn make_in_cache(directory: &Path) -> Result<()> {
    fs::create_dir_all(directory).with_context(|| {
        format!("cannot make {}: name a writable place in XDG_CACHE_HOME", directory.display())
    })
}

fn go(directory: &Path) -> Command {
    let mut go = Command::new("go");
    // The checksum database lacks some of Kubernetes' patch releases.
    let unchecked = std::env::var("GONOSUMDB").unwrap_or_else(|_| "k8s.io/*".to_owned());
    go.current_dir(directory).env("GONOSUMDB", unchecked);
    let flags = std::env::var("GOFLAGS").unwrap_or_default();
    // Statically linked, and without a look for a version control system, which the cache is not under.
    go.env("CGO_ENABLED", "0").env("GOFLAGS", format!("{flags} -buildvcs=false")).env("GOWORK", "off");
    go
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn staging_modules_are_replaced_by_their_releases() {
        let theirs = "module k8s.io/kubernetes\n\ngo 1.25.0\n\nreplace (\n\tk8s.io/api => ./staging/src/k8s.io/api\n)\n";
        let module = Module::Kubernetes(Kubernetes::V1_35);
        let staging_version = module.staging_version();
        let text = requirements(module.path(), module.version(), theirs, staging_version.as_deref());
        assert_eq!(
            text.unwrap(),
            "module enforcer\n\ngo 1.25.0\n\nrequire k8s.io/kubernetes v1.35.4\n\n\
             replace k8s.io/api => k8s.io/api v0.35.4\n"
        );
    }

    #[test]
    fn a_module_without_staging_needs_only_a_requirement() {
        let text = requirements("go.etcd.io/etcd/server/v3", "3.6.8", "module x\n\ngo 1.24.0\n", None);
        assert_eq!(
            text.unwrap(),
            "module enforcer\n\ngo 1.24.0\n\nrequire go.etcd.io/etcd/server/v3 v3.6.8\n\n"
        );
    }
}
