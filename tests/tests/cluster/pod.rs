//! A pod, deleted when dropped.

use std::{
    fs,
    net::{SocketAddr, TcpStream},
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use enforcer::cgroup::kubepods::PodQos;
use enforcer_rig::{
    cluster::{Cluster, WORKLOAD_IMAGE},
    wait,
};
use serde_json::{Value, json};

/// Until something that should happen is given up on.
pub const PATIENCE: Duration = Duration::from_mins(1);
/// Between two looks at something that the cluster is to bring about.
const LOOK_UP: Duration = Duration::from_millis(200);

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Spec {
    qos: PodQos,
    /// Koordinator's class, as its label has it; none: no label.
    class: Option<&'static str>,
    priority: Option<&'static str>,
    labels: Vec<(String, String)>,
    slo: Option<String>,
    resources: Value,
}

impl Spec {
    fn of(qos: PodQos, resources: Value) -> Self {
        Self { qos, class: None, priority: None, labels: Vec::new(), slo: None, resources }
    }

    pub fn guaranteed() -> Self {
        Self::of(PodQos::Guaranteed, json!({ "requests": amount(), "limits": amount() }))
    }

    pub fn burstable() -> Self {
        Self::of(PodQos::Burstable, json!({ "requests": amount() }))
    }

    pub fn best_effort() -> Self {
        Self::of(PodQos::BestEffort, json!({}))
    }

    pub fn of_qos(qos: PodQos) -> Self {
        match qos {
            PodQos::Guaranteed => Self::guaranteed(),
            PodQos::Burstable => Self::burstable(),
            PodQos::BestEffort => Self::best_effort(),
        }
    }

    /// Where kubelet puts it.
    pub const fn qos(&self) -> PodQos {
        self.qos
    }

    /// Koordinator's BE on batch resources. The class needs what the chart installs.
    pub fn batch(resources: Value) -> Self {
        let spec = Self::of(PodQos::BestEffort, resources);
        Self { class: Some("BE"), priority: Some("koord-batch"), ..spec }
    }

    /// With an objective, as the annotation has it.
    pub fn with_slo(self, slo: &str) -> Self {
        Self { slo: Some(slo.to_owned()), ..self }
    }

    pub fn labelled(mut self, key: &str, value: &str) -> Self {
        self.labels.push((key.to_owned(), value.to_owned()));
        self
    }

    /// A pod that runs the workload with these arguments.
    pub fn object(&self, name: &str, arguments: &[&str]) -> Value {
        let mut labels: serde_json::Map<String, Value> =
            self.labels.iter().map(|(key, value)| (key.clone(), json!(value))).collect();
        if let Some(class) = self.class {
            labels.insert("koordinator.sh/qosClass".to_owned(), json!(class));
        }
        let annotations =
            self.slo.as_ref().map_or_else(|| json!({}), |slo| json!({ "enforcer.dev/slo": slo }));
        json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": { "name": name, "labels": labels, "annotations": annotations },
            "spec": {
                "priorityClassName": self.priority,
                // The workloads, as first processes, do not heed a request to end.
                "terminationGracePeriodSeconds": 1,
                "containers": [{
                    "name": "main",
                    "image": WORKLOAD_IMAGE,
                    "imagePullPolicy": "Never",
                    "args": arguments,
                    "resources": self.resources,
                }],
            },
        })
    }
}

fn amount() -> Value {
    json!({ "cpu": "50m", "memory": "32Mi" })
}

/// A running one.
#[derive(Debug)]
pub struct Pod<'a> {
    cluster: &'a Cluster,
    pub name: String,
    pub qos: PodQos,
    pub uid: String,
    /// Its only container's, as the runtime knows it.
    pub container: String,
    pub address: String,
}

impl<'a> Pod<'a> {
    /// Makes one of a class that runs the workload with these arguments, and waits until it runs.
    pub fn run(cluster: &'a Cluster, name: &str, qos: PodQos, arguments: &[&str]) -> Result<Self> {
        Self::start(cluster, name, &Spec::of_qos(qos), arguments)
    }

    /// Makes one that runs the workload with these arguments, and waits until it runs.
    pub fn start(cluster: &'a Cluster, name: &str, spec: &Spec, arguments: &[&str]) -> Result<Self> {
        cluster.apply(&spec.object(name, arguments))?;
        Self::made(cluster, name, spec.qos)
    }

    /// Waits until one runs that was made already.
    pub fn made(cluster: &'a Cluster, name: &str, qos: PodQos) -> Result<Self> {
        let text = String::new();
        let mut pod = Self {
            cluster,
            name: name.to_owned(),
            qos,
            uid: text.clone(),
            container: text.clone(),
            address: text,
        };
        pod.wait_until_it_runs()?;
        Ok(pod)
    }

    fn wait_until_it_runs(&mut self) -> Result<()> {
        let mut seen = Value::Null;
        let running = wait_for(&format!("pod {} runs", self.name), || {
            seen = self.look()?;
            Ok(!seen["status"]["containerStatuses"][0]["state"]["running"].is_null())
        });
        running.with_context(|| seen["status"].to_string())?;
        let text =
            |value: &Value| value.as_str().map(str::to_owned).context("a pod's status lacks something");
        self.uid = text(&seen["metadata"]["uid"])?;
        self.address = text(&seen["status"]["podIP"])?;
        self.container = text(&seen["status"]["containerStatuses"][0]["containerID"])?;
        self.container = self.container.trim_start_matches("containerd://").to_owned();
        let class = text(&seen["status"]["qosClass"])?;
        ensure!(class == format!("{:?}", self.qos), "{} is {class}, not {:?}", self.name, self.qos);
        Ok(())
    }

    /// What the API server knows of it.
    pub fn look(&self) -> Result<Value> {
        self.cluster.ask_json(&["get", "pod", &self.name])
    }

    /// Its directory below the cluster's in every hierarchy.
    pub fn path(&self) -> String {
        let class = match self.qos {
            PodQos::Guaranteed => "",
            PodQos::Burstable => "burstable/",
            PodQos::BestEffort => "besteffort/",
        };
        format!("kubepods/{class}pod{}", self.uid)
    }

    /// Its directories, v2 first. The first has the container's process below it.
    pub fn directories(&self) -> Result<Vec<PathBuf>> {
        Ok(self.cluster.cgroups()?.into_iter().map(|root| root.join(self.path())).collect())
    }

    /// The quota in force in its directory, in us per 100 ms or whatever the period is; `None`: no limit.
    pub fn quota(&self) -> Result<Option<i64>> {
        let directory = self.cluster.directory("cpu", &self.path())?;
        let file = if self.cluster.is_v2()? { "cpu.max" } else { "cpu.cfs_quota_us" };
        let text = fs::read_to_string(directory.join(file))?;
        let quota = text.split_whitespace().next().context("an empty quota")?;
        Ok(if matches!(quota, "max" | "-1") { None } else { Some(quota.parse()?) })
    }

    /// Processes of its container.
    pub fn processes(&self) -> Result<Vec<u32>> {
        let directories = self.directories()?;
        let directory = directories.first().context("no cgroup hierarchy")?.join(&self.container);
        let file = directory.join("cgroup.procs");
        let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        text.lines().map(|line| Ok(line.parse()?)).collect()
    }

    /// Where it is reached at this port, once it accepts connections: that it runs does not say so.
    pub fn listens_at(&self, port: u16) -> Result<SocketAddr> {
        let address = SocketAddr::new(self.address.parse()?, port);
        wait_for(&format!("pod {} accepts connections", self.name), || {
            TcpStream::connect_timeout(&address, Duration::from_secs(1))?;
            Ok(true)
        })?;
        Ok(address)
    }

    /// Deletes it, and waits until it is gone.
    pub fn delete(&self) -> Result<()> {
        self.cluster.ask(&["delete", "pod", &self.name, "--ignore-not-found", "--timeout=60s"])?;
        Ok(())
    }
}

impl Drop for Pod<'_> {
    fn drop(&mut self) {
        if let Err(err) = self.delete() {
            println!("pod {} stays: {err:#}", self.name);
        }
    }
}

/// Waits until something is so. What cannot be asked for a while may come to be so all the same.
pub fn wait_for(what: &str, is_so: impl FnMut() -> Result<bool>) -> Result<()> {
    wait_long(what, PATIENCE, LOOK_UP, is_so)
}

/// For so long, with so long between two looks.
pub fn wait_long(
    what: &str,
    patience: Duration,
    look: Duration,
    mut is_so: impl FnMut() -> Result<bool>,
) -> Result<()> {
    let mut failure = None;
    let waited = wait::until(what, patience, look, || {
        let outcome = is_so();
        let is_so = matches!(outcome, Ok(true));
        failure = outcome.err();
        Ok(is_so)
    });
    waited.map_err(|vain| match failure {
        Some(failure) => failure.context(vain),
        None => vain,
    })
}
