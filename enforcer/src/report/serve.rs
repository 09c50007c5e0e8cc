//! HTTP: `/metrics`, `/healthz`, `/readyz`, `/v1/status`, `/v1/decisions`, `/v1/batch`.
//!
//! Served by a thread of its own, so that a scrape never delays the loop.

use std::{
    net::{SocketAddr, TcpListener},
    sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError},
    time::{Duration, Instant},
};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};

use serde::Serialize;

use super::{
    ledger::Ledger,
    metrics::{self, Process},
    status::Status,
};
use crate::urgency;

/// A loop that has not been heard of for so long hangs.
const HANGS: Duration = Duration::from_secs(5);

/// The ledger, between the loop and the server.
#[derive(Clone, Debug)]
pub struct Shared(Arc<Mutex<Published>>);

#[derive(Debug)]
struct Published {
    ledger: Ledger,
    updated_at: Instant,
}

impl Shared {
    pub fn new(ledger: Ledger) -> Self {
        Self(Arc::new(Mutex::new(Published { ledger, updated_at: Instant::now() })))
    }

    /// Lets the loop write. A scrape holds the lock for milliseconds; the loop does not wait for it and tries again at
    /// its next tick. Whether it was done.
    pub fn try_update(&self, update: impl FnOnce(&mut Ledger)) -> bool {
        let mut published = match self.0.try_lock() {
            Ok(published) => published,
            // As below.
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return false,
        };
        update(&mut published.ledger);
        published.updated_at = Instant::now();
        true
    }

    fn lock(&self) -> MutexGuard<'_, Published> {
        // A panic while the lock was held left the figures of an earlier update at worst.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Listens and serves until the process ends. The address that was bound is returned, for port 0.
///
/// # Errors
/// Where the address cannot be bound, or no thread be started.
pub fn serve(address: SocketAddr, shared: Shared) -> std::io::Result<SocketAddr> {
    let listener = TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    let bound = listener.local_addr()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
    let server = async move {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let routes = Router::new()
            .route("/metrics", get(metrics))
            .route("/healthz", get(healthz))
            .route("/readyz", get(readyz))
            .route("/v1/status", get(status))
            .route("/v1/decisions", get(decisions))
            .route("/v1/batch", get(batch))
            .with_state(shared);
        axum::serve(listener, routes).await
    };
    std::thread::Builder::new().name("http".to_owned()).spawn(move || {
        // Only the loop is in a hurry.
        urgency::step_back();
        if let Err(err) = runtime.block_on(server) {
            tracing::error!(%err, "the HTTP server ended");
        }
    })?;
    Ok(bound)
}

async fn metrics(State(shared): State<Shared>) -> Response {
    let process = Process::read();
    let text = metrics::render(&shared.lock().ledger, process.as_ref());
    ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response()
}

/// Alive: the loop was heard of lately.
async fn healthz(State(shared): State<Shared>) -> Response {
    let silent = shared.lock().updated_at.elapsed();
    if silent > HANGS {
        let text = format!("the loop has been silent for {:.0} s\n", silent.as_secs_f64());
        return (StatusCode::SERVICE_UNAVAILABLE, text).into_response();
    }
    "ok\n".into_response()
}

/// Ready: the probes are attached and the first look was taken.
async fn readyz(State(shared): State<Shared>) -> Response {
    if shared.lock().ledger.ready {
        return "ready\n".into_response();
    }
    (StatusCode::SERVICE_UNAVAILABLE, "the first look at the node has not been taken yet\n").into_response()
}

async fn status(State(shared): State<Shared>) -> Response {
    let process = Process::read();
    json(&Status::of(&shared.lock().ledger, process.as_ref()))
}

async fn decisions(State(shared): State<Shared>) -> Response {
    let shared = shared.lock();
    json(&shared.ledger.history.decisions().collect::<Vec<_>>())
}

async fn batch(State(shared): State<Shared>) -> Response {
    let shared = shared.lock();
    let Some(cluster) = &shared.ledger.cluster else {
        return (StatusCode::NOT_FOUND, "this agent knows of no cluster: start it with --node NAME\n")
            .into_response();
    };
    json(&cluster.lent)
}

fn json(data: &impl Serialize) -> Response {
    let text = serde_json::to_string(data).expect("BUG: only plain data is served");
    ([(header::CONTENT_TYPE, "application/json")], text).into_response()
}
