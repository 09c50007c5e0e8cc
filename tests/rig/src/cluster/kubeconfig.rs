//! A kubeconfig: where the API server is, whom to trust and who asks.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use anyhow::{Context as _, Result};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::{Value, json};

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub enum Credentials<'a> {
    /// A client certificate and its key, as PEM.
    Certificate { certificate: &'a str, key: &'a str },
    /// A service account's.
    Token(&'a str),
}

/// One with everything in it, so that it can be copied elsewhere.
#[derive(Clone, Copy, Debug)]
pub struct Kubeconfig<'a> {
    /// URL.
    pub server: &'a str,
    /// The certificate authority's certificate, as PEM.
    pub authority: &'a str,
    pub credentials: Credentials<'a>,
}

impl Kubeconfig<'_> {
    /// Writes it, for its owner's eyes only.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(&self.document())?;
        fs::write(path, text)
            .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(0o600)))
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// JSON is YAML.
    fn document(&self) -> Value {
        let data = |pem: &str| BASE64_STANDARD.encode(pem);
        let user = match self.credentials {
            Credentials::Certificate { certificate, key } => {
                json!({ "client-certificate-data": data(certificate), "client-key-data": data(key) })
            }
            Credentials::Token(token) => json!({ "token": token }),
        };
        json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{
                "name": "enforcer",
                "cluster": { "server": self.server, "certificate-authority-data": data(self.authority) },
            }],
            "users": [{ "name": "enforcer", "user": user }],
            "contexts": [{ "name": "enforcer", "context": { "cluster": "enforcer", "user": "enforcer" } }],
            "current-context": "enforcer",
        })
    }
}
