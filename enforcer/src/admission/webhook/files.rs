//! A certificate that somebody else looks after, in files.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result};
use rustls::ServerConfig;
use tokio::sync::watch;

use super::certificate::server_config;

/// Kubelet replaces both files at once, by a link; what is read in between does not belong together and is tried again.
const LOOK: Duration = Duration::from_secs(5);

type Texts = (String, String);

/// Takes `tls.crt` and `tls.key` from a directory, now and whenever they change. What cannot be used changes nothing.
pub async fn follow(directory: PathBuf, to: watch::Sender<Option<Arc<ServerConfig>>>) {
    let (mut held, mut failed): (Option<Texts>, Option<String>) = (None, None);
    while !to.is_closed() {
        match look(&directory, held.as_ref()) {
            Ok(None) => failed = None,
            Ok(Some((texts, config))) => {
                tracing::info!(directory = %directory.display(), "serves with the certificate of these files");
                to.send_replace(Some(config));
                (held, failed) = (Some(texts), None);
            }
            Err(err) => {
                let text = format!("{err:#}");
                if failed.as_ref() != Some(&text) {
                    tracing::warn!("{text}");
                }
                failed = Some(text);
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// `None`: they are the same as before.
fn look(directory: &Path, held: Option<&Texts>) -> Result<Option<(Texts, Arc<ServerConfig>)>> {
    let read = |name: &str| {
        let path = directory.join(name);
        std::fs::read_to_string(&path).with_context(|| path.display().to_string())
    };
    let texts = (read("tls.crt")?, read("tls.key")?);
    if held == Some(&texts) {
        return Ok(None);
    }
    let config = server_config(&texts.0, &texts.1).with_context(|| directory.display().to_string())?;
    Ok(Some((texts, config)))
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::{super::certificate::Pair, *};

    #[test]
    fn files_are_taken_again_when_they_change_and_belong_together() {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(directory.path().join(name), text).unwrap();
        assert!(look(directory.path(), None).is_err(), "nothing there yet");
        let make = || Pair::make(&["a".to_owned()], SystemTime::UNIX_EPOCH, None).unwrap();
        let (first, second) = (make(), make());
        write("tls.crt", &first.certificate);
        write("tls.key", &first.key);
        let (held, _) = look(directory.path(), None).unwrap().unwrap();
        assert!(look(directory.path(), Some(&held)).unwrap().is_none());
        write("tls.crt", &second.certificate);
        assert!(look(directory.path(), Some(&held)).is_err(), "half of it");
        write("tls.key", &second.key);
        assert!(look(directory.path(), Some(&held)).unwrap().is_some());
    }
}
