//! The images that the cluster has from the beginning.

use std::path::{Path, PathBuf};

use anyhow::Result;
use enforcer_rig::cluster::{PAUSE_IMAGE, WORKLOAD_IMAGE, image::Image};

use crate::{
    build::{TARGET, run_static},
    programs::root,
};

/// The workload program, linked statically: it runs in images that hold nothing else.
pub fn workload() -> Result<PathBuf> {
    println!("building the workloads (a minute or two the first time)");
    run_static(&["build", "--package", "enforcer-rig"])?;
    Ok(root().join("target").join(TARGET).join("release/workload"))
}

/// Writes the images' archives and returns where they are.
pub fn write(workload: &Path, directory: &Path) -> Result<[PathBuf; 2]> {
    let [pause, work] = [directory.join("pause.tar"), directory.join("workload.tar")];
    let files = [(workload, "/workload")];
    Image { name: PAUSE_IMAGE, entrypoint: &["/workload", "pause"], files: &files }.write(&pause)?;
    Image { name: WORKLOAD_IMAGE, entrypoint: &["/workload"], files: &files }.write(&work)?;
    Ok([pause, work])
}
