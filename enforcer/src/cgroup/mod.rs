//! Cgroups: where they are mounted, which ones the policy names, what their files say.

pub mod cpu_limit;
pub mod cpu_list;
pub mod cpu_stat;
pub mod hierarchy;
pub mod kubepods;
pub mod memory;
pub mod pattern;
pub mod setting;
pub mod tree;
