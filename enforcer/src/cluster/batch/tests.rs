//! Nodes and reports as in Koordinator's tests, and what is made of them.

use k8s_openapi::api::core::v1 as core;

use super::*;
use crate::{cluster::objects::NodeMetric, decision::batch::calculate};

fn yaml<T: DeserializeOwned>(text: &str) -> T {
    serde_saphyr::from_str(text).unwrap()
}

const NODE: &str = "
metadata:
  name: n1
  annotations:
    node.koordinator.sh/reservation: '{\"resources\":{\"cpu\":\"500m\",\"memory\":\"1Gi\"},\"reservedCPUs\":\"0-1\"}'
    node.koordinator.sh/cpu-normalization-ratio: '1.25'
    node.koordinator.sh/thirdPartyAllocations: '{\"allocations\":[
      {\"name\":\"yarn\",\"priority\":\"koord-batch\",\"resources\":{\"kubernetes.io/batch-cpu\":\"1000\",\"kubernetes.io/batch-memory\":\"2Gi\"}},
      {\"name\":\"other\",\"priority\":\"koord-mid\",\"resources\":{\"kubernetes.io/batch-cpu\":\"7777\"}}]}'
status:
  capacity: { cpu: '16', memory: 32Gi }
  allocatable: { cpu: 15500m, memory: 31Gi, kubernetes.io/batch-cpu: '4000', kubernetes.io/batch-memory: 8Gi }
";

const METRIC: &str = "
apiVersion: slo.koordinator.sh/v1alpha1
kind: NodeMetric
metadata: { name: n1 }
spec: {}
status:
  updateTime: '2026-07-24T06:52:45Z'
  nodeMetric:
    nodeUsage: { resources: { cpu: '5', memory: 10Gi } }
    systemUsage: { resources: { cpu: 1500m, memory: 2Gi } }
  podsMetric:
  - { name: web, namespace: a, podUsage: { resources: { cpu: '1', memory: 1Gi } }, priority: koord-prod, qos: LS }
  - { name: job, namespace: a, podUsage: { resources: { cpu: '3', memory: 4Gi } }, priority: koord-batch, qos: BE }
  - { name: gone, namespace: a, podUsage: { resources: { cpu: 250m, memory: 256Mi } }, priority: koord-prod, qos: LS }
  - { name: gone-job, namespace: a, podUsage: { resources: { cpu: '9' } }, priority: koord-batch, qos: BE }
  - { name: gone-plain, namespace: a, podUsage: { resources: { cpu: 50m } } }
  hostApplicationMetric:
  - { name: nginx, usage: { resources: { cpu: 700m, memory: 1Gi } }, priority: koord-prod, qos: LS }
  - { name: yarn, usage: { resources: { cpu: '2' } }, priority: koord-batch, qos: BE }
";

fn pods() -> Vec<Pod> {
    [
        "metadata: { name: web, namespace: a, uid: u1 }\nspec: { containers: [{ name: x, resources: { requests: { cpu: 4, memory: 2Gi } } }] }\nstatus: { phase: Running }",
        "metadata: { name: new, namespace: a, uid: u2 }\nspec: { containers: [{ name: x, resources: { requests: { cpu: 600m, memory: 512Mi } } }] }\nstatus: { phase: Pending }",
        "metadata: { name: done, namespace: a, uid: u3 }\nspec: { containers: [{ name: x, resources: { requests: { cpu: 5 } } }] }\nstatus: { phase: Succeeded }",
        "metadata: { name: job, namespace: a, uid: u4, labels: { koordinator.sh/qosClass: BE } }\nspec: { priority: 5000, containers: [{ name: x }] }\nstatus: { phase: Running }",
    ]
    .map(|text| Pod::of(&yaml::<core::Pod>(text)).unwrap())
    .to_vec()
}

#[test]
fn every_object_gives_its_part() {
    let metric: NodeMetric = yaml(METRIC);
    let inputs = inputs(&yaml(NODE), &pods(), &metric.status.unwrap()).unwrap();
    let amounts = |cpu_milli, memory_mib: i64| Amounts { cpu_milli, memory_bytes: memory_mib << 20 };
    assert_eq!(inputs.capacity, amounts(16_000, 32 << 10));
    assert_eq!(inputs.reserved_by_annotation, amounts(2_000, 1 << 10), "named CPUs win");
    assert_eq!(inputs.system_used, amounts(1_500, 2 << 10));
    assert_eq!(inputs.host_applications_used, amounts(700, 1 << 10));
    assert_eq!(inputs.dangling_used, amounts(300, 256));
    assert_eq!(inputs.third_party, amounts(1_000, 2 << 10));
    assert_eq!(inputs.cpu_normalization_ratio, Some(1.25));
    assert_eq!(inputs.pods.len(), 2, "running and pending ones that go before batch work");
    let batch = calculate(&inputs, &Strategy::default());
    // 16,000 - 6,400 - max(2,000, 1,500 + 700) - (1,000 + 600 + 300), times 1.25, minus 1,000.
    assert_eq!((batch.cpu.calculated, batch.cpu.origin, batch.cpu.batch), (5_500, 6_875, 5_875));
}

#[test]
fn what_a_node_offers_now_is_in_its_status() {
    assert_eq!(offered(&yaml(NODE)), Ok(Some(Amounts { cpu_milli: 4_000, memory_bytes: 8 << 30 })));
    assert_eq!(offered(&yaml("status: { allocatable: { cpu: 2 } }")), Ok(None));
    assert_eq!(offered(&Node::default()), Ok(None));
}

#[test]
fn annotations_that_cannot_be_read_are_told_by_name() {
    for (name, value) in [
        (RESERVATION, "{"),
        (RESERVATION, r#"{"reservedCPUs":"a-b"}"#),
        (RESERVATION, r#"{"resources":{"cpu":"lots"}}"#),
        (NORMALIZATION_RATIO, "fast"),
        (THIRD_PARTY_ALLOCATIONS, "[]"),
    ] {
        let mut node: Node = yaml(NODE);
        node.metadata.annotations = Some([(name.to_owned(), value.to_owned())].into());
        let err = of_node(&node).expect_err(value);
        assert!(err.to_string().starts_with(name), "{err}");
    }
}

#[test]
fn old_reports_lend_nothing() {
    let at = |text: &str| Time(text.parse().unwrap());
    let on = Strategy { enable: true, ..Strategy::default() };
    let reported = at("2026-07-24T06:00:00Z");
    assert_eq!(may_lend(&on, Some(&reported), &at("2026-07-24T06:15:00Z")), Ok(()));
    let late = may_lend(&on, Some(&reported), &at("2026-07-24T06:15:01Z"));
    assert_eq!(late, Err(Nothing::TooOld { age_seconds: 901, limit_seconds: 900 }));
    assert_eq!(may_lend(&on, None, &reported), Err(Nothing::NeverReported));
    assert_eq!(may_lend(&Strategy::default(), Some(&reported), &reported), Err(Nothing::SwitchedOff));
}

#[test]
fn the_origin_is_noted_as_koordinator_does() {
    let (name, value) = origin_annotation(Amounts { cpu_milli: 6_875, memory_bytes: 1 << 30 });
    assert_eq!(name, "node.koordinator.sh/originExtendedAllocatable");
    assert_eq!(
        value,
        r#"{"resources":{"kubernetes.io/batch-cpu":"6875","kubernetes.io/batch-memory":"1073741824"}}"#
    );
}
