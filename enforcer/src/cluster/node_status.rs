//! What this agent writes into the status of its node.
//!
//! Server-side apply: the API server remembers which fields are this agent's, refuses what is somebody else's, and takes
//! away what is not applied any more.

use k8s_openapi::{api::core::v1::Node, apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};

use super::{
    batch::origin_annotation,
    connection::{Failure, MANAGER, within},
    protocol::{BATCH_CPU, BATCH_MEMORY},
};
use crate::{decision::batch::Offer, units::Amounts};

/// The condition that tells whether BE is held back.
const CONDITION: &str = "BatchThrottled";

/// What is to stand there.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Wanted {
    pub offer: Offer,
    pub origin: Option<Amounts>,
    /// BE is held back, because of this.
    pub squeeze: Option<String>,
}

/// The writer of one node's status.
pub struct NodeStatus {
    nodes: Api<Node>,
    name: String,
    /// When the condition last changed.
    turned: (bool, Time),
    annotated: Option<Amounts>,
}

pub(super) fn now() -> Time {
    Time(Timestamp::now())
}

impl NodeStatus {
    pub fn new(client: Client, name: &str) -> Self {
        Self { nodes: Api::all(client), name: name.to_owned(), turned: (false, now()), annotated: None }
    }

    /// # Errors
    /// What the API server says; 409: another writer has set these fields to other values.
    pub async fn write(&mut self, wanted: &Wanted) -> Result<(), Failure> {
        if self.turned.0 != wanted.squeeze.is_some() {
            self.turned = (wanted.squeeze.is_some(), now());
        }
        let body = json!({
            "apiVersion": "v1", "kind": "Node", "metadata": { "name": self.name },
            "status": status(wanted, &self.turned.1),
        });
        let parameters = PatchParams::apply(MANAGER);
        within(self.nodes.patch_status(&self.name, &parameters, &Patch::Apply(body))).await?;
        if self.annotated == wanted.origin {
            return Ok(());
        }
        self.annotate(wanted.origin).await
    }

    /// Takes everything away that agents wrote.
    ///
    /// # Errors
    /// What the API server says.
    pub async fn remove(mut self) -> Result<(), Failure> {
        let body = json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": self.name } });
        let parameters = PatchParams::apply(MANAGER);
        within(self.nodes.patch_status(&self.name, &parameters, &Patch::Apply(body))).await?;
        self.annotate(None).await
    }

    async fn annotate(&mut self, origin: Option<Amounts>) -> Result<(), Failure> {
        let annotations: serde_json::Map<String, Value> = origin
            .map(origin_annotation)
            .map(|(name, text)| (name, Value::String(text)))
            .into_iter()
            .collect();
        let body = json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": { "name": self.name, "annotations": annotations },
        });
        within(self.nodes.patch(&self.name, &PatchParams::apply(MANAGER), &Patch::Apply(body))).await?;
        self.annotated = origin;
        Ok(())
    }
}

fn status(wanted: &Wanted, turned_at: &Time) -> Value {
    let condition = match &wanted.squeeze {
        Some(why) => json!({ "status": "True", "reason": "SLOViolated", "message": why }),
        None => json!({ "status": "False", "reason": "SLOMet", "message": "batch pods are not held back" }),
    };
    let mut status = json!({ "conditions": [condition] });
    let own = &mut status["conditions"][0];
    own["type"] = json!(CONDITION);
    own["lastTransitionTime"] = json!(turned_at);
    own["lastHeartbeatTime"] = json!(now());
    if let Some(offer) = wanted.offer {
        let amounts = json!({
            BATCH_CPU: offer.cpu_milli.to_string(),
            BATCH_MEMORY: offer.memory_bytes.to_string(),
        });
        status["capacity"] = amounts.clone();
        status["allocatable"] = amounts;
    }
    status
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_lent_applies_no_resources() {
        let status = |offer| status(&Wanted { offer, ..Wanted::default() }, &now());
        let lent = status(Some(Amounts { cpu_milli: 1_500, memory_bytes: 1 << 30 }));
        assert_eq!(lent["allocatable"][BATCH_CPU], "1500");
        assert_eq!(lent["capacity"][BATCH_MEMORY], "1073741824");
        assert!(status(None).get("allocatable").is_none());
    }
}
