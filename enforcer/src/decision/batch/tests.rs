//! Every case of Koordinator's documentation, and what must hold for all inputs.

use proptest::prelude::{Strategy as Sampled, any, prop, prop_assert, prop_compose, proptest};

use super::*;

const GIB: i64 = 1 << 30;

fn amounts(cpu_milli: i64, memory_bytes: i64) -> Amounts {
    Amounts { cpu_milli, memory_bytes }
}

fn pod(request: Amounts, used: Option<Amounts>) -> Pod {
    Pod { request, used, owns_cpus: false }
}

/// 100 CPUs and 120 GiB, of which the system uses 7 CPUs and 12 GiB; pods as in the reference's tests.
fn node(pods: Vec<Pod>) -> Inputs {
    Inputs {
        capacity: amounts(100_000, 120 * GIB),
        allocatable: amounts(100_000, 120 * GIB),
        system_used: amounts(7_000, 12 * GIB),
        pods,
        ..Inputs::default()
    }
}

fn strategy(cpu_percent: i64, memory_percent: i64) -> Strategy {
    Strategy {
        enable: true,
        cpu_reclaim_threshold_percent: cpu_percent,
        memory_reclaim_threshold_percent: memory_percent,
        ..Strategy::default()
    }
}

#[test]
fn usage_is_what_is_left_of_the_threshold() {
    let pods = vec![
        pod(amounts(20_000, 20 * GIB), Some(amounts(11_000, 11 * GIB))),
        pod(amounts(10_000, 10 * GIB), Some(amounts(22_000, 22 * GIB))),
    ];
    let batch = calculate(&node(pods), &strategy(65, 65));
    // 100 - 35 - 7 - 33, and 120 - 42 - 12 - 33.
    assert_eq!(batch.offered(), amounts(25_000, 33 * GIB));
    assert_eq!((batch.cpu.safety_margin, batch.cpu.high_priority_used), (35_000, 33_000));
}

#[test]
fn what_is_reserved_counts_where_it_is_more_than_the_system_uses() {
    let mut inputs = node(Vec::new());
    inputs.allocatable = amounts(90_000, 115 * GIB);
    inputs.reserved_by_annotation = amounts(5_000, 20 * GIB);
    let batch = calculate(&inputs, &strategy(60, 65));
    assert_eq!((batch.cpu.reserved, batch.memory.reserved), (10_000, 20 * GIB));
    assert_eq!(batch.offered(), amounts(100_000 - 40_000 - 10_000, (120 - 42 - 20) * GIB));
    // Host applications add to the system's use.
    inputs.host_applications_used = amounts(4_000, 0);
    assert_eq!(calculate(&inputs, &strategy(60, 65)).cpu.batch, 100_000 - 40_000 - 11_000);
}

#[test]
fn memory_may_go_by_requests_and_cpu_may_not() {
    let pods = vec![pod(amounts(20_000, 20 * GIB), Some(amounts(11_000, 11 * GIB)))];
    let by_request = Strategy {
        cpu_calculate_policy: CalculatePolicy::Request,
        memory_calculate_policy: CalculatePolicy::Request,
        ..strategy(60, 65)
    };
    let batch = calculate(&node(pods), &by_request);
    assert_eq!(batch.cpu.policy, CalculatePolicy::Usage);
    // The system's use does not count beside requests, only what is reserved: nothing.
    assert_eq!(batch.offered(), amounts(60_000 - 7_000 - 11_000, (120 - 42 - 20) * GIB));
}

#[test]
fn the_greater_of_use_and_request_counts_pod_by_pod() {
    let pods = vec![
        pod(amounts(20_000, 20 * GIB), Some(amounts(11_000, 30 * GIB))),
        pod(amounts(5_000, 5 * GIB), None),
    ];
    let by_maximum = Strategy {
        cpu_calculate_policy: CalculatePolicy::MaxUsageRequest,
        memory_calculate_policy: CalculatePolicy::MaxUsageRequest,
        ..strategy(60, 65)
    };
    let batch = calculate(&node(pods), &by_maximum);
    // A pod that was not reported yet counts with its request, unlike in the original.
    assert_eq!(batch.offered(), amounts(60_000 - 7_000 - 25_000, (120 - 42 - 12 - 35) * GIB));
    assert_eq!(batch.cpu.pods_without_metric, 1);
}

#[test]
fn pods_without_a_metric_and_those_that_own_cpus_count_with_their_request() {
    let pods = vec![
        pod(amounts(6_000, 4 * GIB), None),
        Pod { request: amounts(8_000, 9 * GIB), used: Some(amounts(1_000, 2 * GIB)), owns_cpus: true },
    ];
    let batch = calculate(&node(pods), &strategy(60, 65));
    assert_eq!((batch.cpu.high_priority_used, batch.memory.high_priority_used), (14_000, 6 * GIB));
}

#[test]
fn reported_pods_that_are_gone_still_count() {
    let mut inputs = node(Vec::new());
    inputs.dangling_used = amounts(3_000, 2 * GIB);
    let batch = calculate(&inputs, &strategy(60, 65));
    assert_eq!(batch.offered(), amounts(50_000, (120 - 42 - 12 - 2) * GIB));
    assert_eq!((batch.cpu.dangling_used, batch.cpu.high_priority_used), (3_000, 3_000));
}

#[test]
fn a_threshold_is_the_most_that_is_lent() {
    let capped = Strategy {
        batch_cpu_threshold_percent: Some(30),
        batch_memory_threshold_percent: Some(90),
        ..strategy(60, 65)
    };
    let batch = calculate(&node(Vec::new()), &capped);
    assert_eq!(batch.cpu.batch, 30_000);
    assert_eq!((batch.memory.at_most, batch.memory.batch), (Some(108 * GIB), (120 - 42 - 12) * GIB));
}

#[test]
fn a_fast_cpu_is_worth_more_and_other_systems_take_their_part() {
    let mut inputs = node(Vec::new());
    inputs.cpu_normalization_ratio = Some(1.2);
    inputs.third_party = amounts(10_000, 200 * GIB);
    let batch = calculate(&inputs, &strategy(60, 65));
    assert_eq!((batch.cpu.calculated, batch.cpu.origin, batch.cpu.batch), (53_000, 63_600, 53_600));
    assert_eq!((batch.memory.origin, batch.memory.batch), (66 * GIB, 0));
    inputs.cpu_normalization_ratio = Some(0.8);
    assert_eq!(calculate(&inputs, &strategy(60, 65)).cpu.origin, 53_000, "a slow one is not worth less");
}

#[test]
fn an_empty_node_lends_as_well() {
    let inputs = Inputs {
        capacity: amounts(2_000, 8 * GIB),
        allocatable: amounts(2_000, 8 * GIB - 100),
        ..Inputs::default()
    };
    assert_eq!(calculate(&inputs, &Strategy::default()).cpu.batch, 1_200);
}

#[test]
fn peaks_and_trouble_lower_what_is_offered() {
    let mut inputs = node(Vec::new());
    inputs.peaks = amounts(2_000, GIB);
    inputs.held_back = amounts(500, 0);
    assert_eq!(calculate(&inputs, &strategy(60, 65)).offered(), amounts(50_500, (120 - 42 - 12 - 1) * GIB));
}

fn any_amounts() -> impl Sampled<Value = Amounts> {
    (0..200_000_i64, 0..(1_i64 << 40)).prop_map(|(cpu, memory)| amounts(cpu, memory))
}

prop_compose! {
    fn any_inputs()(
        capacity in any_amounts(),
        offered in 0.0..1.0_f64,
        reserved_by_annotation in any_amounts(),
        system_used in any_amounts(),
        host_applications_used in any_amounts(),
        dangling_used in any_amounts(),
        third_party in any_amounts(),
        pods in prop::collection::vec(
            (any_amounts(), prop::option::of(any_amounts()), any::<bool>()), 0..6
        ),
    ) -> Inputs {
        let allocatable = amounts(scaled(capacity.cpu_milli, offered), scaled(capacity.memory_bytes, offered));
        let pod = |(request, used, owns_cpus)| Pod { request, used, owns_cpus };
        Inputs {
            capacity, allocatable, reserved_by_annotation, system_used, host_applications_used, dangling_used,
            third_party, pods: pods.into_iter().map(pod).collect(), ..Inputs::default()
        }
    }
}

prop_compose! {
    fn any_strategy()(
        cpu in 0..=100_i64,
        memory in 0..=100_i64,
        policy in 0..3_usize,
        threshold in prop::option::of(0..=100_i64),
    ) -> Strategy {
        use CalculatePolicy::{MaxUsageRequest, Request, Usage};
        let policy = [Usage, Request, MaxUsageRequest][policy];
        Strategy {
            cpu_calculate_policy: policy,
            memory_calculate_policy: policy,
            batch_cpu_threshold_percent: threshold,
            ..strategy(cpu, memory)
        }
    }
}

proptest! {
    #[test]
    fn never_negative_and_never_above_the_reclaim_threshold(inputs in any_inputs(), strategy in any_strategy()) {
        let batch = calculate(&inputs, &strategy);
        for terms in [batch.cpu, batch.memory] {
            prop_assert!(terms.batch >= 0 && terms.calculated >= 0);
            prop_assert!(terms.calculated <= terms.capacity - terms.safety_margin);
            let threshold = part_of(terms.capacity, terms.reclaim_threshold_percent);
            // Both are truncated on their own.
            prop_assert!(terms.calculated <= threshold + 1, "{} {}", terms.calculated, threshold);
            prop_assert!(terms.batch <= terms.origin);
        }
    }

    #[test]
    fn more_use_never_lends_more(inputs in any_inputs(), strategy in any_strategy(), more in any_amounts()) {
        let before = calculate(&inputs, &strategy).offered();
        let mut busier = vec![inputs.clone(); 4];
        busier[0].system_used = inputs.system_used + more;
        busier[1].host_applications_used = inputs.host_applications_used + more;
        busier[2].dangling_used = inputs.dangling_used + more;
        for pod in &mut busier[3].pods {
            pod.used = pod.used.map(|used| used + more);
        }
        for inputs in busier {
            let after = calculate(&inputs, &strategy).offered();
            prop_assert!(after.cpu_milli <= before.cpu_milli && after.memory_bytes <= before.memory_bytes);
        }
    }

    #[test]
    fn another_pod_never_lends_more(
        inputs in any_inputs(), strategy in any_strategy(), request in any_amounts(), used in prop::option::of(any_amounts()),
    ) {
        let before = calculate(&inputs, &strategy).offered();
        let mut fuller = inputs;
        fuller.pods.push(pod(request, used));
        let after = calculate(&fuller, &strategy).offered();
        prop_assert!(after.cpu_milli <= before.cpu_milli && after.memory_bytes <= before.memory_bytes);
    }
}
