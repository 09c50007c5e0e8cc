//! What the cluster is told: what is lent and used, events, evictions.
//!
//! One object has one writer. Standalone, this agent writes batch resources and the whole `NodeMetric`; alongside
//! koord-manager, only the status of the latter.

use std::{
    collections::BTreeMap,
    sync::mpsc::SendError,
    time::{Duration, Instant},
};

use k8s_openapi::api::core::v1::Node;
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use serde_json::json;
use tokio::sync::mpsc::UnboundedReceiver;

use super::{
    batch,
    config::{ColocationConfig, Wrong},
    connection::{Failure, MANAGER, within},
    events::Events,
    evict::{self, Outcome},
    lend::{Answer, Known, Lent},
    link::{Command, Eviction, Options, ToLoop, Update},
    node_slo::Settings,
    node_status::{NodeStatus, Wanted, now},
    notes::{About, Kind, Limiter, Note},
    objects::NodeMetric,
    usage::Usage,
    watch::Seen,
};
use crate::{
    decision::batch::{Inputs, Offer, Strategy, must_publish},
    policy::Mode,
};

/// Something that nobody changes for so long is left to whoever else writes it.
const YIELD: Duration = Duration::from_mins(5);
/// The node's condition follows a squeeze that comes and goes no quicker than this.
const CONDITION: Duration = Duration::from_secs(10);
/// Notes, and evictions, that are kept for an API server that does not answer.
const PILED: usize = 50;
/// Complaints about the same thing.
const AGAIN: Duration = Duration::from_mins(1);

/// State of the cluster's thread.
pub struct Writer {
    client: Client,
    options: Options,
    to_loop: ToLoop,
    known: Known,
    events: Events,
    limiter: Limiter,
    started: Instant,
    status: NodeStatus,
    /// What stands in the node's status, and since when.
    written: Option<(Wanted, Instant)>,
    squeeze: Option<String>,
    reported_at: Option<Instant>,
    /// What the `NodeMetric` says of how it is made: how far means reach back and how often it is reported.
    metric_spec: Option<(Duration, Duration)>,
    yields_until: Option<Instant>,
    complain_at: Instant,
    /// What the `ConfigMap` says.
    data: BTreeMap<String, String>,
    settings: Settings,
    strategy: Strategy,
}

/// What is still worth doing of what piled up while the API server did not answer: of reports only the last, of notes the
/// latest few.
fn newest(first: Command, more: &mut UnboundedReceiver<Command>) -> Vec<Command> {
    let mut all = vec![first];
    while let Ok(command) = more.try_recv() {
        let replaces = |old: &Command| std::mem::discriminant(old) == std::mem::discriminant(&command);
        match &command {
            Command::Usage(_) | Command::Squeeze(_) => all.retain(|old| !replaces(old)),
            Command::Note(_) | Command::Evict(_) => {
                if all.iter().filter(|old| replaces(old)).count() >= PILED
                    && let Some(oldest) = all.iter().position(replaces)
                {
                    all.remove(oldest);
                }
            }
        }
        all.push(command);
    }
    all
}

impl Writer {
    pub fn new(client: Client, options: Options, to_loop: ToLoop) -> Self {
        let node = &options.place.node;
        let now = Instant::now();
        Self {
            events: Events::new(client.clone(), node),
            status: NodeStatus::new(client.clone(), node),
            client,
            options,
            to_loop,
            known: Known::default(),
            limiter: Limiter::default(),
            started: now,
            written: None,
            squeeze: None,
            reported_at: None,
            metric_spec: None,
            yields_until: None,
            complain_at: now,
            data: BTreeMap::new(),
            settings: Settings::default(),
            strategy: Strategy::default(),
        }
    }

    /// Until the loop has ended.
    pub async fn run(mut self, mut seen: UnboundedReceiver<Seen>, mut commands: UnboundedReceiver<Command>) {
        loop {
            let has_loop = tokio::select! {
                // Pods first: they are waited for.
                biased;
                Some(seen) = seen.recv() => self.see(seen).await.is_ok(),
                command = commands.recv() => match command {
                    Some(command) => {
                        for command in newest(command, &mut commands) {
                            self.obey(command).await;
                        }
                        true
                    }
                    None => false,
                },
            };
            if !has_loop {
                return;
            }
        }
    }

    async fn see(&mut self, seen: Seen) -> Result<(), SendError<Update>> {
        match seen {
            Seen::Pod(pod) => {
                self.known.pods.insert(pod.uid.clone(), *pod);
                Ok(())
            }
            Seen::Gone(uid) => {
                self.known.pods.remove(&uid);
                Ok(())
            }
            Seen::All(all) => {
                self.known.pods.retain(|uid, _| all.contains(uid));
                Ok(())
            }
            Seen::Node(node) => {
                let labels = |node: Option<&Node>| node.and_then(|node| node.metadata.labels.clone());
                let (before, is_first) = (labels(self.known.node.as_ref()), self.known.node.is_none());
                self.known.node = node.map(|node| *node);
                // Entries for some nodes are chosen by labels.
                let is_another = is_first || before != labels(self.known.node.as_ref());
                let settings = if is_another { self.node_settings() } else { None };
                self.follow_settings(settings).await?;
                let Some(node) = &self.known.node else { return Ok(()) };
                match batch::of_node(node) {
                    Ok(Inputs { allocatable, cpu_normalization_ratio, .. }) => {
                        self.to_loop.send(Update::Node { allocatable, cpu_normalization_ratio })
                    }
                    Err(batch::Error::Wrong(wrong)) => {
                        self.invalid(&wrong).await;
                        Ok(())
                    }
                    Err(err) => {
                        self.complain("the node cannot be understood", &err);
                        Ok(())
                    }
                }
            }
            Seen::Config(config) => {
                self.data = config.and_then(|config| config.data).unwrap_or_default();
                match ColocationConfig::of(&self.data) {
                    Ok(config) => self.known.config = config,
                    Err(wrong) => self.invalid(&wrong).await,
                }
                self.follow_settings(self.node_settings()).await
            }
            Seen::Slo(slo) => {
                self.follow_settings(Some(slo.map_or(Ok(Settings::default()), |slo| Settings::of(&slo.spec))))
                    .await
            }
        }
    }

    /// Standalone, what the `ConfigMap` says for this node, once that is known. Alongside, koord-manager says it.
    fn node_settings(&self) -> Option<Result<Settings, Wrong>> {
        let node = self.known.node.as_ref().filter(|_| self.options.mode == Mode::Standalone)?;
        let unlabelled = BTreeMap::new();
        Some(Settings::of_config(&self.data, node.metadata.labels.as_ref().unwrap_or(&unlabelled)))
    }

    /// Tells the loop what changed for it.
    async fn follow_settings(
        &mut self,
        settings: Option<Result<Settings, Wrong>>,
    ) -> Result<(), SendError<Update>> {
        match settings {
            Some(Ok(settings)) if settings != self.settings => {
                self.settings = settings;
                self.to_loop.send(Update::Settings(Box::new(self.settings.clone())))?;
            }
            Some(Err(wrong)) => self.invalid(&wrong).await,
            Some(Ok(_)) | None => {}
        }
        match self.known.strategy() {
            Ok(strategy) if strategy != self.strategy => {
                self.strategy = strategy;
                self.to_loop.send(Update::Strategy(Box::new(self.strategy.clone())))?;
            }
            Ok(_) => {}
            Err(wrong) => self.invalid(&wrong).await,
        }
        Ok(())
    }

    /// What was in force before stays.
    async fn invalid(&mut self, wrong: &Wrong) {
        tracing::warn!(%wrong, "a setting is not followed; what was in force before stays");
        let text = format!("{wrong}; what was in force before stays");
        self.note(Note { about: About::Node, kind: Kind::InvalidConfig, text, related: None }).await;
    }

    async fn obey(&mut self, command: Command) {
        match command {
            Command::Note(note) => self.note(note).await,
            Command::Evict(eviction) => self.evict(eviction).await,
            Command::Squeeze(squeeze) => {
                self.squeeze = squeeze;
                let wanted = self.written.as_ref().map(|(wanted, _)| wanted.clone());
                if let Some(wanted) = wanted {
                    self.write_status(wanted.offer, wanted.origin).await;
                }
            }
            Command::Usage(usage) => {
                self.lend(&usage).await;
                self.report(&usage).await;
            }
        }
    }

    async fn note(&mut self, note: Note) {
        if !self.limiter.allows(self.started.elapsed(), &note) {
            return;
        }
        if let Err(err) = self.events.publish(note).await {
            self.complain("an event is lost", &err);
        }
    }

    fn complain(&mut self, what: &str, err: &dyn std::fmt::Display) {
        if Instant::now() >= self.complain_at {
            self.complain_at = Instant::now() + AGAIN;
            tracing::warn!("{what}: {err}");
        }
    }

    /// Batch resources, where this agent is the one who computes them.
    async fn lend(&mut self, usage: &Usage) {
        let answer = match self.known.lend(usage, &now(), self.options.peaks) {
            Ok(Some(answer)) => answer,
            Ok(None) => return,
            Err(batch::Error::Wrong(wrong)) => return self.invalid(&wrong).await,
            Err(err) => return self.complain("what is lent stays as it is", &err),
        };
        let stands = self.known.node.as_ref().and_then(|node| batch::offered(node).ok()).unwrap_or_default();
        let age = self.written.as_ref().map(|(_, at)| at.elapsed());
        let is_first = self.written.is_none();
        if self.options.mode != Mode::Standalone {
            // Said, so that both can be compared; koord-manager's counts.
            self.to_loop.send(Update::Lent(Box::new(Lent::new(stands, &answer)))).ok();
            // Also what a former run left, and a condition that fluttered.
            self.write_status(None, None).await;
            return;
        }
        let offer = answer.offer();
        let (offer, origin) = if is_first || must_publish(stands, offer, age, &self.strategy) {
            if stands != offer {
                // Also what was written before and is not there any more.
                self.written = None;
            }
            (offer, answer.origin())
        } else {
            let written = self.written.as_ref().map(|(wanted, _)| wanted.clone()).unwrap_or_default();
            (written.offer, written.origin)
        };
        let shown = if self.may_write() { offer } else { stands };
        self.to_loop.send(Update::Lent(Box::new(Lent::new(shown, &answer)))).ok();
        if let Answer::Nothing(why) = &answer
            && stands.is_some()
        {
            tracing::info!("nothing is lent any more: {why}");
        }
        self.write_status(offer, origin).await;
    }

    fn may_write(&self) -> bool {
        !self.options.shadow && self.yields_until.is_none_or(|until| Instant::now() >= until)
    }

    /// Only what is new, and a condition that flutters only now and then.
    async fn write_status(&mut self, offer: Offer, origin: Option<crate::units::Amounts>) {
        if !self.may_write() {
            return;
        }
        let wanted = Wanted { offer, origin, squeeze: self.squeeze.clone() };
        if let Some((written, at)) = &self.written {
            let lends_the_same = written.offer == wanted.offer && written.origin == wanted.origin;
            let turns = written.squeeze.is_some() != wanted.squeeze.is_some();
            if lends_the_same && (!turns || at.elapsed() < CONDITION) {
                return;
            }
        }
        match self.status.write(&wanted).await {
            Ok(()) => self.written = Some((wanted, Instant::now())),
            Err(err) if err.code() == Some(409) => self.found_another_writer(&err).await,
            Err(err) => self.complain("the node's status is not brought up to date", &err),
        }
    }

    async fn found_another_writer(&mut self, err: &Failure) {
        self.yields_until = Some(Instant::now() + YIELD);
        let text = format!(
            "somebody else writes what this agent should, which is left to them for {} s; run either koord-manager or \
             enforcer in standalone mode: {}",
            YIELD.as_secs(),
            err.message()
        );
        tracing::error!("{text}");
        self.note(Note { about: About::Node, kind: Kind::TwoWriters, text, related: None }).await;
    }

    /// `NodeMetric`, as often as the strategy says.
    async fn report(&mut self, usage: &Usage) {
        let interval = self.strategy.metric_report_interval;
        if self.options.shadow || self.reported_at.is_some_and(|at| at.elapsed() + CONDITION / 2 < interval) {
            return;
        }
        match self.write_metric(usage).await {
            Ok(()) => self.reported_at = Some(Instant::now()),
            // koord-manager makes it; it will.
            Err(err) if err.code() == Some(404) && self.options.mode == Mode::Alongside => {
                self.complain("no NodeMetric to report to yet", &err);
            }
            Err(err) => {
                if err.code() == Some(404) {
                    // Deleted: made anew next time, at once.
                    (self.metric_spec, self.reported_at) = (None, None);
                }
                self.complain("the NodeMetric is not brought up to date", &err);
            }
        }
    }

    async fn write_metric(&mut self, usage: &Usage) -> Result<(), Failure> {
        let metrics: Api<NodeMetric> = Api::all(self.client.clone());
        let name = &self.options.place.node;
        let head = |more: serde_json::Value| {
            let mut body = json!({
                "apiVersion": "slo.koordinator.sh/v1alpha1", "kind": "NodeMetric", "metadata": { "name": name },
            });
            body.as_object_mut()
                .expect("BUG: an object")
                .extend(more.as_object().cloned().unwrap_or_default());
            Patch::Apply(body)
        };
        let parameters = PatchParams::apply(MANAGER);
        let (aggregate, interval) =
            (self.strategy.metric_aggregate_duration, self.strategy.metric_report_interval);
        if self.options.mode == Mode::Standalone && self.metric_spec != Some((aggregate, interval)) {
            let spec = json!({ "spec": { "metricCollectPolicy": {
                "aggregateDurationSeconds": aggregate.as_secs(),
                "reportIntervalSeconds": interval.as_secs(),
            }}});
            within(metrics.patch(name, &parameters, &head(spec))).await?;
            self.metric_spec = Some((aggregate, interval));
        }
        let status = json!({ "status": usage.status(&now()) });
        // The status has no other writer; koordlet's, if it ran here before, is taken over.
        within(metrics.patch_status(name, &parameters.force(), &head(status))).await.map(drop)
    }

    async fn evict(&mut self, Eviction { pod, why, victim, is_dry_run }: Eviction) {
        let (kind, text) = if is_dry_run || self.options.shadow {
            (Kind::WouldEvict, format!("{why}; dry run: not evicted"))
        } else {
            match evict::evict(&self.client, &pod).await {
                Ok(Outcome::Evicted) => (Kind::Evicted, why),
                Ok(Outcome::Gone) => return,
                Ok(Outcome::Protected(budget)) => {
                    (Kind::EvictionRefused, format!("{why}; not evicted: {budget}"))
                }
                Err(err) => return self.complain("a pod is not evicted", &err),
            }
        };
        tracing::info!(pod = format!("{}/{}", pod.namespace, pod.name), reason = kind.reason(), "{text}");
        self.note(Note { about: About::Pod(pod), kind, text, related: victim }).await;
    }
}
