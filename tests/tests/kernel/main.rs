//! The probes and the agent on the kernel that runs this test: this host's, or that of a virtual machine.

mod in_flight;
mod levers;
mod limits;
mod memory;
mod memory_high;
mod network;
mod out_of_memory;
mod requests;
mod scene;
mod servers;
mod waits;

use enforcer_tests::needs::{
    Need::{
        Ab, CpuIdle, Curl, Ipv6, LittleMemory, Memory, MemoryV1, MemoryV2, NetworkNamespace, Nginx, OpenSsl,
        Probes, Psi, RealCpus, Redis, Root, SchedInfo, TwoCpus, V1Cpu,
    },
    trial,
};
use libtest_mimic::{Arguments, Trial};

fn main() {
    if let Some(group) = memory_high::held_by_this_process() {
        memory_high::hold(&group);
    }
    let mut arguments = Arguments::from_args();
    // They load the same CPUs and count what runs there.
    arguments.test_threads = Some(1);
    let trials =
        [waits_trials(), requests_trials(), agent_trials(), memory_trials()].into_iter().flatten().collect();
    libtest_mimic::run(&arguments, trials).exit();
}

/// Waits, CPU time and blame.
fn waits_trials() -> Vec<Trial> {
    vec![
        trial("waits_are_counted_by_the_kernels_own_bookkeeping", &[Root, Probes], waits::by_sched_info),
        trial("waits_are_counted_by_wakeup_probes", &[Root, Probes], waits::by_wakeups),
        trial("waits_are_counted_by_v1_directories", &[Root, Probes, V1Cpu], waits::by_v1_directory),
        trial("blame_of_one_group_adds_up_to_run_delay", &[Root, Probes, SchedInfo], waits::blame_of_one),
        trial("blame_of_two_groups_adds_up_to_run_delay", &[Root, Probes, SchedInfo], waits::blame_of_two),
        trial(
            "a_task_that_nothing_interrupts_is_on_the_cpu_all_the_same",
            &[Root, Probes],
            waits::unfinished,
        ),
        trial("full_tables_are_told_and_nothing_is_miscounted", &[Root, Probes], waits::full_table),
    ]
}

/// Requests, in flight and answered.
fn requests_trials() -> Vec<Trial> {
    vec![
        trial("requests_over_ipv4_are_counted_to_the_last", &[Root, Probes], requests::over_ipv4),
        trial("requests_over_ipv6_are_counted_to_the_last", &[Root, Probes, Ipv6], requests::over_ipv6),
        trial("short_connections_are_counted_one_by_one", &[Root, Probes], requests::short_connections),
        trial(
            "a_request_on_the_last_packet_of_the_handshake_is_counted",
            &[Root, Probes],
            requests::early_requests,
        ),
        trial(
            "a_connection_seen_before_its_cgroup_had_a_place_counts_later",
            &[Root, Probes],
            requests::place_comes_later,
        ),
        trial(
            "a_request_that_began_while_nobody_looked_does_not_count",
            &[Root, Probes],
            requests::began_too_early,
        ),
        trial("pipelined_requests_count_as_one", &[Root, Probes], requests::pipelining),
        trial("a_streamed_answer_ends_with_its_first_byte", &[Root, Probes], requests::streaming),
        trial("a_greeting_is_no_answer", &[Root, Probes], requests::greeting),
        trial("a_half_closed_connection_is_answered", &[Root, Probes], requests::half_closed),
        trial("calls_to_others_are_not_requests_served", &[Root, Probes], requests::client_role),
        trial("slow_requests_are_told_from_fast_ones", &[Root, Probes], requests::slow_ones),
        trial("what_is_sent_again_counts_once", &[Root, Probes], network::retransmits),
        trial("datagrams_are_not_counted_and_pass_unharmed", &[Root, Probes], network::datagrams),
        trial(
            "in_the_hosts_network_only_the_groups_own_requests_count",
            &[Root, Probes],
            network::host_network,
        ),
        trial(
            "a_network_namespace_of_its_own_makes_no_difference",
            &[Root, Probes, NetworkNamespace],
            network::own_namespace,
        ),
        trial("redis_is_counted_to_the_last_request", &[Root, Probes, Redis], servers::redis),
        trial("nginx_is_counted_to_the_last_request", &[Root, Probes, Nginx, Ab], servers::nginx),
        trial(
            "of_very_many_requests_a_part_stands_for_all",
            &[Root, Probes, Redis, TwoCpus, RealCpus],
            servers::sampled,
        ),
        trial("under_tls_the_handshake_counts_as_well", &[Root, Probes, Nginx, OpenSsl, Curl], servers::tls),
        trial("a_stopped_servers_requests_grow_old", &[Root, Probes], in_flight::stopped_server),
        trial("connections_broken_off_leave_nothing_in_flight", &[Root, Probes], in_flight::broken_off),
        trial("a_server_that_hangs_up_leaves_nothing_in_flight", &[Root, Probes], in_flight::hung_up),
        trial("a_killed_client_leaves_nothing_in_flight", &[Root, Probes], in_flight::killed_client),
        trial("a_stuck_server_raises_the_alarm", &[Root, Probes, TwoCpus], in_flight::alarm),
    ]
}

/// The agent as a whole.
fn agent_trials() -> Vec<Trial> {
    vec![
        trial(
            "be_is_squeezed_while_it_hurts_and_restored_on_sigterm",
            &[Root, Probes, TwoCpus],
            limits::squeeze,
        ),
        trial(
            "what_a_killed_agent_left_is_restored_at_the_next_start",
            &[Root, Probes, TwoCpus],
            limits::kill_9,
        ),
        trial(
            "the_guardian_restores_what_a_killed_agent_left",
            &[Root, Probes, TwoCpus],
            limits::guardian_after_kill,
        ),
        trial(
            "the_guardian_restores_what_an_agent_left_that_aborted",
            &[Root, Probes, TwoCpus],
            limits::guardian_after_abort,
        ),
        trial(
            "a_guardian_that_is_killed_has_a_successor_that_guards",
            &[Root, Probes, TwoCpus],
            limits::guardian_after_guardian,
        ),
        trial(
            "the_guardian_restores_what_an_agent_left_that_ran_out_of_memory",
            &[Root, Probes, TwoCpus, Memory],
            limits::guardian_after_oom_kill,
        ),
        trial(
            "the_guardian_takes_limits_off_while_the_agent_is_stopped",
            &[Root, Probes, TwoCpus],
            limits::guardian_after_stop,
        ),
        trial(
            "an_objective_is_learned_while_no_be_runs_and_kept",
            &[Root, Probes, TwoCpus, RealCpus],
            limits::learned_objective,
        ),
        trial(
            "an_agent_beyond_its_budget_leaves_something_out_and_says_so",
            &[Root, Probes, TwoCpus],
            limits::overhead,
        ),
        trial(
            "an_agent_whose_state_directory_is_removed_restores_and_ends",
            &[Root, Probes, TwoCpus],
            limits::without_state,
        ),
        trial("directories_of_a_group_share_its_limit", &[Root, Probes, TwoCpus], limits::shared_limit),
        trial("shadow_mode_writes_nothing", &[Root, Probes, TwoCpus], limits::shadow),
        trial(
            "a_v1_parent_is_squeezed_below_its_childrens_limits",
            &[Root, Probes, V1Cpu, TwoCpus],
            limits::v1_children,
        ),
        trial("a_v1_limit_that_is_refused_is_not_left_half_written", &[Root, V1Cpu], limits::refused_v1),
        trial(
            "be_runs_idle_only_and_gets_its_weight_back",
            &[Root, Probes, TwoCpus, RealCpus, CpuIdle],
            levers::idle,
        ),
        trial(
            "be_gets_its_weight_back_when_the_agent_is_killed_while_it_is_idle",
            &[Root, Probes, TwoCpus, RealCpus, CpuIdle],
            levers::killed_while_idle,
        ),
        trial(
            "be_that_hurts_at_its_floor_gets_fewer_cpus_and_all_of_them_back",
            &[Root, Probes, TwoCpus, RealCpus],
            levers::pin,
        ),
        trial(
            "a_blamed_be_is_frozen_for_a_moment_and_squeezed",
            &[Root, Probes, TwoCpus, RealCpus],
            levers::freeze,
        ),
        trial(
            "be_is_thawed_when_the_agent_is_killed",
            &[Root, Probes, TwoCpus, RealCpus],
            levers::killed_while_frozen,
        ),
        trial(
            "be_is_thawed_when_the_agent_runs_out_of_memory",
            &[Root, Probes, TwoCpus, RealCpus, Memory],
            levers::out_of_memory_while_frozen,
        ),
        trial(
            "be_is_thawed_when_the_agent_is_stopped",
            &[Root, Probes, TwoCpus, RealCpus],
            levers::stopped_while_frozen,
        ),
        trial("a_thousand_cgroups_come_and_go_without_a_trace", &[Root, Probes], limits::churn),
    ]
}

/// Want of memory.
fn memory_trials() -> Vec<Trial> {
    vec![
        trial(
            "reclaim_at_a_memory_limit_is_counted_for_the_group_that_stalls",
            &[Root, Probes, Memory, Psi],
            memory::memcg_reclaim,
        ),
        trial(
            "compaction_of_memory_is_counted_for_the_group_that_stalls",
            &[Root, Probes],
            memory::compaction,
        ),
        trial(
            "an_oom_kill_for_want_of_memory_is_counted_for_its_group",
            &[Root, Probes, Memory],
            memory::oom_kill,
        ),
        trial(
            "direct_reclaim_is_counted_when_memory_is_full",
            &[Root, Probes, Memory, LittleMemory],
            memory::direct_reclaim,
        ),
        trial(
            "the_agent_tells_who_stalls_for_memory_and_for_whom",
            &[Root, Probes, Memory, Psi],
            memory::told_by_the_agent,
        ),
        trial(
            "an_objective_on_stalls_is_learned_while_no_be_runs",
            &[Root, Probes, Memory, Psi, RealCpus],
            memory::learned_by_the_agent,
        ),
        trial(
            "be_that_takes_the_memory_that_ls_stalls_for_is_held_back_and_let_go",
            &[Root, Probes, MemoryV2],
            memory::held_back_by_the_agent,
        ),
        trial(
            "memory_high_is_lowered_without_waiting_for_reclaim_and_put_back",
            &[Root, MemoryV2],
            memory_high::lowered_and_put_back,
        ),
        trial(
            "the_guardian_puts_back_the_memory_high_of_a_killed_process",
            &[Root, MemoryV2],
            memory_high::guardian,
        ),
        trial(
            "memory_high_is_unavailable_with_a_reason_where_memory_is_on_v1",
            &[Root, MemoryV1],
            memory_high::unavailable,
        ),
    ]
}
