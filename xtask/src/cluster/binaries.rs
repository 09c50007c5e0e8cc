//! The programs of a cluster: those of $`KUBEBUILDER_ASSETS` and the PATH where their version is the one that is asked
//! for, others built.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Result;

use crate::go::{Kubernetes, Module};
use crate::programs::run_quietly;

/// Where each of them is.
#[derive(Debug)]
pub struct Binaries {
    pub etcd: PathBuf,
    pub api_server: PathBuf,
    pub controller_manager: PathBuf,
    pub scheduler: PathBuf,
    pub kubelet: PathBuf,
    pub kubectl: PathBuf,
}

impl Binaries {
    /// Finds them, and builds those that are missing.
    pub fn find_or_build(release: Kubernetes) -> Result<Self> {
        let kubernetes = |program| find_or_build(Module::Kubernetes(release), program);
        Ok(Self {
            etcd: find_or_build(Module::Etcd, "etcd")?,
            api_server: kubernetes("kube-apiserver")?,
            controller_manager: kubernetes("kube-controller-manager")?,
            scheduler: kubernetes("kube-scheduler")?,
            kubelet: kubernetes("kubelet")?,
            kubectl: kubernetes("kubectl")?,
        })
    }
}

fn find_or_build(module: Module, program: &str) -> Result<PathBuf> {
    let assets = env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from);
    let path = env::var_os("PATH").unwrap_or_default();
    let mut files =
        assets.into_iter().chain(env::split_paths(&path)).map(|directory| directory.join(program));
    match files.find(|file| file.is_file() && is_of_version(file, program, module.version())) {
        Some(file) => Ok(file),
        None => module.program(program),
    }
}

fn is_of_version(file: &Path, program: &str, version: &str) -> bool {
    let question: &[&str] = if program == "kubectl" { &["version", "--client"] } else { &["--version"] };
    // One that cannot tell is none that can be used.
    run_quietly(Command::new(file).args(question))
        .is_ok_and(|output| tells_version(&String::from_utf8_lossy(&output.stdout), version))
}

fn tells_version(answer: &str, version: &str) -> bool {
    answer.split_whitespace().any(|word| word.strip_prefix('v').unwrap_or(word) == version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_very_version_will_do() {
        assert!(tells_version("Kubernetes v1.35.4", "1.35.4"));
        assert!(tells_version("Client Version: v1.35.4\nKustomize Version: v5.7.1", "1.35.4"));
        assert!(tells_version("etcd Version: 3.6.8\nGit SHA: Not provided", "3.6.8"));
        assert!(!tells_version("Kubernetes v1.35.4-rc.1", "1.35.4"));
        assert!(!tells_version("Kubernetes v1.35.41", "1.35.4"));
    }
}
