//! The routes.

use std::{sync::Arc, time::Instant};

use axum::{
    Router,
    extract::{DefaultBodyLimit, State},
    http::{StatusCode, header},
    response::{IntoResponse as _, Response},
    routing::{get, post},
};
use bytes::Bytes;
use kube::core::admission::AdmissionResponse;
use tokio::sync::watch;

use super::{
    super::validate,
    answer::Asked,
    metrics::{self, Answer, Metrics, Operation},
    stores::Stores,
    tls::Certificate,
    unconverted::Found,
};

/// The API server takes pods of 3 MiB; a review may hold two.
const BODY_MAX: usize = 8 << 20;

/// All that requests share.
pub struct Server {
    pub stores: Stores,
    pub metrics: Metrics,
    pub skip_resources: bool,
    pub validation: validate::Options,
    pub certificate: Certificate,
    /// Whether it is about to end.
    pub leaving: watch::Receiver<bool>,
    pub unconverted: Found,
}

pub fn routes(server: Arc<Server>) -> Router {
    Router::new()
        .route("/mutate-pod", post(mutate_pod))
        .route("/validate-pod", post(validate_pod))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .route("/v1/unconverted", get(unconverted))
        .layer(DefaultBodyLimit::max(BODY_MAX))
        .with_state(server)
}

async fn mutate_pod(State(server): State<Arc<Server>>, body: Bytes) -> Response {
    let start = Instant::now();
    let (response, answer) = match try_mutate(&server, &body).await {
        Ok((response, answer)) => (review(response), answer),
        Err(response) => (response, Answer::Failed),
    };
    server.metrics.admission(Operation::Mutate, answer, start.elapsed().as_secs_f64());
    response
}

async fn try_mutate(server: &Server, body: &Bytes) -> Result<(AdmissionResponse, Answer), Response> {
    let asked = Asked::read(body).map_err(|err| failed(StatusCode::BAD_REQUEST, &err))?;
    if !asked.needs_knowledge() {
        return Ok((asked.let_pass(), Answer::Ignored));
    }
    if !server.stores.is_ready() {
        return Err(failed(StatusCode::SERVICE_UNAVAILABLE, &"not all profiles are known yet"));
    }
    let snapshot = server
        .stores
        .ask(asked.namespace())
        .await
        .map_err(|err| failed(StatusCode::INTERNAL_SERVER_ERROR, &err))?;
    Ok(asked.mutate(&snapshot.known(server.skip_resources), &server.metrics))
}

async fn validate_pod(State(server): State<Arc<Server>>, body: Bytes) -> Response {
    let start = Instant::now();
    let (response, answer) = match Asked::read(&body) {
        Ok(asked) => {
            let (response, answer) = asked.validate(server.validation);
            (review(response), answer)
        }
        Err(err) => (failed(StatusCode::BAD_REQUEST, &err), Answer::Failed),
    };
    server.metrics.admission(Operation::Validate, answer, start.elapsed().as_secs_f64());
    response
}

/// No answer at all: what becomes of the pod is up to `failurePolicy`.
fn failed(status: StatusCode, err: &dyn std::fmt::Display) -> Response {
    tracing::warn!("a request has no answer: {err}");
    (status, format!("{err}\n")).into_response()
}

fn review(response: AdmissionResponse) -> Response {
    let text = serde_json::to_string(&response.into_review()).expect("BUG: only plain data is served");
    ([(header::CONTENT_TYPE, "application/json")], text).into_response()
}

/// Ready: everything was seen once, and there is a certificate that the API server was told to trust.
async fn readyz(State(server): State<Arc<Server>>) -> Response {
    let why = if *server.leaving.borrow() {
        "about to end\n"
    } else if !server.stores.is_ready() {
        "profiles, namespaces or priority classes are not known yet\n"
    } else if server.certificate.borrow().is_none() {
        "no certificate yet\n"
    } else {
        return "ready\n".into_response();
    };
    (StatusCode::SERVICE_UNAVAILABLE, why).into_response()
}

async fn metrics(State(server): State<Arc<Server>>) -> Response {
    ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], server.metrics.render()).into_response()
}

async fn unconverted(State(server): State<Arc<Server>>) -> Response {
    let text = serde_json::to_string(&server.unconverted.names()).expect("BUG: only plain data is served");
    ([(header::CONTENT_TYPE, "application/json")], text).into_response()
}
