//! Nothing to share; here so that the build script of the benchmark depends on the programs.
#![no_std]
