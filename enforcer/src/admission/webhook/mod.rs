//! `enforcer webhook`: what the API server asks before it stores a pod.
//!
//! What is known to be wrong is refused. What is not known, because the API server cannot be reached or nothing was seen of it
//! yet, is no answer but an HTTP error, so that `failurePolicy` decides. Any number of replicas; none leads, because all they
//! write is one Secret and the trust in it, by compare and swap.

mod answer;
pub mod certificate;
mod files;
mod keeper;
mod metrics;
mod secret;
mod serve;
mod stores;
mod tls;
mod trust;
mod unconverted;

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use clap::Args;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::watch,
};

use self::{keeper::Keeper, metrics::Metrics, serve::Server, stores::Stores, tls::TlsListener};
use super::validate;
use crate::cluster::connection;

/// From "not ready" to no new connections: until every node has heard that this one goes.
const LEAVE: Duration = Duration::from_secs(5);
/// Requests that are being answered then.
const FINISH: Duration = Duration::from_secs(10);

const AFTER_HELP: &str = "\
Answers POST /mutate-pod and /validate-pod, and GET /healthz, /readyz, /metrics and /v1/unconverted, all over TLS. It expects a \
MutatingWebhookConfiguration and a ValidatingWebhookConfiguration of the name given, whose clientConfig names its Service, and keeps \
their caBundle. docs/webhook.md has them, and what failurePolicy means for pods.";

/// Arguments of `enforcer webhook`.
#[derive(Args, Clone, Debug)]
#[command(after_long_help = AFTER_HELP)]
pub struct WebhookArgs {
    /// Serve here, over TLS.
    #[arg(long, default_value = "0.0.0.0:9443", value_name = "ADDR")]
    listen: SocketAddr,
    /// How to reach the API server. Default: the pod's service account, else the user's own kubeconfig.
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Namespace of the Service and of the Secret.
    #[arg(long, env = "POD_NAMESPACE", default_value = "enforcer-system", value_name = "NAME")]
    namespace: String,
    /// The Service by which the API server reaches it; the certificate is made for its names.
    #[arg(long, default_value = "enforcer-webhook", value_name = "NAME")]
    service: String,
    /// The Secret that keeps the certificate for all replicas. Made if it is missing.
    #[arg(long, default_value = "enforcer-webhook-tls", value_name = "NAME", conflicts_with = "cert_dir")]
    secret: String,
    /// Name of the `MutatingWebhookConfiguration` and the `ValidatingWebhookConfiguration`.
    #[arg(long, default_value = "enforcer-webhook", value_name = "NAME", conflicts_with = "cert_dir")]
    configuration: String,
    /// Take tls.crt and tls.key from here, as cert-manager mounts them, and again when they change. No Secret and no caBundle
    /// is written then.
    #[arg(long, value_name = "DIR")]
    cert_dir: Option<PathBuf>,
    /// Leave cpu and memory of all pods as they are.
    #[arg(long)]
    skip_resources: bool,
    /// Let the label koordinator.sh/priority of a pod change.
    #[arg(long)]
    allow_priority_changes: bool,
    /// Watch no pods; `enforcer_webhook_unconverted_pods` is left out.
    #[arg(long)]
    no_pod_watch: bool,
}

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// Where it cannot listen, or there is no way to an API server.
pub fn run(args: &WebhookArgs) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(serve(args))
}

async fn serve(args: &WebhookArgs) -> Result<()> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let client = connection::client(args.kubeconfig.as_deref()).await?;
    let listener =
        TcpListener::bind(args.listen).await.with_context(|| format!("cannot listen on {}", args.listen))?;
    let metrics = Metrics::new();
    let stores = Stores::start(&client);
    let (to_tls, certificate) = watch::channel(None);
    match &args.cert_dir {
        Some(directory) => tokio::spawn(files::follow(directory.clone(), to_tls)),
        None => tokio::spawn(Keeper::new(&client, args).keep(to_tls)),
    };
    let (leave, leaving) = watch::channel(false);
    let server = Arc::new(Server {
        stores: stores.clone(),
        metrics: metrics.clone(),
        skip_resources: args.skip_resources,
        validation: validate::Options { priority_may_change: args.allow_priority_changes },
        certificate: certificate.clone(),
        leaving: leaving.clone(),
        unconverted: unconverted::Found::default(),
    });
    if !args.no_pod_watch {
        let found = server.unconverted.clone();
        let watch = unconverted::Watch { stores, found, metrics, skip_resources: args.skip_resources };
        tokio::spawn(unconverted::watch(client, watch));
    }
    let tls = TlsListener::start(listener, certificate)?;
    tracing::info!(address = %args.listen, "serves pods' admission");
    let graceful = axum::serve(tls, serve::routes(server)).with_graceful_shutdown(async move {
        let mut leaving = leaving;
        leaving.wait_for(|leaves| *leaves).await.ok();
        tokio::time::sleep(LEAVE).await;
    });
    let stop = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        leave.send_replace(true);
        tokio::time::sleep(LEAVE + FINISH).await;
    };
    tokio::select! {
        ended = graceful => ended.context("the server ended"),
        () = stop => Ok(()),
    }
}

#[cfg(test)]
mod tests;
