//! TLS below HTTP, with a certificate that may change between two connections.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use rustls::ServerConfig;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc, watch},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

/// Who has not shaken hands by then is cut off.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// At once; whoever comes then waits.
const HANDSHAKES_MAX: usize = 256;
/// When no file descriptors are left, one comes free soon.
const PAUSE: Duration = Duration::from_millis(100);

/// The certificate to use. `None`: there is none yet, and nobody is let in.
pub type Certificate = watch::Receiver<Option<Arc<ServerConfig>>>;

/// Connections that have shaken hands. Slow ones keep nobody else waiting.
pub struct TlsListener {
    address: SocketAddr,
    ready: mpsc::Receiver<(TlsStream<TcpStream>, SocketAddr)>,
}

impl TlsListener {
    /// # Errors
    /// Where the listener has no address.
    pub fn start(listener: TcpListener, certificate: Certificate) -> io::Result<Self> {
        let address = listener.local_addr()?;
        let (sender, ready) = mpsc::channel(HANDSHAKES_MAX);
        tokio::spawn(accept(listener, certificate, sender));
        Ok(Self { address, ready })
    }
}

impl axum::serve::Listener for TlsListener {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        match self.ready.recv().await {
            Some(connection) => connection,
            // The task that accepts is gone, and so is the runtime.
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        Ok(self.address)
    }
}

async fn accept(
    listener: TcpListener,
    certificate: Certificate,
    ready: mpsc::Sender<(TlsStream<TcpStream>, SocketAddr)>,
) {
    let places = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(err) => {
                tracing::debug!(%err, "no connection");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let Some(config) = certificate.borrow().clone() else { continue };
        let ready = ready.clone();
        tokio::spawn(async move {
            let handshake = TlsAcceptor::from(config).accept(stream);
            match tokio::time::timeout(HANDSHAKE, handshake).await {
                Ok(Ok(stream)) => drop(ready.send((stream, peer)).await),
                Ok(Err(err)) => tracing::debug!(%peer, %err, "no TLS"),
                Err(_) => tracing::debug!(%peer, "no TLS in time"),
            }
            drop(place);
        });
    }
}
