//! `enforcer controller`: takes batch resources off nodes whose agent is gone.
//!
//! Kubelet keeps what a node's status offers for ever, and pods would be bound to CPUs that nobody watches any more. One
//! controller for a cluster, elected by a Lease. It writes in the agents' name, so that nothing of theirs is left.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result};
use k8s_openapi::{
    api::{
        coordination::v1::{Lease, LeaseSpec},
        core::v1::{ConfigMap, Node},
    },
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, Time},
    jiff::{SignedDuration, Timestamp},
};
use kube::{Api, Client, api::ListParams};
use tokio::signal::unix::{SignalKind, signal};

use super::{
    batch,
    config::ColocationConfig,
    connection::{self, Failure, MANAGER, parameters, within, won},
    node_status::NodeStatus,
    objects::NodeMetric,
    protocol::CONFIG_MAP,
};
use crate::decision::batch::Strategy;

const LEASE: &str = "enforcer-controller";
/// Without a sign for so long, somebody else takes over.
const LEASE_SECONDS: i32 = 30;
const RENEW: Duration = Duration::from_secs(10);
/// How often nodes are looked at: an agent counts as gone after minutes.
const LOOK: Duration = Duration::from_secs(30);

/// What the controller was told on the command line.
#[derive(Clone, Debug)]
pub struct Options {
    pub kubeconfig: Option<PathBuf>,
    /// Of the Lease.
    pub namespace: String,
    /// Of `slo-controller-config`.
    pub config_namespace: String,
    /// Its own name in the Lease: the pod's.
    pub identity: String,
    /// Take everything off all nodes, and end: before enforcer is uninstalled.
    pub remove_all: bool,
}

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// Where no API server could ever be reached.
pub fn run(options: &Options) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let client = connection::client(options.kubeconfig.as_deref()).await?;
        let controller = Controller { client, options: options.clone() };
        if options.remove_all {
            let removed = controller.look(true).await.context("batch resources stay in the nodes' status")?;
            tracing::info!(nodes = removed, "batch resources removed");
            return Ok(());
        }
        let (mut terminate, mut interrupt) =
            (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            () = controller.go_on() => {}
        }
        controller.hand_over().await;
        Ok(())
    })
}

struct Controller {
    client: Client,
    options: Options,
}

impl Controller {
    async fn go_on(&self) {
        let mut leads = false;
        let mut look_at = tokio::time::Instant::now();
        loop {
            match self.lead().await {
                Ok(leads_now) => {
                    if leads_now != leads {
                        tracing::info!(
                            identity = self.options.identity,
                            "{}",
                            if leads_now { "leads" } else { "waits" }
                        );
                    }
                    leads = leads_now;
                }
                Err(err) => {
                    leads = false;
                    tracing::warn!("the Lease cannot be renewed: {err}");
                }
            }
            if leads && tokio::time::Instant::now() >= look_at {
                look_at = tokio::time::Instant::now() + LOOK;
                if let Err(err) = self.look(false).await {
                    tracing::warn!("nodes cannot be looked at: {err}");
                }
            }
            tokio::time::sleep(RENEW).await;
        }
    }

    fn leases(&self) -> Api<Lease> {
        Api::namespaced(self.client.clone(), &self.options.namespace)
    }

    /// Takes or renews the Lease, if nobody else holds it. The API server refuses one of two that try at once.
    async fn lead(&self) -> Result<bool, Failure> {
        let leases = self.leases();
        let now = Timestamp::now();
        let Some(mut lease) = within(leases.get_opt(LEASE)).await? else {
            let lease = Lease {
                metadata: ObjectMeta { name: Some(LEASE.to_owned()), ..ObjectMeta::default() },
                spec: Some(self.spec(now, now, 0)),
            };
            return won(within(leases.create(&parameters(), &lease)).await);
        };
        let spec = lease.spec.take().unwrap_or_default();
        let is_mine = spec.holder_identity.as_deref() == Some(self.options.identity.as_str());
        if !is_mine && !has_expired(&spec, now) {
            return Ok(false);
        }
        let transitions = spec.lease_transitions.unwrap_or_default();
        let acquired = spec.acquire_time.filter(|_| is_mine).map_or(now, |time| time.0);
        lease.spec = Some(self.spec(acquired, now, if is_mine { transitions } else { transitions + 1 }));
        won(within(leases.replace(LEASE, &parameters(), &lease)).await)
    }

    fn spec(&self, acquired: Timestamp, renewed: Timestamp, transitions: i32) -> LeaseSpec {
        LeaseSpec {
            holder_identity: Some(self.options.identity.clone()),
            lease_duration_seconds: Some(LEASE_SECONDS),
            acquire_time: Some(MicroTime(acquired)),
            renew_time: Some(MicroTime(renewed)),
            lease_transitions: Some(transitions),
            ..LeaseSpec::default()
        }
    }

    /// So that the next one need not wait.
    async fn hand_over(&self) {
        let leases = self.leases();
        let Ok(Some(mut lease)) = within(leases.get_opt(LEASE)).await else { return };
        let Some(spec) = &mut lease.spec else { return };
        if spec.holder_identity.as_deref() == Some(self.options.identity.as_str()) {
            spec.holder_identity = None;
            within(leases.replace(LEASE, &parameters(), &lease)).await.ok();
        }
    }

    /// Takes batch resources off the nodes whose agents say nothing any more, or off `all`. How many.
    async fn look(&self, all: bool) -> Result<usize, Failure> {
        let nodes = within(Api::<Node>::all(self.client.clone()).list(&ListParams::default())).await?;
        let metrics =
            within(Api::<NodeMetric>::all(self.client.clone()).list(&ListParams::default())).await?;
        let reported: BTreeMap<String, Time> = metrics
            .into_iter()
            .filter_map(|metric| Some((metric.metadata.name?, metric.status?.update_time?)))
            .collect();
        let config = self.config().await?;
        let (mut removed, mut failed) = (0, None);
        for node in nodes.items.iter().filter(|node| wrote_into(node) && (all || offers(node))) {
            let Some(name) = node.metadata.name.as_deref() else { continue };
            let strategy = strategy(&config, node);
            let now = Time(Timestamp::now());
            let (last, is_on) = (reported.get(name), batch::may_lend(&strategy, reported.get(name), &now));
            if !all && is_on.is_ok() {
                continue;
            }
            let why = is_on.err().map_or_else(|| "enforcer is uninstalled".to_owned(), |why| why.to_string());
            match NodeStatus::new(self.client.clone(), name).remove().await {
                Ok(()) => {
                    removed += 1;
                    tracing::info!(node = name, last_report = ?last.map(|time| time.0), "batch resources removed: {why}");
                }
                Err(err) => {
                    tracing::warn!(node = name, "batch resources cannot be removed: {err}");
                    failed = Some(err);
                }
            }
        }
        match failed {
            // Nobody looks again.
            Some(err) if all => Err(err),
            _ => Ok(removed),
        }
    }

    /// One that cannot be read says nothing, and agents' word counts: they keep what was in force.
    async fn config(&self) -> Result<ColocationConfig, Failure> {
        let maps: Api<ConfigMap> = Api::namespaced(self.client.clone(), &self.options.config_namespace);
        let data = within(maps.get_opt(CONFIG_MAP)).await?.and_then(|map| map.data).unwrap_or_default();
        Ok(ColocationConfig::of(&data).unwrap_or_else(|wrong| {
            tracing::warn!(%wrong, "the colocation settings cannot be read: only agents that say nothing count as gone");
            ColocationConfig::enabled()
        }))
    }
}

/// A node's strategy. Where its own settings cannot be read, its agent's word counts as well.
fn strategy(config: &ColocationConfig, node: &Node) -> Strategy {
    config.strategy(node).unwrap_or_else(|wrong| {
        tracing::warn!(%wrong, node = node.metadata.name, "its settings cannot be read");
        Strategy { enable: true, ..Strategy::default() }
    })
}

fn has_expired(spec: &LeaseSpec, now: Timestamp) -> bool {
    let Some(renewed) = &spec.renew_time else { return true };
    let seconds = spec.lease_duration_seconds.unwrap_or(LEASE_SECONDS);
    spec.holder_identity.is_none() || renewed.0 + SignedDuration::from_secs(seconds.into()) < now
}

/// An agent wrote something into its status: batch resources, or a condition alone.
fn wrote_into(node: &Node) -> bool {
    let managers = node.metadata.managed_fields.iter().flatten();
    managers
        .filter(|entry| entry.subresource.as_deref() == Some("status"))
        .any(|entry| entry.manager.as_deref() == Some(MANAGER) && entry.operation.as_deref() == Some("Apply"))
}

fn offers(node: &Node) -> bool {
    batch::offered(node).is_ok_and(|offer| offer.is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_expires_when_nobody_renews_it() {
        let now = Timestamp::UNIX_EPOCH + SignedDuration::from_secs(1_000);
        let lease = |holder: Option<&str>, age: i64| LeaseSpec {
            holder_identity: holder.map(str::to_owned),
            renew_time: Some(MicroTime(now - SignedDuration::from_secs(age))),
            lease_duration_seconds: Some(30),
            ..LeaseSpec::default()
        };
        assert!(!has_expired(&lease(Some("a"), 29), now));
        assert!(has_expired(&lease(Some("a"), 31), now));
        assert!(has_expired(&lease(None, 1), now), "handed over");
        assert!(has_expired(&LeaseSpec::default(), now));
    }

    #[test]
    fn only_what_an_agent_applied_is_taken_off() {
        let node = |manager: &str, offers: bool| -> Node {
            let resources = if offers {
                serde_json::json!({ "kubernetes.io/batch-cpu": "1" })
            } else {
                serde_json::json!({})
            };
            serde_json::from_value(serde_json::json!({
                "metadata": { "name": "n", "managedFields": [{ "manager": manager, "operation": "Apply", "subresource": "status" }] },
                "status": { "allocatable": resources },
            }))
            .unwrap()
        };
        let told = |manager, offers_some| {
            let node = node(manager, offers_some);
            (wrote_into(&node), offers(&node))
        };
        assert_eq!(told("enforcer", true), (true, true));
        assert_eq!(told("enforcer", false), (true, false), "a condition alone");
        assert_eq!(told("koord-manager", true), (false, true));
    }

    #[test]
    fn settings_that_cannot_be_read_do_not_switch_lending_off() {
        let broken = BTreeMap::from([("colocation-config".to_owned(), "{\"enable\": tru".to_owned())]);
        assert!(ColocationConfig::of(&broken).is_err());
        assert!(strategy(&ColocationConfig::enabled(), &Node::default()).enable);
        let node: Node = serde_json::from_value(serde_json::json!({
            "metadata": { "annotations": { "node.koordinator.sh/colocation-strategy": "{" } },
        }))
        .unwrap();
        assert!(ColocationConfig::default().strategy(&node).is_err());
        assert!(strategy(&ColocationConfig::default(), &node).enable);
    }
}
