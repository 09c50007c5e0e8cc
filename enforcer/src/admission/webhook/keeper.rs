//! Keeps a certificate in use that the API server trusts: trust first, serve later.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use kube::Client;
use rustls::ServerConfig;
use tokio::sync::watch;

use super::{
    WebhookArgs,
    certificate::{Pair, server_config},
    secret::Shared,
    trust::Trust,
};

/// How often the Secret and the bundles are looked at.
const LOOK: Duration = Duration::from_mins(1);
/// After something went wrong.
const AGAIN: Duration = Duration::from_secs(5);
/// Until every API server has heard of a new CA. Until then the certificate in use, which they trust, is served on.
const SETTLE: Duration = Duration::from_secs(10);

pub struct Keeper {
    shared: Shared,
    trust: Trust,
    configuration: String,
    held: Option<Pair>,
}

impl Keeper {
    pub fn new(client: &Client, args: &WebhookArgs) -> Self {
        Self {
            shared: Shared::new(client, &args.namespace, &args.secret, &args.service),
            trust: Trust::new(client, &args.configuration, &args.service, &args.namespace),
            configuration: args.configuration.clone(),
            held: None,
        }
    }

    /// Until nobody listens any more. What an administrator changes in the Secret or in the bundles is seen within a minute.
    pub async fn keep(mut self, to: watch::Sender<Option<Arc<ServerConfig>>>) {
        let mut complained = false;
        while !to.is_closed() {
            let wait = match self.look(&to).await {
                Ok(configurations) => {
                    if configurations == 0 && !complained {
                        tracing::warn!(
                            "there is no webhook configuration {}: the API server asks nothing until there is one",
                            self.configuration
                        );
                    }
                    complained = configurations == 0;
                    if configurations == 0 { AGAIN } else { LOOK }
                }
                Err(err) => {
                    tracing::warn!("the certificate cannot be looked after, trying again: {err:#}");
                    AGAIN
                }
            };
            tokio::time::sleep(wait).await;
        }
    }

    async fn look(&mut self, to: &watch::Sender<Option<Arc<ServerConfig>>>) -> anyhow::Result<usize> {
        let pair = self.shared.agree(self.held.as_ref(), SystemTime::now()).await?;
        let configurations = self.trust.put(&pair.ca).await;
        if self.held.as_ref() == Some(&pair) {
            return Ok(configurations?);
        }
        if self.held.is_some() {
            // An API server that could not be told would refuse the new one.
            configurations.as_ref().map_err(|err| anyhow::anyhow!("caBundle: {err}"))?;
            tokio::time::sleep(SETTLE).await;
        }
        to.send_replace(Some(server_config(&pair.certificate, &pair.key)?));
        tracing::info!(
            "serves with {} certificate",
            if self.held.is_some() { "a new" } else { "the Secret's" }
        );
        self.held = Some(pair);
        Ok(configurations?)
    }
}
