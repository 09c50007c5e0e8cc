//! The server as a client sees it, without an API server behind it.

use std::time::SystemTime;

use kube::{Client, Config};
use rustls::{ClientConfig, RootCertStore, pki_types::ServerName};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;

use super::{
    certificate::{Pair, server_config},
    *,
};

const HOST: &str = "enforcer-webhook.enforcer-system.svc";

fn pair() -> Pair {
    Pair::make(&[HOST.to_owned()], SystemTime::now(), None).unwrap()
}

/// The answer to one request by somebody who trusts this CA.
async fn ask(address: SocketAddr, trusted: &Pair, request: &str) -> std::io::Result<String> {
    use rustls::pki_types::{CertificateDer, pem::PemObject as _};
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(trusted.ca.as_bytes()).unwrap()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = TcpStream::connect(address).await?;
    let name = ServerName::try_from(HOST).unwrap();
    let mut stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.ok();
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n")
}

fn post(path: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "POST {path} HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
    )
}

fn review(operation: &str, pod: &serde_json::Value) -> String {
    json!({
        "kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1",
        "request": {
            "uid": "u", "kind": { "group": "", "version": "v1", "kind": "Pod" },
            "resource": { "group": "", "version": "v1", "resource": "pods" }, "namespace": "jobs",
            "operation": operation, "userInfo": {}, "object": pod,
        },
    })
    .to_string()
}

#[tokio::test]
async fn it_answers_over_tls_with_whatever_certificate_is_there_now() {
    // Nobody listens there: nothing is ever known.
    let client = Client::try_from(Config::new("http://127.0.0.1:1".parse().unwrap())).unwrap();
    let (first, second) = (pair(), pair());
    let config = |pair: &Pair| Some(server_config(&pair.certificate, &pair.key).unwrap());
    let (to_tls, certificate) = watch::channel(config(&first));
    let (leave, leaving) = watch::channel(false);
    let server = Arc::new(Server {
        stores: Stores::start(&client),
        metrics: Metrics::new(),
        skip_resources: false,
        validation: validate::Options::default(),
        certificate: certificate.clone(),
        leaving,
        unconverted: unconverted::Found::default(),
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let tls = TlsListener::start(listener, certificate).unwrap();
    tokio::spawn(async { axum::serve(tls, serve::routes(server)).await });

    // Who says nothing keeps nobody waiting.
    let _silent = TcpStream::connect(address).await.unwrap();
    assert!(ask(address, &first, &get("/healthz")).await.unwrap().starts_with("HTTP/1.1 200"));
    assert!(ask(address, &second, &get("/healthz")).await.is_err(), "trusts somebody else");
    to_tls.send_replace(config(&second));
    assert!(ask(address, &second, &get("/healthz")).await.unwrap().starts_with("HTTP/1.1 200"), "no restart");

    let not_ready = ask(address, &second, &get("/readyz")).await.unwrap();
    assert!(not_ready.starts_with("HTTP/1.1 503") && not_ready.contains("not known yet"), "{not_ready}");
    let pod = json!({ "metadata": { "labels": { "koordinator.sh/qosClass": "BE" } }, "spec": { "containers": [] } });
    let unknown = ask(address, &second, &post("/mutate-pod", &review("CREATE", &pod))).await.unwrap();
    assert!(unknown.starts_with("HTTP/1.1 503"), "failurePolicy is to decide: {unknown}");
    let update = ask(address, &second, &post("/mutate-pod", &review("UPDATE", &pod))).await.unwrap();
    assert!(update.starts_with("HTTP/1.1 200") && update.contains(r#""allowed":true"#), "{update}");
    let refused = ask(address, &second, &post("/validate-pod", &review("CREATE", &pod))).await.unwrap();
    assert!(refused.starts_with("HTTP/1.1 200") && refused.contains(r#""allowed":false"#), "{refused}");
    let garbage = ask(address, &second, &post("/mutate-pod", "[]")).await.unwrap();
    assert!(garbage.starts_with("HTTP/1.1 400"), "{garbage}");

    let metrics = ask(address, &second, &get("/metrics")).await.unwrap();
    for (operation, answer, count) in
        [("mutate", "failed", 2), ("mutate", "ignored", 1), ("validate", "refused", 1)]
    {
        let line = format!(
            "enforcer_webhook_admissions_total{{answer=\"{answer}\",operation=\"{operation}\"}} {count}"
        );
        assert!(metrics.contains(&line), "{line}\n{metrics}");
    }
    leave.send_replace(true);
    assert!(ask(address, &second, &get("/readyz")).await.unwrap().contains("about to end"));
}
