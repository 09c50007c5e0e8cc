//! Jobs of Spark's, among its examples: the transitive closure of a random graph, as in Koordinator's tutorial, and pi.

use std::{net::Ipv4Addr, process::Command, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
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
/// For a driver to start, and for it to start its executor.
const PATIENCE: Duration = Duration::from_mins(2);
/// For a job to end.
const END: Duration = Duration::from_mins(5);
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

/// One of Spark's examples.
#[derive(Clone, Copy, Debug)]
pub enum Example {
    Pi,
    TransitiveClosure,
}

impl Example {
    pub const ALL: [Self; 2] = [Self::Pi, Self::TransitiveClosure];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Pi => "pi",
            Self::TransitiveClosure => "transitive closure",
        }
    }

    const fn file(self) -> &'static str {
        match self {
            Self::Pi => "pi.py",
            Self::TransitiveClosure => "transitive_closure.py",
        }
    }

    /// With what the line begins that tells the result.
    const fn answer(self) -> &'static str {
        match self {
            Self::Pi => "Pi is roughly",
            Self::TransitiveClosure => "TC has",
        }
    }
}

/// How long a job goes on.
#[derive(Clone, Copy, Debug)]
enum Length {
    Short,
    /// For as long as anybody looks.
    Long,
}

impl Length {
    /// That the data are in. The more of them, the longer the job.
    const fn parts(self) -> u32 {
        match self {
            Self::Short => 2,
            Self::Long => 40,
        }
    }

    /// Without it each round of the closure has twice as many parts as the one before.
    const fn setting(self) -> Option<(&'static str, &'static str)> {
        match self {
            Self::Short => Some(("default.parallelism", "2")),
            Self::Long => None,
        }
    }
}

/// A running job. It is deleted when dropped.
#[derive(Debug)]
pub struct Job<'a> {
    cluster: &'a Cluster,
}

impl<'a> Job<'a> {
    /// The labels of driver and executors.
    pub const PODS: &'static str = "spark-role in (driver,executor)";

    /// Submits one that goes on for long, and waits until an executor runs.
    pub fn submit(cluster: &'a Cluster, distribution: &Distribution) -> Result<Self> {
        let job = Self::start(cluster, distribution, Example::TransitiveClosure, Length::Long)?;
        cluster
            .wait_for("an executor of Spark runs", PATIENCE, || job.has_executor())
            .with_context(|| job.complaint())?;
        Ok(job)
    }

    /// Has one run to its end on lent resources. Returns what it found out.
    ///
    /// # Errors
    /// Where it fails, or its driver or an executor was not lent what it ran on.
    pub fn finish(cluster: &'a Cluster, distribution: &Distribution, example: Example) -> Result<String> {
        let job = Self::start(cluster, distribution, example, Length::Short)?;
        let mut had_executor = false;
        let ended = cluster.wait_for("Spark's driver has ended", END, || {
            let pods = job.pods()?;
            let bound = |pod: &&Pod| pod.phase != "Pending";
            if let Some(pod) = pods.iter().filter(bound).find(|pod| !pod.is_lent) {
                bail!("{} runs on other than lent resources", pod.name);
            }
            had_executor |= pods.iter().filter(bound).any(|pod| pod.name != DRIVER);
            let driver = pods.iter().find(|pod| pod.name == DRIVER);
            Ok(driver.is_some_and(|driver| matches!(driver.phase.as_str(), "Succeeded" | "Failed")))
        });
        ended.with_context(|| job.complaint())?;
        let log = cluster.ask(&["logs", DRIVER, "--namespace", BATCH_NAMESPACE])?;
        let answer = log.lines().find(|line| line.starts_with(example.answer()));
        let answer = answer.with_context(|| format!("{} failed:\n{log}", example.name()))?;
        ensure!(had_executor, "{} ended without an executor", example.name());
        Ok(answer.to_owned())
    }

    fn start(
        cluster: &'a Cluster,
        distribution: &Distribution,
        example: Example,
        length: Length,
    ) -> Result<Self> {
        let token = cluster.ask(&["create", "token", "spark", "--namespace", BATCH_NAMESPACE])?;
        let certificates = cluster.paths.tree.join("pki");
        let mut command = Command::new(installed("unshare")?);
        command.args(["--mount", "sh", "-c", SUBMIT, "sh"]).arg(&distribution.root).arg(certificates);
        command.args(arguments(cluster.address, token.trim(), example, length));
        // Before it is known whether the submission was successful: it may have made the driver and failed afterwards.
        let job = Self { cluster };
        run_quietly(&mut command).context("spark-submit was not successful")?;
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

    /// Why it does not get on, as far as the cluster tells.
    fn complaint(&self) -> String {
        let ask = |arguments: &[&str]| {
            self.cluster.ask(&[arguments, &["--namespace", BATCH_NAMESPACE]].concat()).unwrap_or_default()
        };
        let events = ask(&["get", "events", "--field-selector=type=Warning"]);
        let log = ask(&["logs", DRIVER, "--tail=20"]);
        format!("Spark does not do what it should.\nWarnings:\n{events}The driver's last words:\n{log}")
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

fn arguments(server: Ipv4Addr, token: &str, example: Example, length: Length) -> Vec<String> {
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
    let settings =
        kubernetes.map(|(name, value)| format!("spark.kubernetes.{name}={value}")).into_iter().chain(
            spark.into_iter().chain(length.setting()).map(|(name, value)| format!("spark.{name}={value}")),
        );
    arguments.extend(settings.flat_map(|setting| ["--conf".to_owned(), setting]));
    let program = format!("local:///opt/spark/examples/src/main/python/{}", example.file());
    arguments.extend([program, length.parts().to_string()]);
    arguments
}
