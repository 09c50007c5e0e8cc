//! Admission: what becomes of a pod before the API server stores it, as Koordinator's webhook does it (koordinator
//! `pkg/webhook/pod`, `apis/config/v1alpha1`).
//!
//! [`mutate`] and [`validate`] are pure: a pod and what is known of the cluster in, a pod and the reasons out. No clock, no
//! file, no API server, and the dice are thrown by the caller. [`offline`] asks them about files, [`webhook`] for the API
//! server. Pods are plain JSON throughout, so that fields which this version does not know survive.

mod apply;
pub mod convert;
mod extended_spec;
mod json;
pub mod known;
mod merge;
pub mod mutate;
pub mod offline;
mod offline_input;
pub mod pod;
pub mod profile;
mod record;
pub mod selector;
pub mod validate;
pub mod webhook;

#[cfg(test)]
mod tests;
