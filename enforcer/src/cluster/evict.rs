//! Evictions, by the API that honours disruption budgets.

use k8s_openapi::{
    api::{core::v1::Pod, policy::v1::Eviction},
    apimachinery::pkg::apis::meta::v1::{DeleteOptions, ObjectMeta, Preconditions},
};
use kube::{Api, Client, core::Status};

use super::{
    connection::{Failure, parameters, within},
    notes::PodRef,
};

/// What came of one.
#[derive(Debug)]
pub enum Outcome {
    Evicted,
    /// It was gone, or another one of the same name is there now.
    Gone,
    /// A disruption budget forbids it now.
    Protected(String),
}

/// Evicts this very pod, and no later one of the same name.
///
/// # Errors
/// What else the API server says.
pub async fn evict(client: &Client, pod: &PodRef) -> Result<Outcome, Failure> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), &pod.namespace);
    // `Api::evict` of kube 5.0 names the field of the preconditions so that the API server does not see it.
    let eviction = Eviction {
        metadata: ObjectMeta {
            name: Some(pod.name.clone()),
            namespace: Some(pod.namespace.clone()),
            ..ObjectMeta::default()
        },
        delete_options: Some(DeleteOptions {
            preconditions: Some(Preconditions { uid: Some(pod.uid.clone()), ..Preconditions::default() }),
            ..DeleteOptions::default()
        }),
    };
    let answer: Result<Status, Failure> =
        within(pods.create_subresource("eviction", &pod.name, &parameters(), &eviction)).await;
    match answer {
        Ok(_) => Ok(Outcome::Evicted),
        Err(failure) => match failure.code() {
            Some(404 | 409) => Ok(Outcome::Gone),
            Some(429) => Ok(Outcome::Protected(failure.message())),
            _ => Err(failure),
        },
    }
}
