//! What Koordinator's Spark tutorial sets up: a namespace for batch work, profiles that turn Spark's pods into batch pods,
//! and a service account for drivers.

use anyhow::Result;
use enforcer_rig::cluster::Cluster;

use crate::programs::root;

const FILES: [&str; 2] = ["profile.yaml", "service-account.yaml"];

/// All of it. It is deleted when dropped.
#[derive(Debug)]
pub struct Tutorial<'a> {
    cluster: &'a Cluster,
}

impl<'a> Tutorial<'a> {
    /// Applies the files of the example. The chart's CRDs must be there.
    pub fn apply(cluster: &'a Cluster) -> Result<Self> {
        let tutorial = Self { cluster };
        FILES.iter().try_for_each(|file| tutorial.kubectl("apply", file, &[]))?;
        Ok(tutorial)
    }

    fn kubectl(&self, verb: &str, file: &str, more: &[&str]) -> Result<()> {
        let path = root().join("daemonset/examples/spark").join(file).display().to_string();
        self.cluster.ask(&[&[verb, "--filename", &path][..], more].concat())?;
        Ok(())
    }
}

impl Drop for Tutorial<'_> {
    fn drop(&mut self) {
        for file in FILES.iter().rev() {
            if let Err(err) = self.kubectl("delete", file, &["--ignore-not-found", "--wait=false"]) {
                println!("objects of {file} stay: {err:#}");
            }
        }
    }
}
