//! What `kubectl describe` says of batch resources, as the tutorial shows it.

use anyhow::Result;
use enforcer_rig::cluster::Cluster;

use super::objects::BATCH_NAMESPACE;

/// Beginnings of lines, once white space is made one. Those that are shown wherever they are, and those at the margin only:
/// volumes have names, too.
#[derive(Clone, Copy)]
struct Wanted<'a> {
    anywhere: &'a [&'a str],
    at_margin: &'a [&'a str],
}

const OF_CONDITIONS: Wanted = Wanted { anywhere: &["BatchThrottled"], at_margin: &[] };
const OF_RESOURCES: Wanted =
    Wanted { anywhere: &["Resource Requests", "kubernetes.io/batch-"], at_margin: &["Allocated resources:"] };
const OF_PODS: Wanted = Wanted {
    anywhere: &[
        "koordinator.sh/qosClass",
        "Limits:",
        "Requests:",
        "kubernetes.io/batch-",
        "Normal Scheduled",
    ],
    at_margin: &["Name:", "Priority", "Labels:", "QoS Class:"],
};

/// Of the node, and of the batch pods with these labels.
pub fn take(cluster: &Cluster, selector: &str) -> Result<String> {
    let node = cluster.ask(&["describe", "node", &cluster.node])?;
    let pods = cluster.ask(&["describe", "pods", "--namespace", BATCH_NAMESPACE, "--selector", selector])?;
    // Its capacity is the same.
    let (conditions, resources) = node.split_once("\nAllocatable:\n").unwrap_or_default();
    Ok(format!(
        "$ kubectl describe node {}\n{}Allocatable:\n{}\n$ kubectl -n {BATCH_NAMESPACE} describe pods\n{}",
        cluster.node,
        kept(conditions, OF_CONDITIONS),
        kept(resources, OF_RESOURCES),
        kept(&pods, OF_PODS)
    ))
}

fn kept(text: &str, wanted: Wanted) -> String {
    let is_wanted = |line: &&str| {
        let words = line.split_whitespace().collect::<Vec<_>>().join(" ");
        let begins = |beginnings: &[&str]| beginnings.iter().any(|beginning| words.starts_with(beginning));
        begins(wanted.anywhere) || (!line.starts_with(' ') && begins(wanted.at_margin))
    };
    text.lines().filter(is_wanted).flat_map(|line| [line, "\n"]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_kept_by_how_they_begin() {
        let text = "Name:         a\nNode:  n\n    Name:  b\n    Requests:\n      kubernetes.io/batch-cpu:  200\nVolumes: x\n";
        assert_eq!(
            kept(text, OF_PODS),
            "Name:         a\n    Requests:\n      kubernetes.io/batch-cpu:  200\n"
        );
    }
}
