//! The programs that enforcer's probes are compared with.

use std::fs::File;

use anyhow::{Context as _, Result};
use aya::{
    Btf, Ebpf, EbpfLoader,
    programs::{BtfTracePoint, CgroupAttachMode, CgroupSkb, CgroupSkbAttachType},
};
use enforcer::kernel::btf::KernelTypes;

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/bench-probes"));

fn load() -> Result<Ebpf> {
    let types = KernelTypes::of_running_kernel()?;
    let pid = types.offset_of("task_struct", "pid")?;
    let state =
        types.offset_of("task_struct", "__state").or_else(|_| types.offset_of("task_struct", "state"))?;
    Ok(EbpfLoader::new()
        .override_global("OFF_PID", &pid, true)
        .override_global("OFF_STATE", &state, true)
        .load(OBJECT)?)
}

/// Attaches programs to tracepoints, until dropped.
pub fn on_tracepoints(programs: &[(&str, &str)]) -> Result<Ebpf> {
    let mut ebpf = load()?;
    let btf = Btf::from_sys_fs()?;
    for (name, tracepoint) in programs {
        let program: &mut BtfTracePoint = ebpf.program_mut(name).context("no such program")?.try_into()?;
        program.load(tracepoint, &btf)?;
        program.attach()?;
    }
    Ok(ebpf)
}

/// Attaches a program that looks at nothing to the packets of a cgroup, both ways, until dropped.
pub fn on_packets(directory: &File) -> Result<Ebpf> {
    let mut ebpf = load()?;
    let program: &mut CgroupSkb = ebpf.program_mut("empty_packet").context("no such program")?.try_into()?;
    program.load()?;
    for direction in [CgroupSkbAttachType::Ingress, CgroupSkbAttachType::Egress] {
        program.attach(directory, direction, CgroupAttachMode::Single)?;
    }
    Ok(ebpf)
}
