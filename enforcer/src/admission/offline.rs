//! `enforcer mutate`: what the webhook would make of pods, without a cluster.

use std::{path::PathBuf, process::ExitCode};

use clap::Args;
use serde_json::Value;

use super::{
    known::{Known, Namespace},
    mutate::{DRAWS, Outcome, Refusal, mutate},
    offline_input::{self, Document, Error, Objects},
    validate::{Options, validate},
};

const AFTER_HELP: &str = "\
The mutated pod is printed as YAML to standard output; why each profile matched or not, what became of its resources, and what \
the validating webhook would say, to standard error.

Exit codes: 0, a pod was printed, changed or not; 1, the webhook would refuse the pod; 2, a file or an argument is wrong.

Example:
  enforcer mutate -f pod.yaml --objects profile.yaml namespace.yaml priority-classes.yaml
  kubectl get namespaces,priorityclasses,clustercolocationprofiles -o yaml > cluster.yaml
  kubectl run test --image=busybox --dry-run=client -o yaml | enforcer mutate -f - --objects cluster.yaml";

/// Arguments of `enforcer mutate`.
#[derive(Args, Clone, Debug)]
#[command(after_long_help = AFTER_HELP)]
pub struct MutateArgs {
    /// Pods in YAML or JSON, of which several documents or a List are taken; `-` reads standard input.
    #[arg(short, long, value_name = "FILE")]
    filename: PathBuf,
    /// `ClusterColocationProfiles`, and the Namespaces and `PriorityClasses` that they need.
    ///
    /// In YAML or JSON, several documents to a file or a List; other kinds are left out. Without its Namespace, a pod is
    /// selected by no profile that has a namespaceSelector.
    #[arg(long, value_name = "FILES", num_args = 1.., required = true)]
    objects: Vec<PathBuf>,
    /// What is drawn for profiles with a probability: one of p % is applied if it is below p. Default: at random, for each
    /// profile and pod.
    #[arg(long, value_name = "0..99", value_parser = clap::value_parser!(u8).range(0..i64::from(DRAWS)))]
    draw: Option<u8>,
    /// Leave cpu and memory as they are, as `enforcer webhook --skip-resources` does.
    #[arg(long)]
    skip_resources: bool,
    /// Namespace of pods that name none.
    #[arg(short, long, value_name = "NAME", default_value = "default")]
    namespace: String,
}

/// The webhook would refuse it.
const REFUSED: u8 = 1;
const WRONG: u8 = 2;

/// Prints what becomes of the pods.
pub fn run(args: &MutateArgs) -> ExitCode {
    match print_all(args) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(REFUSED),
        Err(err) => {
            eprintln!("enforcer: {err}");
            ExitCode::from(WRONG)
        }
    }
}

/// Whether none would be refused.
fn print_all(args: &MutateArgs) -> Result<bool, Error> {
    if args.objects.contains(&args.filename) && args.filename.as_os_str() == "-" {
        let what = "can be read for pods or for objects, not for both".to_owned();
        return Err(Error::Wrong { origin: "standard input".to_owned(), what });
    }
    let pods = offline_input::pods(&args.filename)?;
    let objects = Objects::read(&args.objects)?;
    for note in &objects.notes {
        eprintln!("note: {note}");
    }
    if objects.profiles.is_empty() {
        eprintln!("note: the objects hold no ClusterColocationProfile");
    }
    let mut all_well = true;
    let mut printed = Vec::new();
    for pod in &pods {
        match one(pod, args, &objects) {
            Ok(outcome) => {
                explain(pod, &outcome);
                printed.push(outcome.pod);
            }
            Err(refusal) => {
                all_well = false;
                eprintln!("{}: would be refused: {refusal}", pod.origin);
            }
        }
    }
    for (at, pod) in printed.iter().enumerate() {
        let text = serde_saphyr::to_string(pod).expect("BUG: JSON can be written as YAML");
        print!("{}{text}", if at > 0 { "---\n" } else { "" });
    }
    Ok(all_well)
}

fn one(pod: &Document, args: &MutateArgs, objects: &Objects) -> Result<Outcome, Refusal> {
    let named =
        pod.value.get("metadata").and_then(|metadata| metadata.get("namespace")).and_then(Value::as_str);
    let namespace = named.filter(|name| !name.is_empty()).unwrap_or(&args.namespace);
    let known = Known {
        profiles: objects.profiles.values().collect(),
        namespace: objects
            .namespaces
            .get(namespace)
            .map_or_else(|| Namespace::unknown(namespace), |labels| Namespace::known(namespace, labels)),
        priority_classes: objects.priority_classes.clone(),
        skip_resources: args.skip_resources,
    };
    let asked = as_asked(&pod.value, &known);
    let mut outcome = mutate(&asked, &known, &mut || args.draw.unwrap_or_else(|| fastrand::u8(0..DRAWS)))?;
    if outcome.pod == asked {
        outcome.pod.clone_from(&pod.value);
    }
    Ok(outcome)
}

/// The API server fills in the priority of a pod that names a class before it asks the webhook.
fn as_asked(pod: &Value, known: &Known<'_>) -> Value {
    let mut pod = pod.clone();
    let Some(spec) = pod.get_mut("spec").and_then(Value::as_object_mut) else { return pod };
    let class = spec.get("priorityClassName").and_then(Value::as_str);
    let is_open = spec.get("priority").is_none_or(Value::is_null);
    match class
        .filter(|class| is_open && !class.is_empty())
        .map(|class| (class, known.priority_classes.get(class)))
    {
        Some((_, Some(class))) => {
            spec.insert("priority".to_owned(), class.value.into());
            spec.insert("preemptionPolicy".to_owned(), class.preemption_policy.clone().into());
        }
        Some((class, None)) => eprintln!(
            "note: the objects hold no PriorityClass {class}, which the pod names: it counts for none"
        ),
        None => {}
    }
    pod
}

fn explain(pod: &Document, outcome: &Outcome) {
    eprintln!("{}:", pod.origin);
    for (name, verdict) in &outcome.verdicts {
        eprintln!("  profile {name}: {verdict}");
    }
    eprintln!("  resources: {}", outcome.resources);
    if outcome.pod == pod.value {
        eprintln!("  the pod stays as it is");
    }
    // What is said of profiles stands above.
    for warning in outcome.warnings.iter().filter(|warning| !warning.starts_with("ClusterColocationProfile"))
    {
        eprintln!("  warning: {warning}");
    }
    match validate(&outcome.pod, None, Options::default()) {
        Ok(findings) => {
            for warning in findings.warnings {
                eprintln!("  warning: {warning}");
            }
            for violation in findings.violations {
                eprintln!("  the validating webhook would refuse it: {violation}");
            }
        }
        Err(malformed) => eprintln!("  the validating webhook would refuse it: {malformed}"),
    }
}
