//! Pods as the API server shows them, and what they are taken for.

use super::*;

fn pod(yaml: &str) -> Pod {
    let whole: core::Pod = serde_saphyr::from_str(yaml).unwrap();
    let pod = Pod::of(&whole).unwrap();
    let told: told::ToldPod = serde_json::from_value(serde_json::to_value(&whole).unwrap()).unwrap();
    assert_eq!(Pod::of(&told.0).as_ref(), Ok(&pod), "something was passed over that makes a difference");
    pod
}

const SPARK_EXECUTOR: &str = "
metadata:
  name: exec-1
  namespace: spark-demo
  uid: 0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9
  labels:
    koordinator.sh/qosClass: BE
    koordinator.sh/priority: '1000'
    spark-app-selector: spark-7
spec:
  priority: 5000
  containers:
  - name: executor
    resources:
      requests: { kubernetes.io/batch-cpu: 1000, kubernetes.io/batch-memory: 3456Mi }
      limits: { kubernetes.io/batch-cpu: 1000, kubernetes.io/batch-memory: 3456Mi }
status:
  phase: Running
  qosClass: BestEffort
  containerStatuses:
  - { name: executor, containerID: 'containerd://5f2c1c9a8e0d4b7a', image: x, imageID: x, ready: true, restartCount: 0 }
";

#[test]
fn a_spark_executor_on_lent_resources_is_best_effort() {
    let pod = pod(SPARK_EXECUTOR);
    assert_eq!((pod.role(), pod.priority_with_default()), (Role::BestEffort, Priority::Batch));
    assert!(!pod.is_high_priority() && pod.is_active);
    assert_eq!(pod.batch_request, Amounts { cpu_milli: 1_000, memory_bytes: 3456 << 20 });
    assert_eq!(pod.request, Amounts::default());
    let container = &pod.containers[0];
    assert_eq!(container.id.as_deref(), Some("5f2c1c9a8e0d4b7a"));
    assert_eq!(container.batch.limit.cpu_milli, Some(1_000));
    assert_eq!((pod.workload.as_str(), pod.sub_priority), ("spark-demo/spark/spark-7", 1_000));
}

#[test]
fn roles_follow_the_label_or_else_kubernetes_class() {
    let of = |label: &str, priority: i32, resources: &str| {
        let label =
            if label.is_empty() { String::new() } else { format!("koordinator.sh/qosClass: {label}") };
        pod(&format!(
            "metadata: {{ name: a, namespace: b, uid: c, labels: {{ {label} }} }}\n\
             spec: {{ priority: {priority}, containers: [{{ name: x, resources: {{ {resources} }} }}] }}"
        ))
    };
    let burstable = "requests: { cpu: 100m }";
    let guaranteed = "limits: { cpu: 1, memory: 1Gi }";
    for (label, priority, resources, role, qos, high) in [
        ("", 0, "", Role::BestEffort, Qos::Be, false),
        ("", 0, burstable, Role::LatencySensitive, Qos::Ls, true),
        ("", 0, guaranteed, Role::LatencySensitive, Qos::Lsr, true),
        ("", SYSTEM_CRITICAL, "", Role::System, Qos::Be, false),
        ("", SYSTEM_CRITICAL, burstable, Role::System, Qos::Ls, true),
        ("BE", 5_500, burstable, Role::BestEffort, Qos::Be, false),
        ("LS", 7_500, "", Role::LatencySensitive, Qos::Ls, true),
        ("LS", 3_500, "", Role::LatencySensitive, Qos::Ls, false),
        ("SYSTEM", 0, "", Role::System, Qos::System, true),
        ("nonsense", 0, burstable, Role::LatencySensitive, Qos::Ls, true),
    ] {
        let pod = of(label, priority, resources);
        let found = (pod.role(), pod.qos_with_default(), pod.is_high_priority());
        assert_eq!(found, (role, qos, high), "{label:?} {priority} {resources}");
    }
}

#[test]
fn a_static_pods_directory_has_its_config_hash() {
    let pod = pod("metadata: { name: etcd-n1, namespace: kube-system, uid: mirror, annotations: { \
         kubernetes.io/config.hash: 4c96d4a1e5b06c1d1ae6bd3a2b8c7f0e, kubernetes.io/config.source: file } }\n\
         spec: { containers: [{ name: etcd }] }");
    assert_eq!((pod.cgroup_uid.as_str(), pod.is_static), ("4c96d4a1e5b06c1d1ae6bd3a2b8c7f0e", true));
}

#[test]
fn requests_are_the_schedulers() {
    let pod = pod("metadata: { name: a, namespace: b, uid: c }\n\
         spec:\n  overhead: { cpu: 250m, memory: 120Mi }\n  initContainers:\n\
         \x20 - { name: migrate, resources: { requests: { cpu: 2, memory: 100Mi } } }\n\
         \x20 - { name: proxy, restartPolicy: Always, resources: { requests: { cpu: 100m, memory: 64Mi } } }\n\
         \x20 - { name: late, resources: { requests: { cpu: 300m, memory: 1Gi } } }\n\
         \x20 containers:\n  - { name: web, resources: { requests: { cpu: 500m, memory: 256Mi } } }\n\
         \x20 - { name: log }\n");
    // CPU: the first init container; memory: the last one beside the sidecar.
    assert_eq!(pod.request, Amounts { cpu_milli: 2_250, memory_bytes: (1_024 + 64 + 120) << 20 });
}

#[test]
fn the_webhooks_annotation_stands_in_for_a_spec_without_batch_resources() {
    let pod = pod(
        "metadata: { name: a, namespace: b, uid: c, annotations: { node.koordinator.sh/extended-resource-spec: \
         '{\"containers\":{\"x\":{\"requests\":{\"kubernetes.io/batch-cpu\":\"500\"},\"limits\":{\"kubernetes.io/batch-memory\":\"1Gi\"}}}}' } }\n\
         spec: { containers: [{ name: x }, { name: y }] }",
    );
    let batch = |place: usize| pod.containers[place].batch;
    assert_eq!((batch(0).request.cpu_milli, batch(0).limit.memory_bytes), (Some(500), Some(1 << 30)));
    assert_eq!((batch(0).limit.cpu_milli, batch(1)), (None, BatchResources::default()));
}

#[test]
fn who_may_evict_a_pod_is_in_its_annotations() {
    let eviction = |annotation: &str| {
        let text = format!(
            "metadata: {{ name: a, namespace: b, uid: c, labels: {{ koordinator.sh/eviction-enabled: 'true' }}, \
             annotations: {{ koordinator.sh/eviction-priority: '-3', koordinator.sh/eviction-policy: '{annotation}' }} }}\n\
             spec: {{ containers: [{{ name: x }}] }}"
        );
        pod(&text).eviction
    };
    let found = eviction("[\"MemoryEvict\"]");
    assert_eq!((found.is_enabled, found.priority), (true, -3));
    assert_eq!(found.policy, Some(vec!["MemoryEvict".to_owned()]));
    assert_eq!(eviction("MemoryEvict").policy, Some(Vec::new()), "what cannot be read allows nothing");
}

#[test]
fn what_is_no_quantity_names_the_pod() {
    let pod: core::Pod = serde_saphyr::from_str(
        "metadata: { name: a, namespace: b, uid: c }\nspec: { containers: [{ name: x, resources: { requests: { cpu: many } } }] }",
    )
    .unwrap();
    assert!(Pod::of(&pod).unwrap_err().to_string().contains("pod b/a: `many` is no quantity"));
}
