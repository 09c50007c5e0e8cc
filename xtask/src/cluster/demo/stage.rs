//! One phase on the cluster: who runs, and what is seen of them.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use enforcer_rig::{client::Report, cluster::Cluster, interrupt};

use super::{
    be::{Be, Work},
    chart::{Agent, Chart},
    excerpt,
    lent::Lent,
    ls::{LAX, LsPod},
    spark::Distribution,
    watch::{Sample, Watch},
};
use crate::demo::phase::Phase;

/// For what the agent knows of the pods to follow a change of them.
const SETTLE: Duration = Duration::from_secs(3);
const SAMPLE: Duration = Duration::from_millis(500);
const LOOK: Duration = Duration::from_secs(1);

/// What all phases have in common.
#[derive(Debug)]
pub struct Stage<'a> {
    pub cluster: &'a Cluster,
    pub chart: &'a Chart<'a>,
    pub ls: &'a LsPod<'a>,
    pub be: Be,
    /// Where Spark is from, if BE is Spark.
    pub spark: Option<&'a Distribution>,
    pub rate: f64,
    pub seconds: u32,
    pub warm_up: u32,
}

/// What LS is promised: at most 1 % of its requests take longer.
#[derive(Clone, Copy, Debug)]
pub struct Objective {
    /// From the first byte in to the first byte out, as the agent sees it.
    pub in_kernel: Duration,
    /// The same multiple of the client's p99, which has the way and the client's own waits in it.
    pub at_client: Duration,
}

/// What was seen in one phase, the warm-up left out.
#[derive(Clone, Debug)]
pub struct Measured {
    pub client: Report,
    /// Of the whole machine, client and control plane included.
    pub node_cores: f64,
    pub be_cores: f64,
    pub lent: Lent,
    /// Part of the looks at the agent in which it held BE back; `None`: no agent ran.
    pub held_back_ratio: Option<f64>,
    /// The last reason that the agent gave.
    pub explanation: Option<String>,
    pub samples: Vec<Sample>,
    /// What kubectl says of the batch resources.
    pub excerpt: Option<String>,
}

impl Stage<'_> {
    /// Finds out what LS does alone while the agent measures, and promises it that many times as much.
    pub fn learn(&self, factor: f64) -> Result<Objective> {
        self.ls.promise(LAX)?;
        let agent = self.chart.enforce()?;
        Lent::wait_for(self.cluster, Be::CORES)?;
        let load = self.ls.load_of(self.rate, self.seconds, self.warm_up, None, 0);
        let client = self.ls.load(load)?;
        // Asked while the client is there, and again and again: the agent tells of its recent window, in which there may be a stall.
        interrupt::sleep(Duration::from_secs(self.warm_up.into()))?;
        let mut seen = Vec::new();
        for _ in 0..self.seconds.saturating_sub(1).max(1) {
            interrupt::sleep(LOOK)?;
            seen.extend(self.p99_of(&agent)?);
        }
        seen.sort_by(f64::total_cmp);
        let in_kernel = seen.get(seen.len() / 2).copied();
        let report: Report = serde_json::from_str(&client.output()?)?;
        let in_kernel = in_kernel
            .with_context(|| format!("the agent has seen no requests of {}: see its log", self.ls.group()))?;
        Ok(Objective {
            in_kernel: Duration::from_secs_f64(in_kernel * factor),
            at_client: Duration::from_secs_f64(report.p99_us / 1e6 * factor),
        })
    }

    /// Runs one phase.
    pub fn run(&self, phase: Phase, objective: Objective, seed: u64) -> Result<Measured> {
        interrupt::check()?;
        self.ls.promise(objective.in_kernel)?;
        let agent = match phase {
            Phase::Alone | Phase::Stock => {
                self.chart.leave_alone()?;
                None
            }
            Phase::Enforced => Some(self.chart.enforce()?),
        };
        if agent.is_some() {
            Lent::wait_for(self.cluster, Be::CORES)?;
        }
        let work = match phase {
            Phase::Alone => None,
            Phase::Stock | Phase::Enforced => Some(Work::start(self.be, self.cluster, self.spark)?),
        };
        interrupt::sleep(SETTLE)?;
        let load =
            self.ls.load_of(self.rate, self.seconds, self.warm_up, Some(objective.at_client), seed + 1);
        let client = self.ls.load(load)?;
        let mut watch = Watch::new(self.cluster)?;
        let begun = Instant::now();
        while begun.elapsed() + SAMPLE / 2 < self.length() {
            interrupt::sleep(SAMPLE)?;
            watch.look(agent.as_ref().map(Agent::status).transpose()?)?;
        }
        let client: Report = serde_json::from_str(&client.output()?)?;
        if let Some(work) = &work {
            ensure!(
                work.is_running()?,
                "{} ended before it was measured: choose fewer --seconds",
                self.be.name()
            );
        }
        let excerpt = work.as_ref().map(|_| excerpt::take(self.cluster, self.be.selector())).transpose()?;
        watch.measured(client, Lent::now(self.cluster)?, f64::from(self.warm_up), excerpt)
    }

    /// How long a client runs.
    fn length(&self) -> Duration {
        Duration::from_secs(u64::from(self.seconds + self.warm_up))
    }

    fn p99_of(&self, agent: &Agent) -> Result<Option<f64>> {
        let status = agent.status()?;
        Ok(status.group(&self.ls.group()).and_then(|ls| ls.requests.as_ref()?.p99_seconds))
    }
}
