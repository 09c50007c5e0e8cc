//! What a cluster stands on: a tmpfs for all that it writes, cgroups, and namespaces for its network and its mounts.
//!
//! etcd, containerd, kubelet and CNI plugins have fixed ideas of where their files are: in /run, /var/lib and /var/log.
//! In the cluster's mount namespace the tmpfs lies there, so that they meet neither what the host has there nor another
//! kubelet, and nothing of theirs outlives the namespace, mounts included.

use std::{fs, path::Path, process::Command};

use anyhow::{Context as _, Result, bail};
use enforcer_rig::{
    cluster::{Paths, cgroups, option},
    process::installed,
};
use rustix::{
    fs::{AtFlags, CWD, StatxAttributes, StatxFlags, statx},
    mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, unmount},
};

use crate::programs::run_quietly;

/// Directories that the cluster has of its own. They are in the tmpfs, under the last part of their names.
const OWN_DIRECTORIES: [&str; 3] = ["/run", "/var/lib", "/var/log"];

/// Runs in the new namespaces. Arguments: the tmpfs, the own directories.
const FURNISH: &str = r#"
set -eu
tree=$1
shift
for directory; do
    mkdir "$tree/${directory##*/}"
    mount --bind "$tree/${directory##*/}" "$directory"
done

# kubelet sets these for the whole machine, unless it finds them set. What it finds are files of its own.
while read -r name value; do
    file=$tree/sysctl/$(echo "$name" | tr / .)
    echo "$value" > "$file"
    mount --bind "$file" "/proc/sys/$name"
done << END
kernel/keys/root_maxbytes 25000000
kernel/keys/root_maxkeys 1000000
kernel/panic 10
kernel/panic_on_oops 1
vm/overcommit_memory 1
vm/panic_on_oom 0
END

# What pods mount with propagation must be shared: with the pods, not with the host.
mount --make-rshared /
"#;

/// Makes all of it.
pub fn lay(paths: &Paths) -> Result<()> {
    let tree = &paths.tree;
    fs::create_dir_all(tree).with_context(|| format!("cannot make {}", tree.display()))?;
    let about =
        || format!("cannot mount a tmpfs on {}: is this root with all its capabilities?", tree.display());
    mount("tmpfs", tree, "tmpfs", MountFlags::empty(), None).with_context(about)?;
    // Or no mount namespace could be kept there.
    mount_change(tree, MountPropagationFlags::PRIVATE).with_context(about)?;
    for name in ["pki", "etc", "sysctl", "namespaces"] {
        fs::create_dir(tree.join(name))?;
    }
    cgroups::make()?;
    for namespace in [&paths.network, &paths.mounts] {
        fs::write(namespace, "")?;
    }
    let mut unshare = Command::new(installed("unshare")?);
    unshare.arg(option("--net", &paths.network)).arg(option("--mount", &paths.mounts));
    unshare.args(["sh", "-c", FURNISH, "sh"]).arg(tree).args(OWN_DIRECTORIES);
    run_quietly(&mut unshare).context("the cluster's namespaces cannot be made")?;
    Ok(())
}

/// An error if the daemons could not see a file.
pub fn ensure_visible(file: &Path) -> Result<()> {
    let hidden = OWN_DIRECTORIES.into_iter().find(|directory| file.starts_with(directory));
    if let Some(directory) = hidden {
        bail!(
            "{} cannot be seen by the cluster, which has a {directory} of its own: put the project, its cache and its \
             programs somewhere else",
            file.display()
        );
    }
    Ok(())
}

/// Whether the tmpfs is there.
pub fn is_laid(paths: &Paths) -> bool {
    is_mount_point(&paths.tree)
}

/// Takes the namespaces and the tmpfs away. Nothing may run there any more, or they only seem to go.
pub fn clear(paths: &Paths) -> Result<()> {
    for mounted in [&paths.mounts, &paths.network, &paths.tree] {
        while is_mount_point(mounted) {
            unmount(mounted, UnmountFlags::DETACH)
                .with_context(|| format!("cannot unmount {}", mounted.display()))?;
        }
    }
    // Not with what is in it: if that were not the mount point, it would be none of ours.
    if paths.tree.exists() {
        fs::remove_dir(&paths.tree).with_context(|| format!("cannot remove {}", paths.tree.display()))?;
    }
    Ok(())
}

fn is_mount_point(path: &Path) -> bool {
    let status = statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::empty());
    status.is_ok_and(|status| status.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}
