//! `caBundle`: by what the API server knows that it talks to the webhook.

use k8s_openapi::{
    ByteString,
    api::admissionregistration::v1::{MutatingWebhookConfiguration, ValidatingWebhookConfiguration},
};
use kube::{
    Api, Client, Resource,
    api::{Patch, PatchParams},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use crate::cluster::connection::{Failure, MANAGER, within};

/// Each time somebody else has written between reading and writing.
const TRIES: usize = 5;

/// The webhooks of one Service, in two configurations of one name.
pub struct Trust {
    client: Client,
    configuration: String,
    service: String,
    namespace: String,
}

impl Trust {
    pub fn new(client: &Client, configuration: &str, service: &str, namespace: &str) -> Self {
        Self {
            client: client.clone(),
            configuration: configuration.to_owned(),
            service: service.to_owned(),
            namespace: namespace.to_owned(),
        }
    }

    /// Makes the API server trust this bundle, and nothing else, in all webhooks of the Service. How many configurations there
    /// are.
    ///
    /// # Errors
    /// What the API server says.
    pub async fn put(&self, bundle: &str) -> Result<usize, Failure> {
        let mutating = self.put_one::<MutatingWebhookConfiguration>(bundle).await?;
        let validating = self.put_one::<ValidatingWebhookConfiguration>(bundle).await?;
        Ok(usize::from(mutating) + usize::from(validating))
    }

    async fn put_one<T>(&self, bundle: &str) -> Result<bool, Failure>
    where
        T: Resource<DynamicType = (), Scope = k8s_openapi::ClusterResourceScope>
            + Clone
            + std::fmt::Debug
            + Serialize
            + DeserializeOwned,
    {
        let api: Api<T> = Api::all(self.client.clone());
        for left in (0..TRIES).rev() {
            let Some(found) = within(api.get_opt(&self.configuration)).await? else { return Ok(false) };
            let found = serde_json::to_value(found).unwrap_or_default();
            let Some(patch) = patch(&found, &self.service, &self.namespace, bundle) else { return Ok(true) };
            let parameters =
                PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
            match within(api.patch(&self.configuration, &parameters, &Patch::<()>::Json(patch))).await {
                Ok(_) => return Ok(true),
                // The test of the version failed.
                Err(failure) if left > 0 && matches!(failure.code(), Some(409 | 422)) => {}
                Err(failure) => return Err(failure),
            }
        }
        Ok(true)
    }
}

/// From what a configuration says to what it is to say. `None`: it says so already.
fn patch(configuration: &Value, service: &str, namespace: &str, bundle: &str) -> Option<json_patch::Patch> {
    let bundle = serde_json::to_value(ByteString(bundle.as_bytes().to_vec())).ok()?;
    let mut operations = Vec::new();
    for (at, webhook) in configuration["webhooks"].as_array()?.iter().enumerate() {
        let client = &webhook["clientConfig"];
        let is_ours = client["service"]["name"] == service && client["service"]["namespace"] == namespace;
        if is_ours && client["caBundle"] != bundle {
            operations.push(json!({ "op": "add", "path": format!("/webhooks/{at}/clientConfig/caBundle"), "value": bundle }));
        }
    }
    if operations.is_empty() {
        return None;
    }
    // Webhooks are told apart by their place here, which holds for this version only.
    let version = &configuration["metadata"]["resourceVersion"];
    operations.insert(0, json!({ "op": "test", "path": "/metadata/resourceVersion", "value": version }));
    serde_json::from_value(Value::Array(operations)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_webhooks_of_the_service_with_another_bundle_are_changed() {
        let webhook = |service: &str, namespace: &str| json!({ "name": "w", "clientConfig": { "service": { "name": service, "namespace": namespace } } });
        let mut configuration = json!({
            "metadata": { "resourceVersion": "7" },
            "webhooks": [webhook("other", "system"), webhook("ours", "system"), webhook("ours", "elsewhere"),
                { "name": "url", "clientConfig": { "url": "https://a" } }],
        });
        let change = patch(&configuration, "ours", "system", "PEM").unwrap();
        assert_eq!(change.0.len(), 2, "a test of the version, and one change");
        let before = configuration.clone();
        json_patch::patch(&mut configuration, &change).unwrap();
        let mut expected = before.clone();
        expected["webhooks"][1]["clientConfig"]["caBundle"] = json!("UEVN");
        assert_eq!(configuration, expected);
        assert!(patch(&configuration, "ours", "system", "PEM").is_none(), "said already");
        configuration["metadata"]["resourceVersion"] = json!("8");
        let outdated = patch(&before, "ours", "system", "other").unwrap();
        assert!(json_patch::patch(&mut configuration, &outdated).is_err());
        assert!(patch(&json!({}), "ours", "system", "PEM").is_none());
    }
}
