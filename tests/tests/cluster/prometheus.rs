//! Debian's Prometheus scrapes a live agent and a live webhook, and is asked what dashboard and alerts ask.

use std::{
    collections::BTreeSet,
    fs,
    net::SocketAddr,
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use enforcer_rig::{
    address,
    cluster::Cluster,
    process::{Process, exec_in, installed},
};
use enforcer_tests::{
    agent::Files,
    queries::{self, metrics_in},
};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::{
    pod::wait_for,
    squeezing::Hurt,
    webhook::{self, Webhook},
};

/// A range that holds some scrapes.
const RANGE: &str = "30s";
/// Of these there is none until somebody lacks memory for another one, or is limited in it.
const RARE: [&str; 2] = ["enforcer_memory_blame_seconds_total", "enforcer_memory_limit_bytes"];
/// For what happens now and then to be counted, and scraped.
const PATIENCE: Duration = Duration::from_mins(2);

/// Each query is understood, and none is empty for want of a metric.
pub fn queries() -> Result<()> {
    let cluster = Cluster::running()?;
    let webhook = Webhook::start(&cluster)?;
    webhook::apply_profile(&cluster)?;
    cluster.apply(&webhook::spark_pod("asked-about", "driver", &webhook::operators_labels()))?;
    let hurt = Hurt::begin(&cluster, "prometheus")?;
    let webhooks =
        webhook.addresses()?.into_iter().map(|address| format!("{address}:9443")).collect::<Vec<_>>();
    let prometheus = Prometheus::start(hurt.citizen.agent.address, &webhooks)?;
    let queries = queries::all()?;
    let until = Instant::now() + PATIENCE;
    loop {
        let known = prometheus.names()?;
        let missing: Vec<String> = queries
            .iter()
            .flat_map(|query| metrics_in(&query.text).into_iter().map(move |name| (query, name)))
            .filter(|(_, name)| !known.contains(*name) && !RARE.contains(name))
            .map(|(query, name)| format!("{name}, for which {} asks: {}", query.file, query.text))
            .collect();
        if missing.is_empty() {
            break;
        }
        ensure!(Instant::now() < until, "metrics that a live agent does not have:\n{}", missing.join("\n"));
        std::thread::sleep(Duration::from_secs(2));
    }
    let mut empty = 0;
    for query in &queries {
        // Grafana's own question about labels.
        if query.text.starts_with("label_values(") {
            continue;
        }
        let text = query
            .text
            .replace("$__rate_interval", RANGE)
            .replace("$instance", ".*")
            .replace("$group", ".*")
            .replace("$node", ".*");
        let answer = prometheus.ask("query", &text)?;
        ensure!(answer["status"] == "success", "{}: {text}: {answer}", query.file);
        let is_empty = answer["data"]["result"].as_array().is_none_or(Vec::is_empty);
        if is_empty {
            println!("nothing now: {text}");
        }
        empty += usize::from(is_empty);
    }
    println!("{} queries, {empty} of them without a result now", queries.len());
    Ok(())
}

/// A server with files of its own.
struct Prometheus {
    // In the order in which they are taken down.
    _process: Process,
    address: SocketAddr,
    _files: Files,
}

impl Prometheus {
    fn start(agent: SocketAddr, webhooks: &[String]) -> Result<Self> {
        let files = Files::new("prometheus-server")?;
        // JSON is YAML. The certificate of the webhook is its own.
        let config = json!({
            "global": { "scrape_interval": "2s" },
            "scrape_configs": [
                { "job_name": "enforcer-agent", "static_configs": [{ "targets": [agent.to_string()] }] },
                {
                    "job_name": "enforcer-webhook", "scheme": "https", "tls_config": { "insecure_skip_verify": true },
                    "static_configs": [{ "targets": webhooks }],
                },
            ],
        });
        let config_path = files.path().join("prometheus.yml");
        fs::write(&config_path, config.to_string())?;
        let address = address::free()?;
        let mut command = exec_in(None, Signal::TERM, &installed("prometheus")?)?;
        command.arg(format!("--config.file={}", config_path.display()));
        command.arg(format!("--storage.tsdb.path={}", files.path().join("data").display()));
        command.arg(format!("--web.listen-address={address}"));
        let log = fs::File::create(files.path().join("log"))?;
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let prometheus =
            Self { _process: Process::start("prometheus", &mut command)?, address, _files: files };
        wait_for("every target is scraped", || {
            let up = prometheus.ask("query", "min(up) == 1")?;
            Ok(up["data"]["result"].as_array().is_some_and(|result| !result.is_empty()))
        })?;
        Ok(prometheus)
    }

    /// One of its API's questions.
    fn ask(&self, question: &str, query: &str) -> Result<Value> {
        let url = format!("http://{}/api/v1/{question}", self.address);
        let answer = minreq::get(url).with_param("query", query).with_timeout(10).send()?;
        Ok(answer.json()?)
    }

    /// All metrics that it has seen.
    fn names(&self) -> Result<BTreeSet<String>> {
        let names = self.ask("label/__name__/values", "")?;
        let names = names["data"].as_array().context("Prometheus knows no metrics")?;
        Ok(names.iter().filter_map(|name| name.as_str().map(str::to_owned)).collect())
    }
}
