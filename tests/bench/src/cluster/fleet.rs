//! Agents by the hundred, as far as the API server can tell.

use std::{path::PathBuf, time::Duration};

use anyhow::Result;
use enforcer::{
    cluster::{
        class::{Priority, Qos},
        link::{Command, Link, Options, Place},
        usage::{PodUsage, TELL, Usage, Used},
    },
    policy::Mode,
    units::Amounts,
};
use enforcer_rig::cluster::{Cluster, install::SETTINGS_NAMESPACE};
use serde_json::json;

use crate::objects::{Objects, pod};

/// Each agent tells of its node every [`TELL`]; with so many ticks between, not all do so at once.
pub const TICK: Duration = Duration::from_millis(100);
const TICKS: usize = (TELL.as_millis() / TICK.as_millis()) as usize;

/// What a pod uses.
const POD: Amounts = Amounts { cpu_milli: 200, memory_bytes: 256 << 20 };
/// What nobody's pods use.
const SYSTEM: Amounts = Amounts { cpu_milli: 300, memory_bytes: 1 << 30 };

/// All of them.
pub struct Fleet {
    links: Vec<Link>,
    kubeconfig: PathBuf,
    pods: usize,
    ticks: usize,
}

impl Fleet {
    /// Makes nodes and pods for so many agents, and starts none.
    pub fn new(cluster: &Cluster, objects: &Objects, agents: usize, pods: usize) -> Result<Self> {
        objects.make_nodes((0..agents).map(node))?;
        let container = json!({ "name": "main", "image": "none", "resources": { "requests": { "cpu": "500m", "memory": "512Mi" } } });
        let all = (0..agents).flat_map(|agent| (0..pods).map(move |place| (agent, place)));
        let all = all
            .map(|(agent, place)| {
                pod(&pod_name(agent, place), &node(agent), &json!({}), &json!({ "containers": [container] }))
            })
            .collect::<Result<Vec<_>>>()?;
        objects.make_pods(all)?;
        Ok(Self { links: Vec::new(), kubeconfig: cluster.agents_kubeconfig()?, pods, ticks: 0 })
    }

    /// Starts agents until there are so many.
    pub fn start_some(&mut self, agents: usize) -> Result<()> {
        while self.links.len() < agents {
            self.links.push(Link::start(Options {
                place: Place { node: node(self.links.len()), kubeconfig: Some(self.kubeconfig.clone()) },
                mode: Mode::Standalone,
                config_namespace: SETTINGS_NAMESPACE.to_owned(),
                peaks: false,
                shadow: false,
            })?);
        }
        Ok(())
    }

    /// Those whose turn it is tell of their nodes; all take in what they were told.
    pub fn tick(&mut self) {
        let turn = self.ticks % TICKS;
        for (agent, link) in self.links.iter().enumerate() {
            link.updates().for_each(drop);
            if agent % TICKS == turn {
                link.tell(Command::Usage(Box::new(self.usage(agent))));
            }
        }
        self.ticks += 1;
    }

    fn usage(&self, agent: usize) -> Usage {
        // A little more and a little less, as on a real node; far from what is worth a new offer.
        let swing = i64::try_from(self.ticks / TICKS % 7).unwrap_or_default() * 10;
        let pods = i64::try_from(self.pods).unwrap_or_default();
        let of_pods = Amounts { cpu_milli: POD.cpu_milli * pods, memory_bytes: POD.memory_bytes * pods };
        let used = |mean: Amounts| Used { mean, windows: Vec::new() };
        Usage {
            node: used(Amounts {
                cpu_milli: of_pods.cpu_milli + SYSTEM.cpu_milli + swing,
                memory_bytes: of_pods.memory_bytes + SYSTEM.memory_bytes,
            }),
            system: used(Amounts { cpu_milli: SYSTEM.cpu_milli + swing, ..SYSTEM }),
            pods: (0..self.pods)
                .map(|place| PodUsage {
                    namespace: "default".to_owned(),
                    name: pod_name(agent, place),
                    used: POD,
                    priority: Priority::Prod,
                    qos: Qos::Ls,
                })
                .collect(),
            ..Usage::default()
        }
    }
}

fn node(agent: usize) -> String {
    format!("enforcer-bench-{agent}")
}

fn pod_name(agent: usize, place: usize) -> String {
    format!("{}-{place}", node(agent))
}
