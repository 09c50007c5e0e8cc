//! The workloads as a command, so that each can run in cgroups of its own.

use std::{fs, net::SocketAddr, os::unix::process::CommandExt as _, path::PathBuf, sync::mpsc};

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand, ValueEnum};
use enforcer_rig::{
    antagonist::Antagonist,
    client::{self, Load},
    server::{self, Cost, Manner},
    work::Work,
};
use rustix::{
    process::{Signal, set_parent_process_death_signal},
    thread::{CpuSet, sched_setaffinity},
};

/// Latency-sensitive and best-effort workloads to try enforcer on.
#[derive(Parser)]
struct Cli {
    /// Join this cgroup directory first (repeat for several hierarchies).
    #[arg(long, value_name = "DIR", global = true)]
    cgroup: Vec<PathBuf>,
    /// Run on this CPU only.
    #[arg(long, global = true)]
    cpu: Option<usize>,
    /// Signal to get when the parent ends.
    #[arg(long, value_enum, default_value_t = OnParentDeath::Kill, global = true)]
    on_parent_death: OnParentDeath,
    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Copy, ValueEnum)]
enum OnParentDeath {
    Kill,
    Term,
    /// None: go on.
    None,
}

impl OnParentDeath {
    const fn signal(self) -> Option<Signal> {
        match self {
            Self::Kill => Some(Signal::KILL),
            Self::Term => Some(Signal::TERM),
            Self::None => None,
        }
    }
}

#[derive(Subcommand)]
enum Command {
    /// Serve requests over TCP until killed; prints the address.
    Serve {
        #[arg(long, default_value = "127.0.0.1:0")]
        listen: SocketAddr,
        #[command(flatten)]
        cost: Cost,
        #[command(flatten)]
        manner: Manner,
    },
    /// Send datagrams back over UDP until killed; prints the address.
    ServeDatagrams {
        #[arg(long, default_value = "127.0.0.1:0")]
        listen: SocketAddr,
    },
    /// Load a server and print what was measured as JSON.
    Load {
        #[arg(long)]
        to: SocketAddr,
        #[command(flatten)]
        load: Load,
        /// Run before all tasks of ordinary priority, so that what is measured is the server.
        #[arg(long)]
        real_time: bool,
    },
    /// Be a bad neighbour until killed.
    Antagonist {
        #[arg(value_enum)]
        kind: Antagonist,
        #[arg(long, default_value_t = 2)]
        threads: usize,
        /// Count work here.
        #[arg(long, value_name = "FILE")]
        work: Option<PathBuf>,
        /// Make files here. Default: the directory for temporary files.
        #[arg(long, value_name = "DIR")]
        directory: Option<PathBuf>,
    },
    /// Do nothing until told to end, as the first process of a pod does.
    Pause,
    /// Become another program.
    Exec {
        program: PathBuf,
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    set_parent_process_death_signal(cli.on_parent_death.signal())?;
    for cgroup in &cli.cgroup {
        let file = cgroup.join("cgroup.procs");
        fs::write(&file, "0").with_context(|| format!("cannot join {}", cgroup.display()))?;
    }
    if let Some(cpu) = cli.cpu {
        let mut cpus = CpuSet::new();
        cpus.set(cpu);
        sched_setaffinity(None, &cpus).with_context(|| format!("cannot run on CPU {cpu}"))?;
    }
    match cli.command {
        Command::Serve { listen, cost, manner } => server::serve(listen, cost, manner),
        Command::ServeDatagrams { listen } => server::serve_datagrams(listen),
        Command::Load { to, load, real_time } => {
            if real_time {
                become_real_time();
            }
            println!("{}", serde_json::to_string(&client::run(to, load)?)?);
            Ok(())
        }
        Command::Antagonist { kind, threads, work, directory } => {
            let work = work.map_or_else(Work::private, |path| Work::open(&path))?;
            kind.run(threads, &directory.unwrap_or_else(std::env::temp_dir), &work)
        }
        Command::Pause => {
            let (tell, told) = mpsc::channel();
            // The first process of a pod gets no signal that it has no handler for.
            ctrlc::set_handler(move || tell.send(()).unwrap_or_default())?;
            Ok(told.recv()?)
        }
        Command::Exec { program, arguments } => {
            let error = std::process::Command::new(&program).args(arguments).exec();
            Err(error).with_context(|| format!("cannot run {}", program.display()))
        }
    }
}

/// `SCHED_FIFO`, or at least the best ordinary priority where that is not allowed.
fn become_real_time() {
    let parameters = libc::sched_param { sched_priority: 1 };
    // SAFETY: a plain system call on the calling thread, with a structure that outlives it.
    let refused = unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const parameters) } != 0;
    if refused && let Err(err) = rustix::process::setpriority_process(None, -20) {
        eprintln!("the client runs at ordinary priority, its figures include its own waits: {err}");
    }
}
