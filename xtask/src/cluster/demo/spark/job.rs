//! A job of Spark's: the transitive closure of a random graph, as in Koordinator's tutorial.

use std::{net::Ipv4Addr, process::Command, time::Duration};

use anyhow::{Context as _, Result, bail};
use enforcer_rig::{cluster::Cluster, process::installed};

use super::distribution::{Distribution, IMAGE};
use crate::{
    cluster::demo::objects::{BATCH_NAMESPACE, Pod},
    programs::run_quietly,
};

const DRIVER: &str = "spark-tc-driver";
/// The executor's name begins with it.
const PREFIX: &str = "spark-tc";
const EXECUTORS: &str = "spark-role=executor";
const PROGRAM: &str = "local:///opt/spark/examples/src/main/python/transitive_closure.py";
/// Parts that the graph's edges are in. The more of them, the longer the job.
const PARTS: &str = "40";
/// For a driver to start, and for it to start its executor.
const PATIENCE: Duration = Duration::from_mins(2);
/// `chroot` into the distribution, with what Java expects of a system and with the cluster's certificates in /mnt. In a
/// mount namespace of its own, so that nothing stays mounted.
const SUBMIT: &str = r#"
set -eu
root=$1
mount --rbind /proc "$root/proc"
mount --rbind /dev "$root/dev"
mount --bind "$2" "$root/mnt"
shift 2
exec chroot "$root" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root SPARK_HOME=/opt/spark SPARK_LOCAL_IP=127.0.0.1 "$@"
"#;

/// A running job. It is deleted when dropped.
#[derive(Debug)]
pub struct Job<'a> {
    cluster: &'a Cluster,
}

impl<'a> Job<'a> {
    /// The labels of driver and executors.
    pub const PODS: &'static str = "spark-role in (driver,executor)";

    /// Submits it, and waits until an executor runs.
    pub fn submit(cluster: &'a Cluster, distribution: &Distribution) -> Result<Self> {
        let token = cluster.ask(&["create", "token", "spark", "--namespace", BATCH_NAMESPACE])?;
        let certificates = cluster.paths.tree.join("pki");
        let mut command = Command::new(installed("unshare")?);
        command.args(["--mount", "sh", "-c", SUBMIT, "sh"]).arg(&distribution.root).arg(certificates);
        command.args(arguments(cluster.address, token.trim()));
        // Before it is known whether the submission was successful: it may have made the driver and failed afterwards.
        let job = Self { cluster };
        run_quietly(&mut command).context("spark-submit was not successful")?;
        cluster
            .wait_for("an executor of Spark runs", PATIENCE, || job.has_executor())
            .with_context(|| job.complaint())?;
        Ok(job)
    }

    /// Driver and executors.
    fn pods(&self) -> Result<Vec<Pod>> {
        Pod::all(self.cluster, BATCH_NAMESPACE, Self::PODS)
    }

    /// Whether it still works.
    pub fn is_running(&self) -> Result<bool> {
        Ok(self.pods()?.iter().any(|pod| pod.name == DRIVER && pod.phase == "Running"))
    }

    fn has_executor(&self) -> Result<bool> {
        let pods = self.pods()?;
        if let Some(pod) = pods.iter().find(|pod| matches!(pod.phase.as_str(), "Failed" | "Succeeded")) {
            bail!("{} has ended ({})", pod.name, pod.phase);
        }
        Ok(pods.iter().any(|pod| pod.name != DRIVER && pod.phase == "Running"))
    }

    /// Why there is no executor, as far as the cluster tells.
    fn complaint(&self) -> String {
        let ask = |arguments: &[&str]| {
            self.cluster.ask(&[arguments, &["--namespace", BATCH_NAMESPACE]].concat()).unwrap_or_default()
        };
        let events = ask(&["get", "events", "--field-selector=type=Warning"]);
        let log = ask(&["logs", DRIVER, "--tail=20"]);
        format!("Spark's driver did not get an executor.\nWarnings:\n{events}The driver's last words:\n{log}")
    }
}

impl Drop for Job<'_> {
    fn drop(&mut self) {
        for selector in ["spark-role=driver", EXECUTORS] {
            // The driver first: it would make other executors.
            let deleted = Pod::delete_all(self.cluster, BATCH_NAMESPACE, selector);
            if let Err(err) = deleted {
                println!("pods of {selector} stay: {err:#}");
            }
        }
    }
}

fn arguments(server: Ipv4Addr, token: &str) -> Vec<String> {
    let mut arguments: Vec<String> =
        ["/opt/spark/bin/spark-submit", "--deploy-mode", "cluster", "--name", PREFIX, "--master"]
            .map(str::to_owned)
            .into();
    arguments.push(format!("k8s://https://{server}:443"));
    let kubernetes = [
        ("namespace", BATCH_NAMESPACE),
        ("authenticate.submission.caCertFile", "/mnt/ca.crt"),
        ("authenticate.submission.oauthToken", token),
        ("authenticate.driver.serviceAccountName", "spark"),
        ("container.image", IMAGE),
        ("container.image.pullPolicy", "Never"),
        ("driver.pod.name", DRIVER),
        ("executor.podNamePrefix", PREFIX),
        // Requests without limits: a batch pod may use whatever is idle.
        ("driver.request.cores", "200m"),
        ("executor.request.cores", "500m"),
        ("submission.waitAppCompletion", "false"),
    ];
    let spark = [("driver.memory", "1g"), ("executor.memory", "1g"), ("executor.instances", "1")];
    let settings = kubernetes
        .map(|(name, value)| format!("spark.kubernetes.{name}={value}"))
        .into_iter()
        .chain(spark.map(|(name, value)| format!("spark.{name}={value}")));
    arguments.extend(settings.flat_map(|setting| ["--conf".to_owned(), setting]));
    arguments.extend([PROGRAM.to_owned(), PARTS.to_owned()]);
    arguments
}
