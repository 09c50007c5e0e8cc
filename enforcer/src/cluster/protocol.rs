//! Koordinator's names and values, to the letter (koordinator `apis/extension`), and the few of enforcer's own.

/// Milli-cores, as a plain integer.
pub const BATCH_CPU: &str = "kubernetes.io/batch-cpu";
/// Bytes.
pub const BATCH_MEMORY: &str = "kubernetes.io/batch-memory";
pub const MID_CPU: &str = "kubernetes.io/mid-cpu";
pub const MID_MEMORY: &str = "kubernetes.io/mid-memory";

/// Labels of pods.
pub const QOS_CLASS: &str = "koordinator.sh/qosClass";
pub const PRIORITY_CLASS: &str = "koordinator.sh/priority-class";
pub const PRIORITY: &str = "koordinator.sh/priority";
pub const EVICTION_ENABLED: &str = "koordinator.sh/eviction-enabled";

/// Annotations of pods.
pub const EXTENDED_RESOURCE_SPEC: &str = "node.koordinator.sh/extended-resource-spec";
pub const EVICTION_POLICY: &str = "koordinator.sh/eviction-policy";
pub const EVICTION_PRIORITY: &str = "koordinator.sh/eviction-priority";
pub const MEMORY_QOS: &str = "koordinator.sh/memoryQOS";
pub const CPU_BURST: &str = "koordinator.sh/cpuBurst";
/// Kubelet's: by which hash a static pod's directory is named.
pub const CONFIG_HASH: &str = "kubernetes.io/config.hash";
pub const CONFIG_MIRROR: &str = "kubernetes.io/config.mirror";
/// What an LS pod may expect, as JSON: `{"requestLatency":{"p99":"5ms"}}`.
pub const SLO: &str = "enforcer.dev/slo";

/// Annotations of nodes.
pub const COLOCATION_STRATEGY: &str = "node.koordinator.sh/colocation-strategy";
pub const RESERVATION: &str = "node.koordinator.sh/reservation";
pub const NORMALIZATION_RATIO: &str = "node.koordinator.sh/cpu-normalization-ratio";
pub const ORIGIN_ALLOCATABLE: &str = "node.koordinator.sh/originExtendedAllocatable";
pub const THIRD_PARTY_ALLOCATIONS: &str = "node.koordinator.sh/thirdPartyAllocations";

/// Labels of nodes.
pub const CPU_RECLAIM_RATIO: &str = "node.koordinator.sh/cpu-reclaim-ratio";
pub const MEMORY_RECLAIM_RATIO: &str = "node.koordinator.sh/memory-reclaim-ratio";

/// The `ConfigMap` and its keys.
pub const CONFIG_MAP: &str = "slo-controller-config";
pub const CONFIG_NAMESPACE: &str = "koordinator-system";
pub const COLOCATION_CONFIG: &str = "colocation-config";
pub const RESOURCE_THRESHOLD_CONFIG: &str = "resource-threshold-config";
pub const RESOURCE_QOS_CONFIG: &str = "resource-qos-config";
pub const CPU_BURST_CONFIG: &str = "cpu-burst-config";
pub const HOST_APPLICATION_CONFIG: &str = "host-application-config";
