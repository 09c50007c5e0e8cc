//! Asking the API server by its own command line.

use std::{
    io::Write as _,
    path::PathBuf,
    process::{Command, Output, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{
    Cluster,
    kubeconfig::{Credentials, Kubeconfig},
};

/// How long the API server may take to answer.
const REQUEST_TIMEOUT: &str = "--request-timeout=10s";

impl Cluster {
    /// The `kubectl` command, as the cluster's administrator.
    pub fn kubectl(&self) -> Command {
        let mut command = Command::new(&self.kubectl);
        command.env("KUBECONFIG", &self.paths.kubeconfig);
        // What was learned of the API is the cluster's, not the user's.
        command.env("KUBECACHEDIR", self.paths.tree.join("kubectl-cache"));
        command
    }

    /// Runs `kubectl` and returns what it prints.
    ///
    /// # Errors
    /// Where it fails.
    pub fn ask(&self, arguments: &[&str]) -> Result<String> {
        let mut kubectl = self.kubectl();
        let output = kubectl.args(arguments).arg(REQUEST_TIMEOUT).stdin(Stdio::null()).output();
        answer(arguments, &output.context("cannot run kubectl")?)
    }

    /// The same for one that prints JSON.
    ///
    /// # Errors
    /// Where it fails, or prints something else.
    pub fn ask_json(&self, arguments: &[&str]) -> Result<Value> {
        let text = self.ask(&[arguments, &["--output=json"]].concat())?;
        serde_json::from_str(&text).with_context(|| format!("kubectl {}: no JSON", arguments.join(" ")))
    }

    /// Makes an object, or changes it to this.
    ///
    /// # Errors
    /// Where it is refused.
    pub fn apply(&self, object: &Value) -> Result<()> {
        self.feed(&["apply", "--filename=-"], &object.to_string())?;
        Ok(())
    }

    /// The same for a text with any number of objects.
    ///
    /// # Errors
    /// Where one of them is refused.
    pub fn apply_yaml(&self, objects: &str) -> Result<()> {
        self.feed(&["apply", "--filename=-"], objects)?;
        Ok(())
    }

    /// Has the server check a text with any number of objects as if they were applied. What it says, a line per object.
    ///
    /// # Errors
    /// Where one of them is refused.
    pub fn dry_run_yaml(&self, objects: &str) -> Result<String> {
        self.feed(&["apply", "--dry-run=server", "--filename=-"], objects)
    }

    /// Applies on the server's side, as this field manager.
    ///
    /// # Errors
    /// Where it is refused, or conflicts with another manager.
    pub fn apply_server_side(&self, object: &Value, manager: &str, more: &[&str]) -> Result<()> {
        let manager = format!("--field-manager={manager}");
        let arguments = [&["apply", "--filename=-", "--server-side", &manager][..], more].concat();
        self.feed(&arguments, &object.to_string())?;
        Ok(())
    }

    fn feed(&self, arguments: &[&str], text: &str) -> Result<String> {
        let mut kubectl = self.kubectl();
        kubectl.args(arguments).arg(REQUEST_TIMEOUT);
        let mut child = kubectl
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot run kubectl")?;
        // What kubectl does not want to read it will have something to say about.
        child.stdin.take().context("BUG: standard input is not piped")?.write_all(text.as_bytes()).ok();
        answer(arguments, &child.wait_with_output()?)
    }

    /// Writes a kubeconfig for a service account, with a token for eight hours. It goes with the cluster.
    ///
    /// # Errors
    /// Where there is no such account.
    pub fn kubeconfig_of(&self, namespace: &str, account: &str) -> Result<PathBuf> {
        let token = self.ask(&["create", "token", account, "--namespace", namespace, "--duration=8h"])?;
        let path = self.paths.tree.join("etc").join(format!("{namespace}.{account}.kubeconfig"));
        let authority = self.authority()?;
        let credentials = Credentials::Token(token.trim());
        Kubeconfig { server: &self.server(), authority: &authority, credentials }.write(&path)?;
        Ok(path)
    }
}

fn answer(arguments: &[&str], output: &Output) -> Result<String> {
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "kubectl {}: {}", arguments.join(" "), errors.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
