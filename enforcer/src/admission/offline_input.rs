//! Kubernetes objects in files, in YAML or JSON, and what is wrong with them.

use std::{
    collections::BTreeMap,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use k8s_openapi::api::{
    core::v1::{Namespace as ApiNamespace, Pod},
    scheduling::v1::PriorityClass as ApiPriorityClass,
};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{
    json::{Strings, get, kind},
    known::PriorityClass,
    profile::{ClusterColocationProfile, FIELDS},
};

const PROFILE_VERSION: &str = "config.koordinator.sh/v1alpha1";
/// Stands for standard input.
const STDIN: &str = "-";

/// What is wrong with a file, where, and the cure.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{}: {source}", name(path))]
    Unreadable { path: PathBuf, source: io::Error },
    #[error("{}: {what}", name(path))]
    Syntax { path: PathBuf, what: String },
    #[error("{origin}: {what}")]
    Wrong { origin: String, what: String },
}

/// One object, and where it comes from.
#[derive(Clone, Debug)]
pub struct Document {
    /// `profiles.yaml, document 2 (ClusterColocationProfile spark)`.
    pub origin: String,
    pub value: Value,
}

impl Document {
    fn wrong(&self, what: impl Into<String>) -> Error {
        Error::Wrong { origin: self.origin.clone(), what: what.into() }
    }

    fn text(&self, key: &str) -> &str {
        get(&self.value, key).and_then(Value::as_str).unwrap_or_default()
    }

    fn named(&self) -> Result<&str, Error> {
        let name =
            get(&self.value, "metadata").and_then(|metadata| get(metadata, "name")).and_then(Value::as_str);
        name.filter(|name| !name.is_empty()).ok_or_else(|| self.wrong("metadata.name is missing"))
    }

    /// Read as what Kubernetes takes it for.
    fn read<T: DeserializeOwned>(&self) -> Result<T, Error> {
        serde_path_to_error::deserialize(&self.value).map_err(|err| {
            let path = err.path().to_string();
            self.wrong(format!("{path}: {}", err.into_inner()))
        })
    }
}

fn name(path: &Path) -> String {
    if path == Path::new(STDIN) { "standard input".to_owned() } else { path.display().to_string() }
}

/// All objects of a file, those of lists one by one. `-` is standard input.
///
/// # Errors
/// For a file that cannot be read, or holds something else.
pub fn read(path: &Path) -> Result<Vec<Document>, Error> {
    let unreadable = |source| Error::Unreadable { path: path.to_owned(), source };
    let text = if path == Path::new(STDIN) {
        let mut text = String::new();
        io::stdin().read_to_string(&mut text).map_err(unreadable)?;
        text
    } else {
        std::fs::read_to_string(path).map_err(unreadable)?
    };
    let values = parse(&text).map_err(|what| Error::Syntax { path: path.to_owned(), what })?;
    let only_one = values.len() == 1;
    let mut documents = Vec::new();
    for (at, value) in values.into_iter().enumerate().filter(|(_, value)| !value.is_null()) {
        let origin = if only_one { name(path) } else { format!("{}, document {}", name(path), at + 1) };
        flatten(value, origin, &mut documents)?;
    }
    Ok(documents)
}

/// JSON is YAML, too, but for a file of several JSON objects one after the other.
fn parse(text: &str) -> Result<Vec<Value>, String> {
    if text.trim_start().starts_with('{') {
        let json: Result<Vec<Value>, _> = serde_json::Deserializer::from_str(text).into_iter().collect();
        if let Ok(values) = json {
            return Ok(values);
        }
    }
    serde_saphyr::from_multiple(text).map_err(|err| {
        let text = err.without_snippet().to_string();
        let first = text.lines().next().unwrap_or_default();
        format!("is neither YAML nor JSON: {first}")
    })
}

fn flatten(value: Value, origin: String, into: &mut Vec<Document>) -> Result<(), Error> {
    let document = Document { origin, value };
    if !document.value.is_object() {
        return Err(document.wrong(format!("holds {}, not a Kubernetes object", kind(&document.value))));
    }
    let kind = document.text("kind").to_owned();
    if kind.is_empty() {
        return Err(document.wrong("kind is missing"));
    }
    if kind.ends_with("List") {
        let item_kind = kind.trim_end_matches("List");
        let items = match get(&document.value, "items") {
            Some(Value::Array(items)) => items.clone(),
            None => Vec::new(),
            Some(_) => return Err(document.wrong("items must be a list")),
        };
        for (at, mut item) in items.into_iter().enumerate() {
            // The API server leaves them out of the items of a typed list.
            if let (Value::Object(item), false) = (&mut item, item_kind.is_empty()) {
                item.entry("kind").or_insert_with(|| item_kind.into());
                item.entry("apiVersion").or_insert_with(|| document.text("apiVersion").into());
            }
            flatten(item, format!("{}, item {}", document.origin, at + 1), into)?;
        }
        return Ok(());
    }
    let prefix = get(&document.value, "metadata").and_then(|metadata| get(metadata, "generateName"));
    let name = match (document.named(), prefix.and_then(Value::as_str)) {
        (Ok(name), _) => name.to_owned(),
        (Err(_), Some(prefix)) => format!("{prefix}*"),
        (Err(_), None) => "without a name".to_owned(),
    };
    into.push(Document { origin: format!("{} ({kind} {name})", document.origin), ..document });
    Ok(())
}

/// The pods that a file holds, checked.
///
/// # Errors
/// [`Error`]; for anything but pods, too.
pub fn pods(path: &Path) -> Result<Vec<Document>, Error> {
    let documents = read(path)?;
    if documents.is_empty() {
        return Err(Error::Syntax { path: path.to_owned(), what: "holds no Pod".to_owned() });
    }
    for document in &documents {
        let (kind, version) = (document.text("kind"), document.text("apiVersion"));
        if kind != "Pod" {
            return Err(
                document.wrong(format!("is a {kind}: give Pods, such as `kubectl get pod -o yaml` prints"))
            );
        }
        if version != "v1" {
            return Err(document.wrong(format!("apiVersion is {version:?}, and Pods are of \"v1\"")));
        }
        document.read::<Pod>()?;
    }
    Ok(documents)
}

/// What the files know of a cluster.
#[derive(Clone, Debug, Default)]
pub struct Objects {
    pub profiles: BTreeMap<String, ClusterColocationProfile>,
    /// With their labels.
    pub namespaces: BTreeMap<String, Strings>,
    pub priority_classes: BTreeMap<String, PriorityClass>,
    /// What the reader should know; whole sentences.
    pub notes: Vec<String>,
}

impl Objects {
    /// Of several objects with one name the last one counts, as if they were applied in this order.
    ///
    /// # Errors
    /// [`Error`], of the first file that is wrong.
    pub fn read(paths: &[PathBuf]) -> Result<Self, Error> {
        let mut objects = Self::default();
        let mut others = BTreeMap::<String, usize>::new();
        for path in paths {
            for document in read(path)? {
                objects.add(&document, &mut others)?;
            }
        }
        for (kind, count) in others {
            objects.notes.push(format!("{count} of kind {kind} left out: profiles do not depend on them"));
        }
        Ok(objects)
    }

    fn add(&mut self, document: &Document, others: &mut BTreeMap<String, usize>) -> Result<(), Error> {
        let kind = document.text("kind");
        let is_new = match kind {
            "ClusterColocationProfile" => {
                check_profile(document)?;
                let profile: ClusterColocationProfile = document.read()?;
                self.profiles.insert(document.named()?.to_owned(), profile).is_none()
            }
            "Namespace" => {
                let namespace: ApiNamespace = document.read()?;
                let labels = namespace.metadata.labels.unwrap_or_default();
                self.namespaces.insert(document.named()?.to_owned(), labels).is_none()
            }
            "PriorityClass" => {
                let class: ApiPriorityClass = document.read()?;
                self.priority_classes.insert(document.named()?.to_owned(), (&class).into()).is_none()
            }
            _ => {
                *others.entry(kind.to_owned()).or_default() += 1;
                true
            }
        };
        if !is_new {
            self.notes.push(format!("{}: replaces an earlier object of this name", document.origin));
        }
        Ok(())
    }
}

fn check_profile(document: &Document) -> Result<(), Error> {
    let version = document.text("apiVersion");
    if version != PROFILE_VERSION {
        return Err(document.wrong(format!("apiVersion is {version:?}, and must be {PROFILE_VERSION:?}")));
    }
    let Some(spec) = get(&document.value, "spec").and_then(Value::as_object) else { return Ok(()) };
    if let Some(unknown) = spec.keys().find(|key| !FIELDS.contains(&key.as_str())) {
        return Err(document.wrong(format!("spec.{unknown}: no such field; there are {}", FIELDS.join(", "))));
    }
    let qos = spec.get("qosClass").and_then(Value::as_str).filter(|qos| !qos.is_empty());
    if let Some(qos) = qos.filter(|qos| !["LSE", "LSR", "LS", "BE", "SYSTEM"].contains(qos)) {
        return Err(document.wrong(format!("spec.qosClass: {qos:?} is none of LSE, LSR, LS, BE, SYSTEM")));
    }
    Ok(())
}
