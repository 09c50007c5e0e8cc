//! The way to the API server.

use std::{
    future::Future,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result};
use kube::{
    Client,
    api::PostParams,
    config::{Config, KubeConfigOptions, Kubeconfig},
};

/// A request that takes longer has failed. Watches go on for as long as something comes.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// A connection that says nothing for so long is dead. Watches end by themselves, and are begun anew, before.
const SILENCE: Duration = Duration::from_secs(310);

/// Who the API server's `managedFields` say wrote something.
pub const MANAGER: &str = "enforcer";

/// A client by a kubeconfig, or by the pod's own service account.
///
/// # Errors
/// Where there is no way to an API server.
pub async fn client(kubeconfig: Option<&Path>) -> Result<Client> {
    let mut config = match kubeconfig {
        Some(path) => {
            let file = Kubeconfig::read_from(path)
                .with_context(|| format!("{} is no kubeconfig that can be read", path.display()))?;
            Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
                .await
                .with_context(|| format!("{} leads to no cluster", path.display()))?
        }
        None => Config::infer().await.context(
            "no way to an API server: name a kubeconfig with --kubeconfig, or run in a pod with a service account",
        )?,
    };
    // A refusal is an answer: 429 to an eviction is a budget's word. Whoever asked decides when to ask again.
    config.default_retry = false;
    config.connect_timeout = Some(PATIENCE);
    config.write_timeout = Some(PATIENCE);
    config.read_timeout = Some(SILENCE);
    config.reset_reader_on_write = true;
    Client::try_from(config).context("the API server's address or certificates cannot be used")
}

/// What a request gives, or that it took too long.
///
/// # Errors
/// What the API server says.
pub async fn within<T>(request: impl Future<Output = kube::Result<T>>) -> Result<T, Failure> {
    match tokio::time::timeout(PATIENCE, request).await {
        Ok(answer) => answer.map_err(Failure::Refused),
        Err(_) => Err(Failure::Late),
    }
}

/// Writes in enforcer's name.
pub fn parameters() -> PostParams {
    PostParams { field_manager: Some(MANAGER.to_owned()), ..PostParams::default() }
}

/// Whether a write that names the version it replaces was the first: somebody else was quicker where the API server says
/// 409.
///
/// # Errors
/// What else it says.
pub fn won<T>(answer: Result<T, Failure>) -> Result<bool, Failure> {
    match answer {
        Ok(_) => Ok(true),
        Err(failure) if failure.code() == Some(409) => Ok(false),
        Err(failure) => Err(failure),
    }
}

/// A request without the answer hoped for.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error("the API server did not answer within {PATIENCE:?}")]
    Late,
    #[error(transparent)]
    Refused(kube::Error),
}

impl Failure {
    /// In words, without the whole answer.
    pub fn message(&self) -> String {
        match self {
            Self::Refused(kube::Error::Api(status)) => status.message.clone(),
            other => other.to_string(),
        }
    }

    /// The HTTP status, if there was an answer.
    pub fn code(&self) -> Option<u16> {
        match self {
            Self::Refused(kube::Error::Api(status)) => Some(status.code),
            _ => None,
        }
    }
}

/// How the API server is reached, and which node this is.
#[derive(Clone, Debug)]
pub struct Place {
    pub node: String,
    /// `None`: the pod's own service account, or the user's default.
    pub kubeconfig: Option<PathBuf>,
}
