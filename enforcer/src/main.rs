//! The `enforcer` command.

use std::{
    io::{IsTerminal as _, stderr},
    net::SocketAddr,
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use clap::{Args, Parser, Subcommand};
use enforcer::{
    admission::{
        offline::{self, MutateArgs},
        webhook::{self, WebhookArgs},
    },
    agent,
    cluster::{controller, link::Place as ClusterPlace, protocol::CONFIG_NAMESPACE},
    guardian, policy, preflight,
    record::{self, Print},
    report::{batch, explain, top},
    urgency,
};
use k8s_openapi::jiff::Timestamp;
use tracing_subscriber::EnvFilter;

/// Where the agent answers unless told otherwise.
const ADDRESS: &str = "127.0.0.1:9317";
/// Five ticks.
const WATCHDOG: &str = "500ms";
/// An agent with time to spare begins a tick every 250 ms.
const WATCHDOG_MIN: Duration = Duration::from_millis(400);

/// Lets batch work use what latency-sensitive services leave idle, without hurting them.
#[derive(Parser)]
#[command(version, about, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Measure this node and squeeze batch work while it hurts latency-sensitive services.
    ///
    /// Runs in the foreground until SIGTERM or SIGINT and then restores every limit it changed. Needs root.
    /// `ENFORCER_LOG=debug` makes it talkative.
    Agent(AgentArgs),
    /// Show what a running agent sees: a live table, or one JSON object per second.
    Top {
        /// Print once and exit.
        #[arg(long)]
        once: bool,
        /// Print JSON.
        #[arg(long)]
        json: bool,
        /// Address of the agent.
        #[arg(long, default_value = ADDRESS, value_name = "ADDR")]
        agent: SocketAddr,
    },
    /// Tell why a running agent did what it did lately: evidence, limits before and after, what came of it.
    #[command(args_conflicts_with_subcommands = true)]
    Explain {
        #[command(subcommand)]
        what: Option<Explained>,
        /// So many decisions at most.
        #[arg(long, default_value_t = 10, value_name = "N")]
        last: usize,
        /// Print JSON.
        #[arg(long)]
        json: bool,
        /// Address of the agent.
        #[arg(long, default_value = ADDRESS, value_name = "ADDR")]
        agent: SocketAddr,
    },
    /// Take batch resources off the nodes of a cluster whose agents are gone.
    ///
    /// One is enough for a cluster; of several, one is elected and the others wait.
    Controller(ControllerArgs),
    /// Tell what the webhook would make of pods, from files and without a cluster.
    Mutate(MutateArgs),
    /// Mutate and validate pods for the API server, as `ClusterColocationProfiles` say.
    Webhook(WebhookArgs),
    /// Tell what this kernel and host offer, and what the agent will therefore do.
    ///
    /// Exit code 2 means that the agent cannot run here; every reason comes with its cure.
    Check {
        /// Print JSON.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        place: Place,
    },
    /// Put the owners' limits back when the agent dies or hangs.
    ///
    /// An agent starts a guardian for itself, unless it is told --no-guardian. Where all processes of an agent may die
    /// at once, as in a container, let a guardian run beside it, with the same --state-dir.
    Guardian {
        /// An agent that begins no tick for so long hangs.
        #[arg(long, default_value = WATCHDOG, value_name = "TIME", value_parser = watchdog)]
        watchdog: Duration,
        /// End when the agent has ended.
        #[arg(long)]
        once: bool,
        #[command(flatten)]
        place: Place,
    },
    /// Decide again what an agent recorded, and tell whether the plans are the same.
    ///
    /// Shows each change of plan with its reason. Exit code 2 if a plan differs: another version decides otherwise.
    Replay {
        /// Made by `enforcer agent --record FILE`.
        file: PathBuf,
        /// Print all plans, one JSON object per line.
        #[arg(long)]
        json: bool,
    },
    /// Put back the limits that an agent left behind when it was killed, without starting one.
    Restore {
        #[command(flatten)]
        place: Place,
    },
}

#[derive(Subcommand)]
enum Explained {
    /// What is lent to batch work, term by term: by a running agent, or by files.
    ///
    /// With --node-file and --metrics-file no agent is asked. Files hold Kubernetes objects in YAML or JSON, as
    /// `kubectl get -o yaml` prints them.
    Batch(BatchArgs),
}

#[derive(Args)]
struct BatchArgs {
    /// A Node.
    #[arg(long, value_name = "FILE", requires = "metrics_file")]
    node_file: Option<PathBuf>,
    /// A list of the node's Pods.
    #[arg(long, value_name = "FILE", requires = "node_file")]
    pods_file: Option<PathBuf>,
    /// A `NodeMetric`.
    #[arg(long, value_name = "FILE", requires = "node_file")]
    metrics_file: Option<PathBuf>,
    /// The `ConfigMap` slo-controller-config, or the value of its key colocation-config. Default: switched on, with
    /// Koordinator's defaults.
    #[arg(long, value_name = "FILE", requires = "node_file")]
    strategy_file: Option<PathBuf>,
    /// When it is, such as 2026-11-25T12:00:00Z, to see what is lent when reports stay away. Default: when the
    /// `NodeMetric` was reported.
    #[arg(long, value_name = "TIME", requires = "node_file")]
    now: Option<Timestamp>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// Address of the agent.
    #[arg(long, default_value = ADDRESS, value_name = "ADDR")]
    agent: SocketAddr,
}

#[derive(Args)]
struct ControllerArgs {
    /// How to reach the API server. Default: the pod's service account, else the user's own kubeconfig.
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Namespace of the Lease by which one controller is elected.
    #[arg(long, env = "POD_NAMESPACE", default_value = "enforcer-system", value_name = "NAME")]
    namespace: String,
    /// Namespace of slo-controller-config.
    #[arg(long, default_value = CONFIG_NAMESPACE, value_name = "NAME")]
    config_namespace: String,
    /// Its own name in the Lease.
    #[arg(long, env = "POD_NAME", default_value_t = format!("pid-{}", std::process::id()), value_name = "NAME")]
    identity: String,
    /// Take everything that agents wrote off all nodes, and end: before enforcer is uninstalled.
    #[arg(long)]
    remove_all: bool,
}

#[derive(Args)]
#[expect(clippy::struct_excessive_bools, reason = "flags")]
struct AgentArgs {
    /// The groups, their classes and objectives (YAML).
    #[arg(long, value_name = "FILE", required_unless_present = "print_policy")]
    policy: Option<PathBuf>,
    /// Print a commented example of a policy and exit.
    #[arg(long)]
    print_policy: bool,
    /// Do everything but the writes.
    #[arg(long)]
    shadow: bool,
    /// Serve /metrics, /healthz, /readyz, /v1/status, /v1/decisions and /v1/batch here.
    #[arg(long, default_value = ADDRESS, value_name = "ADDR")]
    listen: SocketAddr,
    /// Write what is seen and decided to this file, about 3 kB per second, for `enforcer replay`.
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,
    /// A guardian takes this agent for hung when it begins no tick for so long.
    #[arg(long, default_value = WATCHDOG, value_name = "TIME", value_parser = watchdog)]
    watchdog: Duration,
    /// Start no guardian: another one watches, or none shall.
    #[arg(long)]
    no_guardian: bool,
    /// This node's name in its cluster: pods are known by the API server, and what can be lent is told there.
    #[arg(long, env = "NODE_NAME", value_name = "NAME")]
    node: Option<String>,
    /// How to reach the API server. Default: the pod's service account, else the user's own kubeconfig.
    #[arg(long, value_name = "FILE", requires = "node")]
    kubeconfig: Option<PathBuf>,
    /// Time wake-ups by probes of our own, as on kernels without `CONFIG_SCHED_INFO`.
    #[arg(long, hide = true)]
    force_wakeups: bool,
    #[command(flatten)]
    place: Place,
}

#[derive(Args)]
struct Place {
    /// Cgroup hierarchies are looked for here and below; nothing outside is ever written.
    #[arg(long, default_value = "/sys/fs/cgroup", value_name = "DIR")]
    cgroup_root: PathBuf,
    /// Keeps the owners' limits while they are replaced. Best on a tmpfs.
    #[arg(long, default_value = "/run/enforcer", value_name = "DIR")]
    state_dir: PathBuf,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let log = tracing_subscriber::fmt().with_env_filter(log_filter());
    // Files and `kubectl logs` would keep colours as noise.
    let log = if stderr().is_terminal() { log } else { log.with_ansi(false) };
    // Whoever reads the log may end: that is no reason to end as well.
    log.with_writer(stderr).log_internal_errors(false).with_target(false).init();
    // A small program gains nothing from huge pages, and one alone would double its memory.
    rustix::thread::disable_transparent_huge_pages(true).ok();
    match cli.command {
        Command::Agent(_) | Command::Guardian { .. } => urgency::go_first(),
        Command::Controller(_) | Command::Webhook(_) => {}
        _ => end_with_the_reader(),
    }
    let result = match cli.command {
        Command::Agent(args) => run_agent(args),
        Command::Top { once: true, json, agent } => top::once(agent, json),
        Command::Top { once: false, json: true, agent } => top::follow_json(agent),
        Command::Top { once: false, json: false, agent } => top::live(agent),
        Command::Explain { what: Some(Explained::Batch(args)), .. } => explain_batch(args),
        Command::Explain { what: None, last, json, agent } => explain::explain(agent, last, json),
        Command::Controller(args) => controller::run(&controller::Options {
            kubeconfig: args.kubeconfig,
            namespace: args.namespace,
            config_namespace: args.config_namespace,
            identity: args.identity,
            remove_all: args.remove_all,
        }),
        Command::Mutate(args) => return offline::run(&args),
        Command::Webhook(args) => webhook::run(&args),
        Command::Check { json, place } => return check(&place, json),
        Command::Guardian { watchdog, once, place } => guardian::run(&guardian::Options {
            cgroup_root: place.cgroup_root,
            state_dir: place.state_dir,
            watchdog,
            once,
        }),
        Command::Replay { file, json } => {
            record::replay(&file, if json { Print::Plans } else { Print::Changes })
        }
        Command::Restore { place } => agent::restore(&place.cgroup_root, &place.state_dir),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            eprintln!("enforcer: {err:#}");
            ExitCode::from(2)
        }
    }
}

/// How long an agent may be silent.
fn watchdog(text: &str) -> Result<Duration, String> {
    let time = humantime::parse_duration(text).map_err(|err| err.to_string())?;
    if time < WATCHDOG_MIN {
        let least = humantime::format_duration(WATCHDOG_MIN);
        return Err(format!("at least {least}: an agent that is well begins a tick every 100 to 250 ms"));
    }
    Ok(time)
}

/// Whoever prints for `head` or a pager ends quietly when that does, as programs do that are not written in Rust.
fn end_with_the_reader() {
    // SAFETY: no other thread runs yet, and no handler is installed.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
}

/// What is logged: `ENFORCER_LOG`, in which modules may be named. What the API server cannot be asked or told is said by
/// enforcer, once and not per attempt as its client does, unless that is asked for by name.
fn log_filter() -> EnvFilter {
    let mut directives = std::env::var("ENFORCER_LOG").unwrap_or_else(|_| "info".to_owned());
    if !directives.contains("kube_client") {
        directives += ",kube_client=off";
    }
    EnvFilter::new(directives)
}

fn run_agent(args: AgentArgs) -> anyhow::Result<()> {
    let Some(policy) = args.policy.filter(|_| !args.print_policy) else {
        print!("{}", policy::EXAMPLE);
        return Ok(());
    };
    agent::run(&agent::Options {
        policy,
        cgroup_root: args.place.cgroup_root,
        state_dir: args.place.state_dir,
        listen: args.listen,
        shadow: args.shadow,
        record: args.record,
        watchdog: (!args.no_guardian).then_some(args.watchdog),
        node: args.node.map(|node| ClusterPlace { node, kubeconfig: args.kubeconfig }),
        force_wakeups: args.force_wakeups,
    })
}

fn explain_batch(args: BatchArgs) -> anyhow::Result<()> {
    let Some((node, metrics)) = args.node_file.zip(args.metrics_file) else {
        return batch::of_agent(args.agent, args.json);
    };
    let files =
        batch::Files { node, metrics, pods: args.pods_file, strategy: args.strategy_file, now: args.now };
    batch::of_files(&files, args.json)
}

fn check(place: &Place, json: bool) -> ExitCode {
    let found = preflight::look(&place.cgroup_root);
    if json {
        println!("{}", serde_json::to_string_pretty(&found).expect("BUG: facts are plain data"));
    } else {
        print!("{found}");
    }
    if found.can_run() { ExitCode::SUCCESS } else { ExitCode::from(2) }
}
