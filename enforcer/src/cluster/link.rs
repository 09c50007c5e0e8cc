//! Between the loop, which never waits, and the thread that talks to the API server.

use std::{
    collections::BTreeSet,
    sync::mpsc::{self, Receiver, Sender},
};

use anyhow::{Context as _, Result};
use tokio::sync::mpsc::UnboundedSender;

use super::{
    connection,
    lend::Lent,
    node_slo::Settings,
    notes::{Note, PodRef},
    pod::Pod,
    usage::Usage,
    watch,
    writer::Writer,
};
use crate::{decision::batch::Strategy, policy::Mode, units::Amounts, urgency};

pub use super::connection::Place;

/// What the cluster says.
#[derive(Clone, Debug, PartialEq)]
pub enum Update {
    /// A pod of this node came, or is another one now.
    Pod(Box<Pod>),
    /// The pod of this UID went.
    Gone(String),
    /// UIDs of all pods that there are: others went while nobody looked.
    All(BTreeSet<String>),
    /// How use is to be reported.
    Strategy(Box<Strategy>),
    /// How pods are to be treated.
    Settings(Box<Settings>),
    /// What kubelet offers, and how much quicker than the reference these CPUs are.
    Node { allocatable: Amounts, cpu_normalization_ratio: Option<f64> },
    /// What is lent now.
    Lent(Box<Lent>),
}

/// What the cluster is to be told.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    Usage(Box<Usage>),
    /// BE is held back, because of this; `None`: it is not.
    Squeeze(Option<String>),
    Note(Note),
    Evict(Eviction),
}

/// A pod that has to go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Eviction {
    pub pod: PodRef,
    pub why: String,
    /// Whom it hurt.
    pub victim: Option<PodRef>,
    /// Only say so.
    pub is_dry_run: bool,
}

/// How the cluster is dealt with.
#[derive(Clone, Debug)]
pub struct Options {
    pub place: Place,
    pub mode: Mode,
    pub config_namespace: String,
    /// What is lent allows for peaks.
    pub peaks: bool,
    /// Nothing but events is written.
    pub shadow: bool,
}

/// The loop's end.
#[derive(Debug)]
pub struct Link {
    updates: Receiver<Update>,
    commands: UnboundedSender<Command>,
}

impl Link {
    /// Starts the thread. An API server that does not answer is waited for, in the background.
    ///
    /// # Errors
    /// Where nobody could ever be reached: no kubeconfig, no service account.
    pub fn start(options: Options) -> Result<Self> {
        let (to_loop, updates) = mpsc::channel();
        let (commands, from_loop) = tokio::sync::mpsc::unbounded_channel();
        let (started, has_started) = mpsc::channel();
        let run = move || {
            // Only the loop is in a hurry.
            urgency::step_back();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = match runtime.context("no runtime for the cluster") {
                Ok(runtime) => runtime,
                Err(err) => return drop(started.send(Err(err))),
            };
            runtime.block_on(async {
                let client = match connection::client(options.place.kubeconfig.as_deref()).await {
                    Ok(client) => client,
                    Err(err) => return drop(started.send(Err(err))),
                };
                started.send(Ok(())).ok();
                let seen = watch::start(&client, &options, to_loop.clone());
                Writer::new(client, options, to_loop).run(seen, from_loop).await;
            });
        };
        std::thread::Builder::new()
            .name("cluster".to_owned())
            .spawn(run)
            .context("no thread for the cluster")?;
        has_started.recv().context("the cluster's thread ended")??;
        Ok(Self { updates, commands })
    }

    /// What was said since the last call.
    pub fn updates(&self) -> impl Iterator<Item = Update> {
        self.updates.try_iter()
    }

    /// Has something done, some time.
    pub fn tell(&self, command: Command) {
        // A thread that ended has said why.
        self.commands.send(command).ok();
    }
}

/// To the loop; it may have ended.
pub(super) type ToLoop = Sender<Update>;
