//! Certificates: made, looked over, and put to use. No clock: the time comes in.
//!
//! Each serving certificate has a CA of its own, whose key is thrown away once it has signed. So no Secret holds a key that could
//! sign for others, and there is no CA whose end comes at another time.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::{
    RootCertStore, ServerConfig,
    client::{WebPkiServerVerifier, danger::ServerCertVerifier as _},
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject as _},
};

const DAY: Duration = Duration::from_hours(24);
pub const LIFE: Duration = Duration::from_hours(24 * 365);
/// Replaced when less is left: months to notice that nothing could be written.
pub const RENEW_BEFORE: Duration = Duration::from_hours(24 * 120);
/// Clocks of API servers may be behind ours.
const SKEW: Duration = DAY;

/// A certificate that cannot be made or used, and why.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("no certificate can be made: {0}")]
    Unmade(#[from] rcgen::Error),
    #[error("{what} is no PEM: {source}")]
    NoPem { what: &'static str, source: rustls::pki_types::pem::Error },
    #[error("holds no certificate")]
    Empty,
    #[error("cannot be used: {0}")]
    Unusable(#[from] rustls::Error),
    #[error("cannot be verified: {0}")]
    NoVerifier(#[from] rustls::client::VerifierBuilderError),
    #[error("{0:?} is no host name")]
    NoName(String),
}

/// What the API server is to trust, and what proves it; all in PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    /// The CA, and the one before it, so that replicas may change over one after the other.
    pub ca: String,
    pub certificate: String,
    pub key: String,
}

impl Pair {
    /// A new one for these host names, of which the first is its subject. Of an earlier one the CA stays trusted.
    ///
    /// # Errors
    /// Where a name is none.
    pub fn make(names: &[String], now: SystemTime, earlier_ca: Option<&str>) -> Result<Self, Error> {
        let subject = names.first().cloned().unwrap_or_default();
        let mut ca = CertificateParams::default();
        ca.distinguished_name.push(DnType::CommonName, format!("CA of {subject}"));
        ca.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let mut leaf = CertificateParams::new(names)?;
        leaf.distinguished_name.push(DnType::CommonName, subject);
        leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        leaf.use_authority_key_identifier_extension = true;
        for params in [&mut ca, &mut leaf] {
            params.not_before = (now - SKEW).into();
            params.not_after = (now + LIFE).into();
        }
        let (ca_key, key) = (KeyPair::generate()?, KeyPair::generate()?);
        let mut trusted = ca.self_signed(&ca_key)?.pem();
        let certificate = leaf.signed_by(&key, &Issuer::new(ca, ca_key))?.pem();
        if let Some(earlier) = earlier_ca.and_then(first) {
            trusted.push_str(&earlier);
        }
        Ok(Self { ca: trusted, certificate, key: key.serialize_pem() })
    }

    /// Whether the API server would accept it under this name at that time, and the key belongs to it.
    ///
    /// # Errors
    /// Why not.
    pub fn check(&self, name: &str, at: SystemTime) -> Result<(), Error> {
        let mut roots = RootCertStore::empty();
        for ca in certificates(&self.ca, "ca.crt")? {
            roots.add(ca)?;
        }
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider()).build()?;
        let chain = certificates(&self.certificate, "tls.crt")?;
        let (leaf, others) = chain.split_first().ok_or(Error::Empty)?;
        let name = ServerName::try_from(name).map_err(|_| Error::NoName(name.to_owned()))?;
        let at = UnixTime::since_unix_epoch(at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default());
        verifier.verify_server_cert(leaf, others, &name, &[], at)?;
        server_config(&self.certificate, &self.key).map(drop)
    }
}

/// What TLS is to be served with.
///
/// # Errors
/// Where the two are no PEM or do not belong together.
pub fn server_config(certificate: &str, key: &str) -> Result<Arc<ServerConfig>, Error> {
    let chain = certificates(certificate, "tls.crt")?;
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes())
        .map_err(|source| Error::NoPem { what: "tls.key", source })?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn certificates(pem: &str, what: &'static str) -> Result<Vec<CertificateDer<'static>>, Error> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    let found = found.map_err(|source| Error::NoPem { what, source })?;
    if found.is_empty() { Err(Error::Empty) } else { Ok(found) }
}

/// The first certificate of a bundle, which is its newest.
fn first(pem: &str) -> Option<String> {
    const END: &str = "-----END CERTIFICATE-----";
    let begin = pem.find("-----BEGIN CERTIFICATE-----")?;
    let end = begin + pem[begin..].find(END)? + END.len();
    Some(format!("{}\n", &pem[begin..end]))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: &str = "enforcer-webhook.enforcer-system.svc";

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_hours(500_000)
    }

    fn pair(earlier: Option<&str>, at: SystemTime) -> Pair {
        Pair::make(&[NAME.to_owned(), "localhost".to_owned()], at, earlier).unwrap()
    }

    #[test]
    fn a_certificate_is_good_for_its_names_and_its_time() {
        let pair = pair(None, now());
        for (name, at, is_good) in [
            (NAME, now(), true),
            ("localhost", now(), true),
            ("other.enforcer-system.svc", now(), false),
            (NAME, now() - SKEW / 2, true),
            (NAME, now() - 2 * SKEW, false),
            (NAME, now() + LIFE - DAY, true),
            (NAME, now() + LIFE + DAY, false),
            ("not a name", now(), false),
        ] {
            assert_eq!(pair.check(name, at).is_ok(), is_good, "{name}");
        }
    }

    #[test]
    fn the_earlier_ca_stays_trusted_and_the_one_before_it_does_not() {
        let first = pair(None, now());
        let second = pair(Some(&first.ca), now());
        let third = pair(Some(&second.ca), now());
        let trusts = |trusted: &Pair, served: &Pair| {
            Pair { ca: trusted.ca.clone(), ..served.clone() }.check(NAME, now()).is_ok()
        };
        assert!(trusts(&second, &first) && trusts(&second, &second) && trusts(&third, &second));
        assert!(!trusts(&third, &first) && !trusts(&first, &second));
        assert_eq!(third.ca.matches("BEGIN").count(), 2);
    }

    #[test]
    fn what_does_not_belong_together_or_is_no_pem_is_told() {
        let (one, other) = (pair(None, now()), pair(None, now()));
        assert!(Pair { key: other.key, ..one.clone() }.check(NAME, now()).is_err());
        for bad in ["", "nonsense", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
            assert!(Pair { certificate: bad.to_owned(), ..one.clone() }.check(NAME, now()).is_err());
            assert!(Pair { ca: bad.to_owned(), ..one.clone() }.check(NAME, now()).is_err());
            assert!(Pair { key: bad.to_owned(), ..one.clone() }.check(NAME, now()).is_err());
        }
    }
}
