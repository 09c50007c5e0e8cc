//! An API server that misbehaves: the real one, behind something that delays, refuses and cuts.

use std::{
    convert::Infallible,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use anyhow::{Context as _, Result};
use enforcer_rig::cluster::{
    Cluster,
    kubeconfig::{Credentials, Kubeconfig},
};
use http_body_util::{Either, Full};
use hyper::{
    Method, Request, Response, StatusCode, Uri,
    body::{Body, Bytes, Frame, Incoming},
    header::{CONTENT_TYPE, HOST, RETRY_AFTER},
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
};
use serde_json::json;
use tokio::{
    net::{TcpListener, TcpStream},
    runtime::Runtime,
    sync::watch,
};
use tokio_rustls::TlsConnector;

/// How long a watch lives that is cut.
const CUT: Duration = Duration::from_secs(1);

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    None,
    /// Connections are closed at once.
    Down,
    /// Every call takes so long.
    Slow(Duration),
    /// Every call is answered with this code.
    Refuses(u16),
    /// Watches end after a second.
    CutsWatches,
}

/// It serves plain HTTP on the loopback interface until it is dropped.
pub struct Proxy {
    address: SocketAddr,
    state: Arc<State>,
    /// Where it runs.
    _runtime: Runtime,
}

struct State {
    fault: watch::Sender<Fault>,
    reads: AtomicU64,
    writes: AtomicU64,
    server: SocketAddr,
    tls: TlsConnector,
    name: ServerName<'static>,
}

type Answer = Response<Either<Full<Bytes>, Cut>>;

impl Proxy {
    /// Starts one before a cluster's API server.
    pub fn start(cluster: &Cluster) -> Result<Self> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(cluster.authority()?.as_bytes()) {
            roots.add(certificate?)?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let state = Arc::new(State {
            fault: watch::Sender::new(Fault::None),
            reads: AtomicU64::new(0),
            writes: AtomicU64::new(0),
            server: SocketAddr::from((cluster.address, 443)),
            tls: TlsConnector::from(Arc::new(config)),
            name: ServerName::from(std::net::IpAddr::from(cluster.address)),
        });
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0"))?;
        let address = listener.local_addr()?;
        runtime.spawn(serve(listener, Arc::clone(&state)));
        Ok(Self { address, state, _runtime: runtime })
    }

    /// Writes a kubeconfig for the agent's service account that leads here.
    pub fn kubeconfig(&self, cluster: &Cluster, path: &std::path::Path) -> Result<()> {
        let token =
            cluster.ask(&["create", "token", "enforcer-agent", "-n", "enforcer-system", "--duration=8h"])?;
        let (server, authority) = (format!("http://{}", self.address), cluster.authority()?);
        Kubeconfig { server: &server, authority: &authority, credentials: Credentials::Token(token.trim()) }
            .write(path)
    }

    /// What goes wrong from now on. When something begins to, what is being answered ends, watches above all.
    pub fn set(&self, fault: Fault) {
        self.state.fault.send_replace(fault);
    }

    /// Requests since the last call: reads, and writes.
    pub fn take_counts(&self) -> (u64, u64) {
        (self.state.reads.swap(0, Relaxed), self.state.writes.swap(0, Relaxed))
    }
}

async fn serve(listener: TcpListener, state: Arc<State>) {
    while let Ok((connection, _)) = listener.accept().await {
        if state.fault() == Fault::Down {
            continue;
        }
        let state = Arc::clone(&state);
        tokio::spawn(async move {
            let answer = |request| {
                let state = Arc::clone(&state);
                async move { Ok::<_, Infallible>(state.answer(request).await) }
            };
            // A client that hangs up is nothing to tell of.
            let connection = TokioIo::new(connection);
            hyper::server::conn::http1::Builder::new()
                .serve_connection(connection, service_fn(answer))
                .await
                .ok();
        });
    }
}

impl State {
    fn fault(&self) -> Fault {
        *self.fault.borrow()
    }

    async fn answer(&self, request: Request<Incoming>) -> Answer {
        let count = if request.method() == Method::GET { &self.reads } else { &self.writes };
        count.fetch_add(1, Relaxed);
        let is_watch = request.uri().query().is_some_and(|query| query.contains("watch=true"));
        match self.fault() {
            Fault::Slow(delay) => tokio::time::sleep(delay).await,
            Fault::Refuses(code) => return refusal(code),
            // On a connection that was there before.
            Fault::Down => return refusal(503),
            Fault::None | Fault::CutsWatches => {}
        }
        let is_cut = is_watch && self.fault() == Fault::CutsWatches;
        let end = end(self.fault.subscribe(), is_cut.then_some(CUT));
        match self.forward(request).await {
            Ok(answer) => answer.map(|body| Either::Right(Cut { body, end: Box::pin(end) })),
            Err(_) => refusal(502),
        }
    }

    async fn forward(&self, mut request: Request<Incoming>) -> Result<Response<Incoming>> {
        let tcp = TcpStream::connect(self.server).await?;
        let tls = self.tls.connect(self.name.clone(), tcp).await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(tls)).await?;
        tokio::spawn(connection);
        let path = request.uri().path_and_query().context("a request without a path")?;
        *request.uri_mut() = Uri::try_from(path.as_str())?;
        request.headers_mut().insert(HOST, self.server.to_string().parse()?);
        Ok(sender.send_request(request).await?)
    }
}

/// As the API server refuses.
fn refusal(code: u16) -> Answer {
    let body = json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure", "message": "the proxy says no", "code": code,
        "reason": match code { 409 => "Conflict", 410 => "Expired", 429 => "TooManyRequests", _ => "InternalError" },
    });
    let mut answer = Response::new(Either::Left(Full::from(body.to_string())));
    *answer.status_mut() = StatusCode::from_u16(code).expect("BUG: no status code");
    answer.headers_mut().insert(CONTENT_TYPE, "application/json".parse().expect("BUG: no header value"));
    if code == 429 {
        answer.headers_mut().insert(RETRY_AFTER, 1.into());
    }
    answer
}

/// Returns after this time, if there is one, or when something begins to go wrong.
async fn end(mut fault: watch::Receiver<Fault>, time: Option<Duration>) {
    let begins = async { while fault.changed().await.is_ok() && *fault.borrow() == Fault::None {} };
    tokio::time::timeout(time.unwrap_or(Duration::MAX), begins).await.ok();
}

/// A body that may end before its time.
struct Cut {
    body: Incoming,
    end: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl Body for Cut {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        if self.end.as_mut().poll(context).is_ready() {
            return std::task::Poll::Ready(None);
        }
        Pin::new(&mut self.body).poll_frame(context)
    }
}
