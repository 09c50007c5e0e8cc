//! The webhook as people run it: the chart's Deployment, from the image, asked by a real API server.

use std::time::{Instant, SystemTime};

use anyhow::{Context as _, Result, ensure};
use enforcer::admission::webhook::certificate::{LIFE, Pair};
use enforcer_rig::cluster::{Cluster, install};
use enforcer_tests::needs::image;
use serde_json::{Value, json};

use crate::pod::wait_for;

const NAMESPACE: &str = "enforcer-system";
const SECRET: &str = "enforcer-webhook-tls";
const HOST: &str = "enforcer-webhook.enforcer-system.svc";
const SPARK: &str = "spark-demo";
const SELECTOR: &str = "--selector=app.kubernetes.io/component=webhook";
const KINDS: [&str; 4] =
    ["Service", "Deployment", "MutatingWebhookConfiguration", "ValidatingWebhookConfiguration"];

/// The webhook's objects, removed when dropped.
pub struct Webhook<'a>(&'a Cluster);

impl<'a> Webhook<'a> {
    /// Waits until it is asked: the API server knows its certificate.
    pub fn start(cluster: &'a Cluster) -> Result<Self> {
        let output = cluster.import(&image())?.output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        cluster.install()?;
        let webhook = Self(cluster);
        cluster.apply_yaml(&install::objects("webhook", &KINDS)?)?;
        webhook.wait_until_ready()?;
        Ok(webhook)
    }

    pub fn wait_until_ready(&self) -> Result<()> {
        wait_for("the webhook's pods are ready", || {
            let deployment = self.0.ask_json(&["get", "deployment", "enforcer-webhook", "-n", NAMESPACE])?;
            let status = &deployment["status"];
            Ok(status["readyReplicas"] == deployment["spec"]["replicas"]
                && status["unavailableReplicas"].is_null())
        })
        .with_context(|| {
            let log = ["logs", SELECTOR, "--tail=50", "-n", NAMESPACE];
            self.0.ask(&log).unwrap_or_default()
        })?;
        wait_for("the API server is told its certificate", || {
            let configuration =
                self.0.ask_json(&["get", "mutatingwebhookconfiguration", "enforcer-webhook"])?;
            Ok(configuration["webhooks"][0]["clientConfig"]["caBundle"].is_string())
        })
    }

    /// Addresses of its pods.
    pub fn addresses(&self) -> Result<Vec<String>> {
        let pods = self.0.ask_json(&["get", "pods", SELECTOR, "-n", NAMESPACE])?;
        let pods = pods["items"].as_array().cloned().unwrap_or_default();
        Ok(pods.iter().filter_map(|pod| pod["status"]["podIP"].as_str().map(str::to_owned)).collect())
    }

    /// Ends its processes without asking them.
    fn kill(&self) -> Result<()> {
        self.0.ask(&["delete", "pods", SELECTOR, "-n", NAMESPACE, "--grace-period=0", "--force"])?;
        Ok(())
    }
}

impl Drop for Webhook<'_> {
    fn drop(&mut self) {
        let kinds = KINDS.map(str::to_lowercase).join(",");
        let delete = ["delete", &kinds, SELECTOR, "-n", NAMESPACE, "--ignore-not-found", "--wait=false"];
        if let Err(err) = self.0.ask(&delete) {
            println!("the webhook stays: {err:#}");
        }
        // The next one may want it again.
        self.0.ask(&["delete", "namespace", SPARK, "--ignore-not-found", "--timeout=60s"]).ok();
    }
}

/// The tutorial's profile and namespace, as the example ships them.
pub fn apply_profile(cluster: &Cluster) -> Result<()> {
    cluster.apply_yaml(&install::example("profile.yaml")?)?;
    wait_for("the namespace can hold pods", || {
        Ok(cluster.ask(&["get", "serviceaccount", "default", "-n", SPARK]).is_ok())
    })
}

/// A pod as the Spark operator makes it for the tutorial's job.
pub fn spark_pod(name: &str, role: &str, labels: &Value) -> Value {
    let amounts = json!({ "cpu": "1", "memory": "3456Mi" });
    let mut pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": name, "namespace": SPARK, "labels": labels },
        "spec": {
            "restartPolicy": "Never",
            "containers": [{
                "name": format!("spark-kubernetes-{role}"),
                "image": "spark:3.5.6",
                "imagePullPolicy": "Never",
                "resources": { "requests": amounts, "limits": amounts },
            }],
        },
    });
    pod["metadata"]["labels"]["spark-role"] = json!(role);
    pod
}

pub fn operators_labels() -> Value {
    json!({ "sparkoperator.k8s.io/launched-by-spark-operator": "true" })
}

/// Driver and executor become what the tutorial shows, field by field; others stay as they are.
pub fn tutorial() -> Result<()> {
    let cluster = Cluster::running()?;
    let _webhook = Webhook::start(&cluster)?;
    apply_profile(&cluster)?;
    for role in ["driver", "executor"] {
        let name = format!("spark-tc-{role}");
        cluster.apply(&spark_pod(&name, role, &operators_labels()))?;
        let pod = cluster.ask_json(&["get", "pod", &name, "-n", SPARK])?;
        ensure_tutorials(&pod)?;
        println!("{name}: {}", pod["spec"]["containers"][0]["resources"]);
    }
    // Neither the operator's nor spark-submit's.
    let mut stranger = spark_pod("stranger", "driver", &json!({}));
    stranger["metadata"]["labels"] = json!({ "app": "web" });
    cluster.apply(&stranger)?;
    let pod = cluster.ask_json(&["get", "pod", "stranger", "-n", SPARK])?;
    ensure!(pod["spec"]["containers"][0]["resources"]["requests"]["cpu"] == "1", "{pod}");
    ensure!(pod["spec"]["schedulerName"] == "default-scheduler", "{pod}");
    ensure!(pod["metadata"]["labels"] == json!({ "app": "web" }), "{pod}");
    Ok(())
}

fn ensure_tutorials(pod: &Value) -> Result<()> {
    let amounts = json!({ "kubernetes.io/batch-cpu": "1k", "kubernetes.io/batch-memory": "3456Mi" });
    let (meta, spec) = (&pod["metadata"], &pod["spec"]);
    let container = &spec["containers"][0];
    for (what, found, expected) in [
        ("QoS class", &meta["labels"]["koordinator.sh/qosClass"], json!("BE")),
        ("priority within its class", &meta["labels"]["koordinator.sh/priority"], json!("1000")),
        ("priority class", &spec["priorityClassName"], json!("koord-batch")),
        ("priority", &spec["priority"], json!(5000)),
        ("scheduler", &spec["schedulerName"], json!("koord-scheduler")),
        ("requests", &container["resources"]["requests"], amounts.clone()),
        ("limits", &container["resources"]["limits"], amounts),
    ] {
        ensure!(*found == expected, "{what}: {found} instead of {expected} in {pod}");
    }
    Ok(())
}

/// While no webhook answers, pods are made as they are, which is told afterwards; it comes back by itself, also to an API
/// server that was restarted.
pub fn recovers() -> Result<()> {
    let mut cluster = Cluster::running()?;
    let witness = Cluster::running()?;
    let webhook = Webhook::start(&witness)?;
    apply_profile(&witness)?;
    webhook.kill()?;
    let begun = Instant::now();
    witness.apply(&spark_pod("slipped", "driver", &operators_labels()))?;
    println!("without a webhook a pod is made after {:.1?}", begun.elapsed());
    let slipped = witness.ask_json(&["get", "pod", "slipped", "-n", SPARK])?;
    ensure!(slipped["spec"]["containers"][0]["resources"]["requests"]["cpu"] == "1", "{slipped}");
    webhook.wait_until_ready()?;
    let address = webhook.addresses()?.into_iter().next().context("the webhook has no pod")?;
    wait_for("the pod that slipped through is told", || {
        let metrics = metrics(&address)?;
        Ok(metrics.lines().any(|line| line == "enforcer_webhook_unconverted_pods 1"))
    })?;
    is_mutated_soon(&witness, "after-a-kill")?;

    // Asked to end, it would wait a minute for those who watch.
    cluster.crash("kube-apiserver")?;
    wait_for("the API server answers", || Ok(witness.ask(&["get", "--raw=/readyz"]).is_ok()))?;
    is_mutated_soon(&witness, "after-a-restart")
}

/// A cluster that was switched off for more than a year: the certificate in the Secret, and the CA that the API server knows of,
/// have expired. Replicas make a new one when they start, and nobody has to do anything.
pub fn expired_certificate() -> Result<()> {
    let cluster = Cluster::running()?;
    let webhook = Webhook::start(&cluster)?;
    apply_profile(&cluster)?;
    let expired = Pair::make(&[HOST.to_owned()], SystemTime::now() - 2 * LIFE, None)?;
    let pem = json!({ "ca.crt": expired.ca, "tls.crt": expired.certificate, "tls.key": expired.key });
    let patch = json!({ "stringData": pem }).to_string();
    cluster.ask(&["patch", "secret", SECRET, "-n", NAMESPACE, "--type=merge", "--patch", &patch])?;
    let stored = || {
        let secret = cluster.ask_json(&["get", "secret", SECRET, "-n", NAMESPACE])?;
        anyhow::Ok(secret["data"].clone())
    };
    let (bad, begun) = (stored()?, Instant::now());
    trust_only(&cluster, &bad["ca.crt"])?;
    webhook.kill()?;

    wait_for("there is a new certificate", || Ok(stored()? != bad))?;
    println!("made {:.1?} after the replicas were killed", begun.elapsed());
    is_mutated_soon(&cluster, "after-expiry")?;
    println!("pods are mutated again {:.1?} after they were killed", begun.elapsed());
    let new = stored()?;
    for (kind, configuration) in configurations(&cluster)? {
        for webhook in configuration["webhooks"].as_array().context("no webhooks")? {
            ensure!(
                webhook["clientConfig"]["caBundle"] == new["ca.crt"],
                "{kind} trusts another CA: {webhook}"
            );
        }
    }
    ensure!(
        new["tls.crt"] != bad["tls.crt"] && new["tls.key"] != bad["tls.key"],
        "a part of the old one is left"
    );
    Ok(())
}

fn configurations(cluster: &Cluster) -> Result<Vec<(&'static str, Value)>> {
    let kinds = ["mutatingwebhookconfiguration", "validatingwebhookconfiguration"];
    kinds.into_iter().map(|kind| Ok((kind, cluster.ask_json(&["get", kind, "enforcer-webhook"])?))).collect()
}

/// Has the API server trust this CA, in base64, and no other.
fn trust_only(cluster: &Cluster, ca: &Value) -> Result<()> {
    for (kind, configuration) in configurations(cluster)? {
        let count = configuration["webhooks"].as_array().map_or(0, Vec::len);
        let replace = |index| json!({ "op": "replace", "path": format!("/webhooks/{index}/clientConfig/caBundle"), "value": ca });
        let patch: Value = (0..count).map(replace).collect();
        let patch = patch.to_string();
        cluster.ask(&["patch", kind, "enforcer-webhook", "--type=json", "--patch", &patch])?;
    }
    Ok(())
}

/// Its certificate is its own.
fn metrics(address: &str) -> Result<String> {
    let url = format!("https://{address}:9443/metrics");
    let output = std::process::Command::new("curl").args(["--silent", "--insecure", &url]).output()?;
    Ok(String::from_utf8(output.stdout)?)
}

/// Pods are mutated again, without anybody doing anything.
fn is_mutated_soon(cluster: &Cluster, name: &str) -> Result<()> {
    let mut tries = 0;
    wait_for("pods are mutated again", || {
        tries += 1;
        let name = format!("{name}-{tries}");
        cluster.apply(&spark_pod(&name, "driver", &operators_labels()))?;
        let pod = cluster.ask_json(&["get", "pod", &name, "-n", SPARK])?;
        ensure_tutorials(&pod).map(|()| true)
    })
}
