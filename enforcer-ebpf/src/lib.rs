//! What the probes write and the agent reads: records, the slot table, histograms.
//!
//! Nothing here touches the kernel, so `cargo test` covers it on the host. The probes themselves are in `main.rs` and
//! `probes/`, compiled for the BPF target only.
//!
//! Kernel memory, for `C` possible CPUs, `S` slots, `V` victims and `K` culprits (see [`layout`] for the sizes):
//! `C × (320 + S × (416 + 64) + V × K × 8 + V × 936)` bytes, plus 1 MiB for the slot table and 0.3 MiB for stalls that last.
//! With the default of 1,024 slots, 32 victims and 64 culprits that is 0.5 MiB per CPU.
#![cfg_attr(target_arch = "bpf", no_std)]

pub mod histogram;
pub mod layout;
pub mod table;
