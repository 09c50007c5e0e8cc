//! What the API server says, as it says it.

use std::{collections::BTreeSet, fmt::Debug, pin::pin};

use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1::{ConfigMap, Node};
use kube::{
    Api, Client, Resource,
    runtime::{
        WatchStreamExt as _,
        watcher::{self, Event, watch_object, watcher},
    },
};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::{
    complaints::Complaints,
    link::{Options, ToLoop, Update},
    objects::NodeSLO,
    pod::{Pod, told::ToldPod},
    protocol::CONFIG_MAP,
    retry::Retry,
};
use crate::policy::Mode;

/// Pods that are asked for at a time.
const PAGE: u32 = 50;

/// One thing that was seen.
#[derive(Debug)]
pub enum Seen {
    Pod(Box<Pod>),
    Gone(String),
    /// UIDs of all pods.
    All(BTreeSet<String>),
    Node(Option<Box<Node>>),
    Config(Option<Box<ConfigMap>>),
    Slo(Option<Box<NodeSLO>>),
}

/// Watches until the receiver is dropped. Pods are told to the loop at once, whatever the receiver is busy with.
pub fn start(client: &Client, options: &Options, to_loop: ToLoop) -> UnboundedReceiver<Seen> {
    let (seen, receiver) = unbounded_channel();
    let node = &options.place.node;
    tokio::spawn(pods(Api::all(client.clone()), format!("spec.nodeName={node}"), (seen.clone(), to_loop)));
    tokio::spawn(object(Api::all(client.clone()), node.clone(), seen.clone(), Seen::Node));
    let namespace = &options.config_namespace;
    tokio::spawn(object(
        Api::namespaced(client.clone(), namespace),
        CONFIG_MAP.to_owned(),
        seen.clone(),
        Seen::Config,
    ));
    if options.mode == Mode::Alongside {
        tokio::spawn(object(Api::<NodeSLO>::all(client.clone()), node.clone(), seen, Seen::Slo));
    }
    receiver
}

async fn pods(api: Api<ToldPod>, selector: String, (to, to_loop): (UnboundedSender<Seen>, ToLoop)) {
    // In small pages: memory that the first list takes is kept for good.
    let config = watcher::Config::default().fields(&selector).page_size(PAGE);
    let stream = watcher(api, config).backoff(Retry::default());
    let mut stream = pin!(stream);
    let mut all = BTreeSet::new();
    let mut complaints = Complaints::new("pods");
    while let Some(event) = stream.next().await {
        let seen = match event {
            Ok(Event::Init) => {
                all.clear();
                continue;
            }
            Ok(Event::InitApply(pod)) => {
                all.extend(pod.0.metadata.uid.clone());
                applied(&pod)
            }
            Ok(Event::InitDone) => {
                complaints.all_is_well();
                Some(Seen::All(std::mem::take(&mut all)))
            }
            Ok(Event::Apply(pod)) => applied(&pod),
            Ok(Event::Delete(pod)) => pod.0.metadata.uid.map(Seen::Gone),
            Err(err) => {
                complaints.complain(&err);
                None
            }
        };
        let Some(seen) = seen else { continue };
        let update = match &seen {
            Seen::Pod(pod) => Some(Update::Pod(pod.clone())),
            Seen::Gone(uid) => Some(Update::Gone(uid.clone())),
            Seen::All(all) => Some(Update::All(all.clone())),
            Seen::Node(_) | Seen::Config(_) | Seen::Slo(_) => None,
        };
        let told = update.map_or(Ok(()), |update| to_loop.send(update));
        if told.is_err() || to.send(seen).is_err() {
            return;
        }
    }
}

fn applied(pod: &ToldPod) -> Option<Seen> {
    match Pod::of(&pod.0) {
        Ok(pod) => Some(Seen::Pod(Box::new(pod))),
        Err(err) => {
            tracing::warn!(%err, "a pod is left out");
            None
        }
    }
}

/// One object, or that there is none.
async fn object<T>(
    api: Api<T>,
    name: String,
    to: UnboundedSender<Seen>,
    seen: impl Fn(Option<Box<T>>) -> Seen + Send + 'static,
) where
    T: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
    T::DynamicType: Default,
{
    let mut stream = pin!(watch_object(api, &name).backoff(Retry::default()));
    let kind = T::kind(&T::DynamicType::default()).into_owned();
    let mut complaints = Complaints::new(&kind);
    while let Some(event) = stream.next().await {
        match event {
            Ok(object) => {
                complaints.all_is_well();
                if to.send(seen(object.map(Box::new))).is_err() {
                    return;
                }
            }
            Err(err) => complaints.complain(&err),
        }
    }
}
