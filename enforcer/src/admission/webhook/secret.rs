//! The Secret that keeps the certificate of all replicas.
//!
//! Each replica that finds none, or one that ends soon, makes one and writes it with the version that it has read. The API server
//! takes the first and refuses the others, which read again and find it. That is all the agreement that is needed, so nobody is
//! elected; a leader would be one more thing to wait for while pods wait.

use std::{collections::BTreeMap, time::SystemTime};

use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::{Api, Client, api::ObjectMeta};

use super::certificate::{Error, Pair, RENEW_BEFORE};
use crate::cluster::connection::{Failure, parameters, within, won};

const CA: &str = "ca.crt";
const CERTIFICATE: &str = "tls.crt";
const KEY: &str = "tls.key";
const TYPE: &str = "kubernetes.io/tls";
/// Each time somebody else was quicker, which happens once per replica at worst.
const TRIES: usize = 10;

/// Why there is no certificate to be agreed on.
#[derive(Debug, thiserror::Error)]
pub enum Disagreement {
    #[error("the API server says of Secret {secret}: {source}")]
    Failure { secret: String, source: Failure },
    #[error(transparent)]
    Certificate(#[from] Error),
    #[error("Secret {0} was written by others {TRIES} times in a row")]
    Beaten(String),
}

/// The Secret, and the names that its certificate is for.
pub struct Shared {
    api: Api<Secret>,
    name: String,
    /// The first is the one that the API server asks for.
    hosts: Vec<String>,
}

impl Shared {
    pub fn new(client: &Client, namespace: &str, name: &str, service: &str) -> Self {
        let host = format!("{service}.{namespace}.svc");
        let hosts = vec![
            host.clone(),
            format!("{host}.cluster.local"),
            format!("{service}.{namespace}"),
            service.to_owned(),
        ];
        Self { api: Api::namespaced(client.clone(), namespace), name: name.to_owned(), hosts }
    }

    /// The certificate of all replicas, made or renewed if need be. `held`: the one in use, whose CA stays trusted even if
    /// somebody has deleted the Secret.
    ///
    /// # Errors
    /// [`Disagreement`].
    pub async fn agree(&self, held: Option<&Pair>, now: SystemTime) -> Result<Pair, Disagreement> {
        for _ in 0..TRIES {
            let found = within(self.api.get_opt(&self.name)).await.map_err(|err| self.failure(err))?;
            let stored = found.as_ref().and_then(stored);
            let why = match &stored {
                None => "there is none".to_owned(),
                Some(pair) => match pair.check(&self.hosts[0], now + RENEW_BEFORE) {
                    Ok(()) => return Ok(pair.clone()),
                    Err(err) => err.to_string(),
                },
            };
            let earlier = stored.as_ref().or(held).map(|pair| pair.ca.as_str());
            let made = Pair::make(&self.hosts, now, earlier)?;
            let is_first = match found {
                None => won(within(self.api.create(&parameters(), &self.secret(None, &made))).await),
                Some(found) => {
                    won(within(self.api.replace(&self.name, &parameters(), &self.secret(Some(found), &made)))
                        .await)
                }
            };
            if is_first.map_err(|err| self.failure(err))? {
                tracing::info!(secret = self.name, "made a certificate: {why}");
                return Ok(made);
            }
        }
        Err(Disagreement::Beaten(self.name.clone()))
    }

    /// With what else is in the one that was found, its version above all.
    fn secret(&self, found: Option<Secret>, pair: &Pair) -> Secret {
        let mut secret = found.unwrap_or_else(|| Secret {
            metadata: ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() },
            type_: Some(TYPE.to_owned()),
            ..Secret::default()
        });
        let data = secret.data.get_or_insert_with(BTreeMap::new);
        for (key, text) in [(CA, &pair.ca), (CERTIFICATE, &pair.certificate), (KEY, &pair.key)] {
            data.insert(key.to_owned(), ByteString(text.clone().into_bytes()));
        }
        secret
    }

    fn failure(&self, source: Failure) -> Disagreement {
        Disagreement::Failure { secret: self.name.clone(), source }
    }
}

/// `None`: something is missing or is no text.
fn stored(secret: &Secret) -> Option<Pair> {
    let text = |key: &str| String::from_utf8(secret.data.as_ref()?.get(key)?.0.clone()).ok();
    Some(Pair { ca: text(CA)?, certificate: text(CERTIFICATE)?, key: text(KEY)? })
}
