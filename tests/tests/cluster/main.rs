//! A real node: kubelet, containerd and the API server of `cargo xtask cluster`.

mod churn;
mod citizen;
mod daemon_set;
mod daemons;
mod evicting;
mod faults;
mod join;
mod lending;
mod node;
mod pod;
mod prometheus;
mod proxy;
mod scheduling;
mod squeezing;
mod webhook;

use enforcer_tests::needs::{
    Need::{Cluster, Curl, Image, Prometheus},
    trial,
};
use libtest_mimic::Arguments;

fn main() {
    let mut arguments = Arguments::from_args();
    // Some stop what others need.
    arguments.test_threads = Some(1);
    let trials = vec![
        trial("the_node_is_ready", &[Cluster], node::ready),
        trial("a_pod_of_each_class_runs_where_kubelet_puts_its_class", &[Cluster], node::classes),
        trial("a_pods_directories_go_with_it", &[Cluster], node::removal),
        trial("a_pod_is_reached_from_this_machine", &[Cluster], node::reach),
        trial("a_service_account_is_known_by_its_kubeconfig", &[Cluster], node::service_account),
        trial("pods_go_on_while_kubelet_restarts", &[Cluster], daemons::kubelet_restarts),
        trial("pods_go_on_while_containerd_restarts", &[Cluster], daemons::containerd_restarts),
        trial("pods_go_on_while_the_api_server_is_stopped", &[Cluster], daemons::api_server_stops),
        trial("batch_resources_are_offered_and_taken_back", &[Cluster], lending::offered_and_taken_back),
        trial("broken_settings_leave_what_was_in_force", &[Cluster], lending::broken_settings),
        trial("a_node_slo_out_of_range_is_told", &[Cluster], lending::node_slo_out_of_range),
        trial("of_two_writers_one_yields_and_says_so", &[Cluster], lending::two_writers),
        trial("what_an_agent_that_is_gone_had_lent_is_taken_back", &[Cluster], lending::controller),
        trial("uninstalling_takes_back_what_was_lent", &[Cluster], lending::remove_all),
        trial("pods_are_joined_to_their_cgroups_within_a_second", &[Cluster], join::within_a_second),
        trial(
            "blame_ends_with_the_pod_and_its_place_is_used_again",
            &[Cluster],
            churn::blame_ends_with_the_pod,
        ),
        trial("specs_of_batch_pods_are_in_force", &[Cluster], join::specs_are_in_force),
        trial("batch_pods_are_bound_to_what_is_lent", &[Cluster], scheduling::by_what_is_lent),
        trial("the_tutorials_pods_become_batch_pods", &[Cluster, Image], webhook::tutorial),
        trial("a_killed_webhook_comes_back_by_itself", &[Cluster, Image, Curl], webhook::recovers),
        trial("an_expired_certificate_is_replaced", &[Cluster, Image], webhook::expired_certificate),
        trial("a_squeeze_and_its_end_are_seen_by_kubectl", &[Cluster], squeezing::seen_by_kubectl),
        trial("squeezes_go_on_through_restarts_of_daemons", &[Cluster], squeezing::through_restarts),
        trial("enforcement_goes_on_while_the_api_server_misbehaves", &[Cluster], faults::enforcement_goes_on),
        trial(
            "queries_of_dashboard_and_alerts_find_their_metrics",
            &[Cluster, Image, Curl, Prometheus],
            prometheus::queries,
        ),
        trial("evictions_honour_budgets", &[Cluster], evicting::budgets_are_honoured),
        trial("be_that_hurts_at_its_floor_is_handed_over_to_eviction", &[Cluster], evicting::for_latency),
        trial("the_charts_daemon_set_runs_under_kubelet", &[Cluster, Image], daemon_set::runs),
        trial("a_dry_run_evicts_nobody", &[Cluster], evicting::dry_run),
    ];
    libtest_mimic::run(&arguments, trials).exit();
}
