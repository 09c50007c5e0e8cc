//! Certificates and kubeconfigs: who is who in the cluster.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use enforcer_rig::cluster::kubeconfig::{Credentials, Kubeconfig};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose::{ClientAuth, ServerAuth},
    IsCa, KeyPair, KeyUsagePurpose,
};

/// Who a certificate is for.
#[derive(Clone, Copy, Debug)]
pub struct Identity<'a> {
    /// Its files' name.
    pub name: &'a str,
    /// Whom RBAC knows.
    pub user: &'a str,
    /// Whom RBAC knows it to belong to.
    pub group: Option<&'a str>,
    /// Names and addresses under which it serves, if it serves.
    pub serves: &'a [&'a str],
}

/// A certificate and its key, in PEM files.
#[derive(Debug)]
pub struct Certificate {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// The cluster's certificate authority, whose files are in a directory that only root can look into.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    directory: PathBuf,
}

impl Authority {
    pub fn new(directory: &Path) -> Result<Self> {
        fs::set_permissions(directory, fs::Permissions::from_mode(0o700))?;
        let mut parameters = CertificateParams::default();
        parameters.distinguished_name = name("enforcer-cluster", None);
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyCertSign];
        let issuer = CertifiedIssuer::self_signed(parameters, KeyPair::generate()?)?;
        let authority = Self { issuer, directory: directory.to_owned() };
        let Certificate { certificate, key } = authority.files();
        write(&certificate, &authority.issuer.pem())?;
        write(&key, &authority.issuer.key().serialize_pem())?;
        Ok(authority)
    }

    /// Its own certificate and key.
    pub fn files(&self) -> Certificate {
        files(&self.directory, "ca")
    }

    /// Makes a key and a certificate for it, valid for much longer than any cluster.
    pub fn issue(&self, identity: &Identity) -> Result<Certificate> {
        let names: Vec<String> = identity.serves.iter().map(|&name| name.to_owned()).collect();
        let mut parameters = CertificateParams::new(names)?;
        parameters.distinguished_name = name(identity.user, identity.group);
        parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        parameters.extended_key_usages = vec![ClientAuth];
        if !identity.serves.is_empty() {
            parameters.extended_key_usages.push(ServerAuth);
        }
        let key = KeyPair::generate()?;
        let certificate = parameters.signed_by(&key, &self.issuer)?;
        let files = files(&self.directory, identity.name);
        write(&files.certificate, &certificate.pem())?;
        write(&files.key, &key.serialize_pem())?;
        Ok(files)
    }

    /// Makes a certificate for a client and writes a kubeconfig with it.
    pub fn kubeconfig(&self, client: &Identity, server: &str, path: &Path) -> Result<()> {
        self.kubeconfig_with(&self.issue(client)?, server, path)
    }

    /// Writes a kubeconfig for somebody who has a certificate.
    pub fn kubeconfig_with(&self, client: &Certificate, server: &str, path: &Path) -> Result<()> {
        let credentials =
            Credentials::Certificate { certificate: &read(&client.certificate)?, key: &read(&client.key)? };
        Kubeconfig { server, authority: &self.issuer.pem(), credentials }.write(path)
    }

    /// A key pair that service accounts' tokens are signed with: the private and the public key.
    pub fn token_keys(&self) -> Result<(PathBuf, PathBuf)> {
        let key = KeyPair::generate()?;
        let (private, public) = (self.directory.join("tokens.key"), self.directory.join("tokens.pub"));
        write(&private, &key.serialize_pem())?;
        write(&public, &key.public_key_pem())?;
        Ok((private, public))
    }
}

fn name(user: &str, group: Option<&str>) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, user);
    if let Some(group) = group {
        name.push(DnType::OrganizationName, group);
    }
    name
}

fn files(directory: &Path, name: &str) -> Certificate {
    Certificate {
        certificate: directory.join(format!("{name}.crt")),
        key: directory.join(format!("{name}.key")),
    }
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}
