//! Notes as Kubernetes events.

use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Client,
    runtime::events::{Event, EventType, Recorder, Reporter},
};

use super::{
    connection::{Failure, MANAGER, within},
    notes::{About, Note, PodRef},
};

/// Kubernetes takes no longer notes.
const NOTE_MAX: usize = 1_000;

/// Publishes events in this node's name.
pub struct Events {
    recorder: Recorder,
    node: String,
}

impl Events {
    pub fn new(client: Client, node: &str) -> Self {
        let reporter = Reporter { controller: MANAGER.to_owned(), instance: Some(node.to_owned()) };
        Self { recorder: Recorder::new(client, reporter), node: node.to_owned() }
    }

    /// # Errors
    /// What the API server says.
    pub async fn publish(&self, note: Note) -> Result<(), Failure> {
        let about = match &note.about {
            About::Pod(pod) => reference(pod),
            About::Node => ObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("Node".to_owned()),
                name: Some(self.node.clone()),
                // By which `kubectl describe node` looks for events.
                uid: Some(self.node.clone()),
                ..ObjectReference::default()
            },
        };
        let event = Event {
            type_: if note.kind.is_warning() { EventType::Warning } else { EventType::Normal },
            reason: note.kind.reason().to_owned(),
            note: Some(shortened(note.text)),
            action: note.kind.reason().to_owned(),
            secondary: note.related.as_ref().map(reference),
        };
        within(self.recorder.publish(&event, &about)).await.map(drop)
    }
}

fn reference(pod: &PodRef) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Pod".to_owned()),
        namespace: Some(pod.namespace.clone()),
        name: Some(pod.name.clone()),
        uid: Some(pod.uid.clone()),
        ..ObjectReference::default()
    }
}

fn shortened(mut text: String) -> String {
    if text.len() > NOTE_MAX {
        let end = (0..=NOTE_MAX).rev().find(|&at| text.is_char_boundary(at)).unwrap_or_default();
        text.truncate(end);
    }
    text
}
