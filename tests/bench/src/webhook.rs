//! `bench webhook`: how long a pod waits to be mutated, on one core, at a steady rate.
//!
//! The webhook as it ships, over TLS, with a real API server behind it and the tutorial's profile; the API server's part is played by
//! a client that sends the same review again and again, at times that do not depend on the answers.

use std::{
    fs,
    net::SocketAddr,
    process::Stdio,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use enforcer_rig::{
    address,
    cluster::{Cluster, install},
    process::{Process, built, workload},
};
use futures_util::future::try_join_all;
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, body::Bytes, client::conn::http1::SendRequest, header};
use hyper_util::rt::TokioIo;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Admissions per second.
    #[arg(long, default_value_t = 500)]
    rate: u32,
    /// How long.
    #[arg(long, default_value_t = 30)]
    seconds: u32,
    /// Connections, as of so many API servers and more.
    #[arg(long, default_value_t = 8)]
    connections: u32,
}

const CONFIGURATIONS: [&str; 2] = ["MutatingWebhookConfiguration", "ValidatingWebhookConfiguration"];
const NAME: &str = "enforcer-webhook.enforcer-system.svc";
const PATIENCE: Duration = Duration::from_secs(30);

pub fn run(args: &Args) -> Result<Value> {
    let cluster = Cluster::running()?;
    cluster.install()?;
    cluster.apply_yaml(&install::objects("webhook", &CONFIGURATIONS)?)?;
    cluster.apply_yaml(&install::example("profile.yaml")?)?;
    let measured = measure(args, &cluster);
    for kind in CONFIGURATIONS {
        cluster.ask(&["delete", kind, "enforcer-webhook"])?;
    }
    cluster.ask(&["delete", "namespace", "spark-demo", "--timeout=60s"])?;
    measured
}

fn measure(args: &Args, cluster: &Cluster) -> Result<Value> {
    let mut webhook = Webhook::start(cluster)?;
    let tls = webhook.wait_for_authority(cluster)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    // Its authority is made known a moment before it serves with what that has signed.
    cluster.wait_for("the webhook answers over TLS", PATIENCE, || {
        Ok(runtime.block_on(webhook.connect(&tls)).is_ok())
    })?;
    let review = Bytes::from(review().to_string());
    let before = webhook.cpu_seconds()?;
    let begun = Instant::now();
    let mut took: Vec<Duration> = runtime.block_on(async {
        let clients = (0..args.connections).map(|place| client(args, place, &webhook, &tls, &review));
        anyhow::Ok(try_join_all(clients).await?.concat())
    })?;
    let seconds = begun.elapsed().as_secs_f64();
    let cores = (webhook.cpu_seconds()? - before) / seconds;
    took.sort_unstable();
    let rank = |share: f64| {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a place among them")]
        let place = (took.len() as f64 * share) as usize;
        took.get(place.min(took.len() - 1)).map(|took| took.as_secs_f64() * 1e3)
    };
    Ok(json!({
        "admissions": took.len(),
        "per_second": took.len() as f64 / seconds,
        "p50_ms": rank(0.5), "p99_ms": rank(0.99), "max_ms": rank(1.0),
        "webhook_cores": cores,
    }))
}

/// One connection's share of the reviews, each due at its own time. What is late counts from when it was due.
async fn client(
    args: &Args,
    place: u32,
    webhook: &Webhook,
    tls: &TlsConnector,
    review: &Bytes,
) -> Result<Vec<Duration>> {
    let mut sender = webhook.connect(tls).await?;
    let gap = Duration::from_secs(1) * args.connections / args.rate.max(1);
    let begun = Instant::now() + gap * place / args.connections;
    let mut took = Vec::new();
    for number in 0.. {
        let due = begun + gap * number;
        if due > begun + Duration::from_secs(args.seconds.into()) {
            break;
        }
        tokio::time::sleep_until(due.into()).await;
        let request = Request::post("/mutate-pod")
            .header(header::HOST, NAME)
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(review.clone()))?;
        let answer = sender.send_request(request).await?;
        let is_ok = answer.status().is_success();
        let body = answer.into_body().collect().await?.to_bytes();
        took.push(due.elapsed());
        if number == 0 {
            // What is measured is a mutation, and not a quick refusal.
            let answer: Value = serde_json::from_slice(&body)?;
            ensure!(is_ok && !answer["response"]["patch"].is_null(), "no mutation: {answer}");
        }
        ensure!(is_ok, "the webhook fails: {}", String::from_utf8_lossy(&body));
    }
    Ok(took)
}

/// The server, pinned to one CPU.
struct Webhook {
    process: Process,
    address: SocketAddr,
}

impl Webhook {
    fn start(cluster: &Cluster) -> Result<Self> {
        let kubeconfig = cluster.kubeconfig_of("enforcer-system", "enforcer-webhook")?;
        let address = address::free()?;
        let mut command = workload()?;
        command.args(["--on-parent-death", "term", "--cpu", "0", "exec"]).arg(built("enforcer")?);
        command.args(["webhook", "--listen", &address.to_string(), "--kubeconfig"]).arg(kubeconfig);
        let process = Process::start("the webhook", command.stdin(Stdio::null()).stdout(Stdio::null()))?;
        Ok(Self { process, address })
    }

    /// Whom to trust, once the webhook has said so to the API server.
    fn wait_for_authority(&mut self, cluster: &Cluster) -> Result<TlsConnector> {
        let mut bundle = Vec::new();
        cluster.wait_for("the webhook has a certificate", PATIENCE, || {
            ensure!(self.process.is_running(), "the webhook has ended: see its log");
            let get = ["get", "mutatingwebhookconfiguration", "enforcer-webhook"];
            let configuration = cluster.ask_json(&get)?;
            let told = configuration["webhooks"][0]["clientConfig"]["caBundle"].as_str();
            bundle = BASE64_STANDARD.decode(told.unwrap_or_default())?;
            Ok(!bundle.is_empty() && std::net::TcpStream::connect(self.address).is_ok())
        })?;
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(&bundle) {
            roots.add(certificate?)?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(TlsConnector::from(Arc::new(config)))
    }

    async fn connect(&self, tls: &TlsConnector) -> Result<SendRequest<Full<Bytes>>> {
        let tcp = TcpStream::connect(self.address).await?;
        tcp.set_nodelay(true)?;
        let tls = tls.connect(ServerName::try_from(NAME)?, tcp).await?;
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(tls)).await?;
        tokio::spawn(connection);
        Ok(sender)
    }

    /// CPU time that it has used.
    fn cpu_seconds(&self) -> Result<f64> {
        let path = format!("/proc/{}/schedstat", self.process.id());
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        let ns: f64 = text.split_whitespace().next().context("an empty schedstat")?.parse()?;
        Ok(ns / 1e9)
    }
}

/// The tutorial's driver, as an API server asks about it.
fn review() -> Value {
    let amounts = json!({ "cpu": "1", "memory": "3456Mi" });
    json!({
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": {
            "uid": "5c6f1a2e-0000-4000-8000-000000000001",
            "kind": { "group": "", "version": "v1", "kind": "Pod" },
            "resource": { "group": "", "version": "v1", "resource": "pods" },
            "name": "spark-tc-driver", "namespace": "spark-demo", "operation": "CREATE",
            "userInfo": { "username": "operator" },
            "object": {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {
                    "name": "spark-tc-driver", "namespace": "spark-demo",
                    "labels": {
                        "sparkoperator.k8s.io/launched-by-spark-operator": "true", "spark-role": "driver",
                    },
                },
                "spec": { "containers": [{
                    "name": "spark-kubernetes-driver", "image": "spark:3.5.6",
                    "resources": { "requests": amounts, "limits": amounts },
                }]},
            },
        },
    })
}
