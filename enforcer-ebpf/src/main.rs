//! The kernel side of enforcer: one program per question, all of them counting into arrays that the agent maps.
//!
//! No CO-RE and no generated bindings: the agent reads the offsets of the few kernel fields used here from the running
//! kernel's BTF and sets them as read-only globals before load, so the verifier sees constants (see `task.rs`).
#![cfg_attr(target_arch = "bpf", no_std)]
#![cfg_attr(target_arch = "bpf", no_main)]
// For the one atomic instruction that `maps.rs` spells out.
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]
#![allow(clippy::needless_pass_by_value, reason = "what aya's entry points take")]
#![allow(
    clippy::cast_possible_truncation,
    reason = "a fallible conversion is a branch per switch; sizes are bounded"
)]

#[cfg(target_arch = "bpf")]
mod maps;
#[cfg(target_arch = "bpf")]
mod probes;
#[cfg(target_arch = "bpf")]
mod task;

#[cfg(not(target_arch = "bpf"))]
fn main() {
    eprintln!("enforcer-probes: these are BPF programs; `cargo xtask build` compiles them into the agent");
    std::process::exit(2);
}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    // The verifier refuses programs that could get here.
    loop {}
}

#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
