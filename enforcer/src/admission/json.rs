//! Places in a pod that is plain JSON.
#![deny(clippy::disallowed_methods)]

use std::collections::BTreeMap;

use serde_json::{Map, Value};

/// Labels or annotations.
pub type Strings = BTreeMap<String, String>;

/// Something that no pod has there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {what}")]
pub struct Malformed {
    /// As `kubectl explain` names it: `spec.containers[0].resources`.
    pub field: String,
    pub what: String,
}

impl Malformed {
    pub fn new(field: impl Into<String>, what: impl Into<String>) -> Self {
        Self { field: field.into(), what: what.into() }
    }
}

/// What lies under a key; `null` is nothing.
pub fn get<'a>(value: &'a Value, key: &str) -> Option<&'a Value> {
    value.get(key).filter(|found| !found.is_null())
}

/// A map, or none.
///
/// # Errors
/// For anything else.
pub fn map<'a>(value: Option<&'a Value>, field: &str) -> Result<Option<&'a Map<String, Value>>, Malformed> {
    match value {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Object(map)) => Ok(Some(map)),
        Some(other) => Err(Malformed::new(field, format!("must be a map, and is {}", kind(other)))),
    }
}

/// A list, or an empty one.
///
/// # Errors
/// For anything else.
pub fn list<'a>(value: Option<&'a Value>, field: &str) -> Result<&'a [Value], Malformed> {
    match value {
        None | Some(Value::Null) => Ok(&[]),
        Some(Value::Array(list)) => Ok(list),
        Some(other) => Err(Malformed::new(field, format!("must be a list, and is {}", kind(other)))),
    }
}

/// The map under a key, made where there is none.
///
/// # Errors
/// Where something else is there.
pub fn map_in<'a>(
    parent: &'a mut Map<String, Value>,
    key: &str,
    field: &str,
) -> Result<&'a mut Map<String, Value>, Malformed> {
    let value = parent.entry(key).or_insert(Value::Null);
    if value.is_null() {
        *value = Value::Object(Map::new());
    }
    match value {
        Value::Object(map) => Ok(map),
        other => Err(Malformed::new(field, format!("must be a map, and is {}", kind(other)))),
    }
}

/// The pod itself, as a map.
///
/// # Errors
/// For anything else.
pub fn object(pod: &mut Value) -> Result<&mut Map<String, Value>, Malformed> {
    match pod {
        Value::Object(map) => Ok(map),
        other => Err(Malformed::new("pod", format!("must be a map, and is {}", kind(other)))),
    }
}

/// `metadata.labels` or `metadata.annotations`.
///
/// # Errors
/// Where that is no map from strings to strings.
pub fn strings(pod: &Value, key: &str) -> Result<Strings, Malformed> {
    map(pod.get("metadata"), "metadata")?;
    let field = format!("metadata.{key}");
    let Some(found) = map(pod.get("metadata").and_then(|metadata| metadata.get(key)), &field)? else {
        return Ok(Strings::new());
    };
    let text = |(name, value): (&String, &Value)| match value {
        Value::String(text) => Ok((name.clone(), text.clone())),
        // As Go reads it into a string.
        Value::Null => Ok((name.clone(), String::new())),
        other => Err(Malformed::new(
            format!("{field}[{name}]"),
            format!("must be a string, and is {}: put it in quotes", kind(other)),
        )),
    };
    found.iter().map(text).collect()
}

/// Writes `metadata.labels` or `metadata.annotations`, and nothing if they are the same.
///
/// # Errors
/// Where that is no map from strings to strings.
pub fn set_strings(pod: &mut Value, key: &str, strings_now: &Strings) -> Result<(), Malformed> {
    if strings(pod, key)? == *strings_now {
        return Ok(());
    }
    let metadata = map_in(object(pod)?, "metadata", "metadata")?;
    if strings_now.is_empty() {
        metadata.remove(key);
        return Ok(());
    }
    let map = strings_now.iter().map(|(name, value)| (name.clone(), Value::String(value.clone()))).collect();
    metadata.insert(key.to_owned(), Value::Object(map));
    Ok(())
}

/// What a value is, for a message.
pub const fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "nothing",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "a map",
    }
}
