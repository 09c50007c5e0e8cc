//! Label selectors, and why they do not match.
#![deny(clippy::disallowed_methods)]

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};
use kube::core::{Expression, SelectorExt as _};

use super::json::Strings;

/// A selector that has no meaning; Kubernetes refuses the same ones (`metav1.LabelSelectorAsSelector`).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {what}")]
pub struct BadSelector {
    /// Below the selector.
    pub field: String,
    pub what: String,
}

/// What is wanted and not there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unmet {
    /// As `kubectl --selector` takes it.
    pub wanted: String,
    /// `None`: there is no such label.
    pub found: Option<String>,
}

impl std::fmt::Display for Unmet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.found {
            Some(found) => write!(f, "wants {}, and it is {found:?}", self.wanted),
            None => write!(f, "wants {}, and there is no such label", self.wanted),
        }
    }
}

/// Whether it wants anything at all.
pub fn selects_all(selector: &LabelSelector) -> bool {
    selector.match_labels.as_ref().is_none_or(std::collections::BTreeMap::is_empty)
        && selector.match_expressions.as_ref().is_none_or(Vec::is_empty)
}

/// The first thing that is wanted and not there; `None`: the labels match.
///
/// # Errors
/// For a selector that has no meaning, whatever the labels.
pub fn unmet(selector: &LabelSelector, labels: &Strings) -> Result<Option<Unmet>, BadSelector> {
    let wanted = expressions(selector)?;
    Ok(wanted
        .into_iter()
        .find(|(_, expression)| !expression.matches(labels))
        .map(|(key, expression)| Unmet { wanted: expression.to_string(), found: labels.get(&key).cloned() }))
}

fn expressions(selector: &LabelSelector) -> Result<Vec<(String, Expression)>, BadSelector> {
    let equal = selector.match_labels.iter().flatten().map(|(key, value)| {
        check_label(key, std::slice::from_ref(value), &format!("matchLabels[{key}]"))?;
        Ok((key.clone(), Expression::Equal(key.clone(), value.clone())))
    });
    let others = selector.match_expressions.iter().flatten().enumerate().map(|(at, requirement)| {
        let expression = expression(requirement, &format!("matchExpressions[{at}]"))?;
        Ok((requirement.key.clone(), expression))
    });
    equal.chain(others).collect()
}

fn expression(requirement: &LabelSelectorRequirement, field: &str) -> Result<Expression, BadSelector> {
    let bad = |what: String| BadSelector { field: field.to_owned(), what };
    let values = requirement.values.as_deref().unwrap_or_default();
    match requirement.operator.as_str() {
        "In" | "NotIn" if values.is_empty() => {
            return Err(bad(format!("operator {} needs values", requirement.operator)));
        }
        "Exists" | "DoesNotExist" if !values.is_empty() => {
            return Err(bad(format!("operator {} takes no values", requirement.operator)));
        }
        "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
        other => return Err(bad(format!("operator {other:?} is none of In, NotIn, Exists, DoesNotExist"))),
    }
    check_label(&requirement.key, values, field)?;
    requirement.clone().try_into().map_err(|err: kube::core::ParseExpressionError| bad(err.0))
}

fn check_label(key: &str, values: &[String], field: &str) -> Result<(), BadSelector> {
    let bad = |what: String| Err(BadSelector { field: field.to_owned(), what });
    let (prefix, name) = key.rsplit_once('/').map_or((None, key), |(prefix, name)| (Some(prefix), name));
    if !is_name(name) || prefix.is_some_and(|prefix| !is_subdomain(prefix)) {
        return bad(format!("{key:?} is no name of a label"));
    }
    match values.iter().find(|value| !value.is_empty() && !is_name(value)) {
        Some(value) => bad(format!("{value:?} is no value of a label")),
        None => Ok(()),
    }
}

/// Kubernetes' qualified names without prefix, and values of labels (`k8s.io/apimachinery/pkg/util/validation`).
fn is_name(text: &str) -> bool {
    let is_inner = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let bytes = text.as_bytes();
    let ends_well = |end: Option<&u8>| end.is_some_and(u8::is_ascii_alphanumeric);
    bytes.len() <= 63
        && ends_well(bytes.first())
        && ends_well(bytes.last())
        && bytes.iter().all(|&byte| is_inner(byte))
}

fn is_subdomain(text: &str) -> bool {
    let is_part = |part: &str| {
        let bytes = part.as_bytes();
        let is_end =
            |end: Option<&u8>| end.is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
        is_end(bytes.first())
            && is_end(bytes.last())
            && bytes.iter().all(|&byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
    };
    text.len() <= 253 && text.split('.').all(is_part)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn selector(value: Value) -> LabelSelector {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn every_operator_matches_as_in_kubernetes() {
        let labels: Strings =
            [("app".to_owned(), "spark".to_owned()), ("empty".to_owned(), String::new())].into();
        for (value, expected) in [
            (json!({}), true),
            (json!({ "matchLabels": {}, "matchExpressions": [] }), true),
            (json!({ "matchLabels": { "app": "spark" } }), true),
            (json!({ "matchLabels": { "app": "flink" } }), false),
            (json!({ "matchLabels": { "empty": "" } }), true),
            (json!({ "matchLabels": { "other": "" } }), false),
            (
                json!({ "matchExpressions": [{ "key": "app", "operator": "In", "values": ["spark", "flink"] }] }),
                true,
            ),
            (
                json!({ "matchExpressions": [{ "key": "other", "operator": "In", "values": ["spark"] }] }),
                false,
            ),
            (
                json!({ "matchExpressions": [{ "key": "app", "operator": "NotIn", "values": ["spark"] }] }),
                false,
            ),
            (
                json!({ "matchExpressions": [{ "key": "other", "operator": "NotIn", "values": ["spark"] }] }),
                true,
            ),
            (json!({ "matchExpressions": [{ "key": "app", "operator": "Exists" }] }), true),
            (json!({ "matchExpressions": [{ "key": "other", "operator": "Exists" }] }), false),
            (json!({ "matchExpressions": [{ "key": "other", "operator": "DoesNotExist" }] }), true),
            (json!({ "matchExpressions": [{ "key": "app", "operator": "DoesNotExist" }] }), false),
            (
                json!({ "matchLabels": { "app": "spark" }, "matchExpressions": [{ "key": "x", "operator": "Exists" }] }),
                false,
            ),
        ] {
            let found = unmet(&selector(value.clone()), &labels).unwrap();
            assert_eq!(found.is_none(), expected, "{value} {found:?}");
        }
    }

    #[test]
    fn what_has_no_meaning_is_told_where() {
        for (value, field) in [
            (
                json!({ "matchExpressions": [{ "key": "a", "operator": "Equals", "values": ["b"] }] }),
                "matchExpressions[0]",
            ),
            (json!({ "matchExpressions": [{ "key": "a", "operator": "In" }] }), "matchExpressions[0]"),
            (
                json!({ "matchExpressions": [{ "key": "a", "operator": "NotIn", "values": [] }] }),
                "matchExpressions[0]",
            ),
            (
                json!({ "matchExpressions": [{ "key": "a", "operator": "Exists", "values": ["b"] }] }),
                "matchExpressions[0]",
            ),
            (
                json!({ "matchExpressions": [{ "key": "no key", "operator": "Exists" }] }),
                "matchExpressions[0]",
            ),
            (
                json!({ "matchExpressions": [{ "key": "a", "operator": "NotIn", "values": ["b c"] }] }),
                "matchExpressions[0]",
            ),
            (json!({ "matchLabels": { "a/b/c": "d" } }), "matchLabels[a/b/c]"),
        ] {
            let err = unmet(&selector(value.clone()), &Strings::new()).unwrap_err();
            assert_eq!(err.field, field, "{value}");
        }
    }

    #[test]
    fn the_reason_names_what_is_wanted_and_what_is_there() {
        let wants = selector(json!({ "matchLabels": { "app": "spark" } }));
        let found = |labels: &[(&str, &str)]| {
            let labels = labels.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect();
            unmet(&wants, &labels).unwrap().unwrap().to_string()
        };
        assert_eq!(found(&[("app", "web")]), "wants app=spark, and it is \"web\"");
        assert_eq!(found(&[]), "wants app=spark, and there is no such label");
    }
}
