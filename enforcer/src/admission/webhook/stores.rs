//! What the API server has, as far as it has told: profiles, namespaces and priority classes.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Debug,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::StreamExt as _;
use k8s_openapi::api::{
    core::v1::Namespace as ApiNamespace, scheduling::v1::PriorityClass as ApiPriorityClass,
};
use kube::{
    Api, Client, Resource, ResourceExt as _,
    runtime::{
        WatchStreamExt as _,
        events::{Event, EventType, Recorder, Reporter},
        reflector::{ObjectRef, Store, store},
        watcher::{self, watcher},
    },
};
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use super::super::{
    json::Strings,
    known::{Known, Namespace, PriorityClass},
    profile::ClusterColocationProfile,
    selector,
};
use crate::cluster::{complaints::Complaints, connection::MANAGER, retry::Retry};

/// A pod waits for it.
const ASK: Duration = Duration::from_secs(3);
const KINDS: usize = 3;

/// The API server did not say what had to be known; the request has no answer then.
#[derive(Debug, thiserror::Error)]
#[error("{what} {name} cannot be looked up: {why}")]
pub struct Unknown {
    what: &'static str,
    name: String,
    why: String,
}

/// Followed until the process ends.
#[derive(Clone)]
pub struct Stores {
    client: Client,
    profiles: Store<ClusterColocationProfile>,
    namespaces: Store<ApiNamespace>,
    priority_classes: Store<ApiPriorityClass>,
    /// Kinds of which all is known.
    ready: Arc<AtomicUsize>,
}

/// What was known at one moment.
pub struct Snapshot {
    profiles: Vec<Arc<ClusterColocationProfile>>,
    namespace: Namespace,
    priority_classes: BTreeMap<String, PriorityClass>,
}

impl Snapshot {
    pub fn known(&self, skip_resources: bool) -> Known<'_> {
        Known {
            profiles: self.profiles.iter().map(AsRef::as_ref).collect(),
            namespace: self.namespace.clone(),
            priority_classes: self.priority_classes.clone(),
            skip_resources,
        }
    }
}

impl Stores {
    pub fn start(client: &Client) -> Self {
        let ready = Arc::new(AtomicUsize::new(0));
        let reporter = Reporter { controller: MANAGER.to_owned(), instance: None };
        let problems = Problems { recorder: Recorder::new(client.clone(), reporter), told: BTreeSet::new() };
        Self {
            client: client.clone(),
            profiles: follow(Api::all(client.clone()), &ready, Some(problems)),
            namespaces: follow(Api::all(client.clone()), &ready, None),
            priority_classes: follow(Api::all(client.clone()), &ready, None),
            ready,
        }
    }

    /// Whether everything was seen once.
    pub fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Relaxed) == KINDS
    }

    /// What is known by now; a namespace that nothing was heard of yet may be unknown.
    pub fn snapshot(&self, namespace: &str) -> Snapshot {
        let found = self.namespaces.get(&ObjectRef::new(namespace));
        let classes = self.priority_classes.state();
        Snapshot {
            profiles: self.profiles.state(),
            namespace: found.map_or_else(
                || Namespace::unknown(namespace),
                |found| Namespace::known(namespace, found.labels()),
            ),
            priority_classes: classes.iter().map(|class| (class.name_any(), class.as_ref().into())).collect(),
        }
    }

    /// The same, but that a namespace and the classes that profiles name are asked for where nothing was heard of them: they may be
    /// younger than the last event.
    ///
    /// # Errors
    /// Where the API server does not say.
    pub async fn ask(&self, namespace: &str) -> Result<Snapshot, Unknown> {
        let mut snapshot = self.snapshot(namespace);
        if snapshot.namespace.labels.is_none()
            && snapshot.profiles.iter().any(|profile| profile.spec.namespace_selector.is_some())
            && let Some(found) = self.get::<ApiNamespace>("Namespace", namespace).await?
        {
            snapshot.namespace = Namespace::known(namespace, found.labels());
        }
        let named = snapshot.profiles.iter().filter_map(|profile| profile.spec.priority_class_name.clone());
        let missing: BTreeSet<String> =
            named.filter(|name| !name.is_empty() && !snapshot.priority_classes.contains_key(name)).collect();
        for name in missing {
            if let Some(found) = self.get::<ApiPriorityClass>("PriorityClass", &name).await? {
                snapshot.priority_classes.insert(name, (&found).into());
            }
        }
        Ok(snapshot)
    }

    async fn get<T>(&self, what: &'static str, name: &str) -> Result<Option<T>, Unknown>
    where
        T: Resource<DynamicType = (), Scope = k8s_openapi::ClusterResourceScope>
            + Clone
            + Debug
            + DeserializeOwned,
    {
        let unknown = |why: String| Unknown { what, name: name.to_owned(), why };
        let api: Api<T> = Api::all(self.client.clone());
        match timeout(ASK, api.get_opt(name)).await {
            Ok(answer) => answer.map_err(|err| unknown(err.to_string())),
            Err(_) => Err(unknown(format!("the API server did not answer within {ASK:?}"))),
        }
    }

    /// Another number when anything changed that decides about pods.
    pub fn fingerprint(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        for profile in self.profiles.state() {
            (profile.name_any(), profile.resource_version()).hash(&mut hasher);
        }
        let labels = |namespace: &ApiNamespace| -> (String, Strings) {
            (namespace.name_any(), namespace.labels().clone())
        };
        let mut namespaces: Vec<_> =
            self.namespaces.state().iter().map(|namespace| labels(namespace)).collect();
        namespaces.sort();
        namespaces.hash(&mut hasher);
        for class in self.priority_classes.state() {
            (class.name_any(), class.value).hash(&mut hasher);
        }
        hasher.finish()
    }
}

fn follow<T>(api: Api<T>, ready: &Arc<AtomicUsize>, mut problems: Option<Problems>) -> Store<T>
where
    T: Resource<DynamicType = ()> + Look + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
{
    let (reader, writer) = store();
    let stream = watcher(api, watcher::Config::default())
        .backoff(Retry::default())
        .modify(|object: &mut T| object.managed_fields_mut().clear())
        .reflect(writer);
    let (ready, all) = (Arc::clone(ready), reader.clone());
    tokio::spawn(async move {
        all.wait_until_ready().await.ok();
        ready.fetch_add(1, Ordering::Relaxed);
    });
    tokio::spawn(async move {
        let mut stream = pin!(stream);
        let mut complaints = Complaints::new(&T::kind(&()));
        while let Some(event) = stream.next().await {
            match event {
                Ok(watcher::Event::Apply(object) | watcher::Event::InitApply(object)) => {
                    if let (Some(problems), Some(problem)) = (&mut problems, object.problem()) {
                        problems.tell(&object, problem).await;
                    }
                }
                Ok(watcher::Event::InitDone) => complaints.all_is_well(),
                Ok(_) => {}
                Err(err) => complaints.complain(&err),
            }
        }
    });
    reader
}

/// What is wrong with an object as such.
trait Look {
    fn problem(&self) -> Option<String> {
        None
    }
}

impl Look for ApiNamespace {}
impl Look for ApiPriorityClass {}

impl Look for ClusterColocationProfile {
    fn problem(&self) -> Option<String> {
        let selectors =
            [("namespaceSelector", &self.spec.namespace_selector), ("selector", &self.spec.selector)];
        for (name, selector) in selectors {
            if let Some(Err(err)) =
                selector.as_ref().map(|selector| selector::unmet(selector, &Strings::new()))
            {
                return Some(format!("it selects no pods: spec.{name}.{err}"));
            }
        }
        self.spec.percent().err().map(|err| format!("the pods that it selects are refused: {err}"))
    }
}

/// Tells of profiles without meaning, each version once: in the log, and as an event.
struct Problems {
    recorder: Recorder,
    told: BTreeSet<(String, String)>,
}

impl Problems {
    async fn tell<T: Resource<DynamicType = ()>>(&mut self, object: &T, problem: String) {
        let version = (object.name_any(), object.resource_version().unwrap_or_default());
        if !self.told.insert(version) {
            return;
        }
        tracing::warn!("{} {}: {problem}", T::kind(&()), object.name_any());
        let event = Event {
            type_: EventType::Warning,
            reason: "Unusable".to_owned(),
            note: Some(problem),
            action: "Admit".to_owned(),
            secondary: None,
        };
        if let Ok(Err(err)) = timeout(ASK, self.recorder.publish(&event, &object.object_ref(&()))).await {
            tracing::debug!(%err, "no event");
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_profile_without_meaning_is_known_before_pods_come() {
        let problem = |spec| {
            let object = json!({ "apiVersion": "config.koordinator.sh/v1alpha1", "kind": "ClusterColocationProfile",
                "metadata": { "name": "p" }, "spec": spec });
            serde_json::from_value::<ClusterColocationProfile>(object).unwrap().problem()
        };
        assert_eq!(
            problem(json!({ "selector": { "matchLabels": { "a": "b" } }, "probability": "5%" })),
            None
        );
        let bad = json!({ "matchExpressions": [{ "key": "a", "operator": "Is" }] });
        for (spec, part) in [
            (json!({ "selector": bad }), "spec.selector.matchExpressions[0]"),
            (json!({ "namespaceSelector": bad }), "spec.namespaceSelector.matchExpressions[0]"),
            (json!({ "probability": "often" }), "spec.probability"),
        ] {
            let found = problem(spec).unwrap();
            assert!(found.contains(part), "{found}");
        }
    }
}
