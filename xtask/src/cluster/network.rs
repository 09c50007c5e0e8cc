//! The cluster's network: a namespace that is joined to the host by one pair of devices, and leads nowhere else.
//!
//! Its addresses are of the range that is set aside for benchmarks (198.18.0.0/15), so that they meet nobody's network.
//! Several clusters on a machine differ in a number.

use std::{
    net::Ipv4Addr,
    path::Path,
    process::{Command, Output},
};

use anyhow::{Context as _, Result, bail, ensure};
use enforcer_rig::{
    cluster::{Paths, option},
    process::installed,
};

use crate::programs::run_quietly;

/// The first address of the services' range, which belongs to the API server's own service.
pub const API_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);
pub const SERVICES: &str = "10.96.0.0/16";

/// The device, inside.
const INSIDE: &str = "node0";

/// One of those that a machine can have.
#[derive(Clone, Copy, Debug)]
pub struct Network {
    number: u8,
}

impl Network {
    /// One that is not in use.
    pub fn free() -> Result<Self> {
        for number in 0..=u8::MAX {
            let network = Self { number };
            let routes = ip(&["-oneline", "route", "show", "root", &network.subnet()])?;
            if routes.stdout.is_empty() {
                return Ok(network);
            }
        }
        bail!("all of 198.18.0.0/16 is routed already: `ip route` tells by whom")
    }

    /// The node's address, as kubelet and the API server announce it.
    pub fn node(self) -> Ipv4Addr {
        Ipv4Addr::new(198, 18, self.number, 1)
    }

    /// The host's.
    pub fn host(self) -> Ipv4Addr {
        Ipv4Addr::new(198, 18, self.number, 2)
    }

    /// Of pods.
    pub fn pods(self) -> String {
        format!("198.19.{}.0/24", self.number)
    }

    fn subnet(self) -> String {
        format!("198.18.{}.0/30", self.number)
    }

    /// The device on the host. It goes with the namespace.
    fn device(self) -> String {
        format!("enforcer{}", self.number)
    }

    /// Joins the namespace to the host.
    pub fn join(self, paths: &Paths) -> Result<()> {
        let (device, host, node) =
            (self.device(), format!("{}/30", self.host()), format!("{}/30", self.node()));
        let namespace = paths.network.display().to_string();
        ip(&["link", "add", &device, "type", "veth", "peer", "name", INSIDE, "netns", &namespace])?;
        ip(&["address", "add", &host, "dev", &device])?;
        ip(&["link", "set", &device, "up"])?;
        let inside = |arguments: &[&str]| {
            let mut command = Command::new(installed("nsenter")?);
            run_quietly(command.arg(option("--net", &paths.network)).arg(installed("ip")?).args(arguments))
        };
        inside(&["link", "set", "lo", "up"])?;
        inside(&["link", "set", INSIDE, "up"])?;
        inside(&["address", "add", &node, "dev", INSIDE])?;
        inside(&["address", "add", &format!("{API_ADDRESS}/32"), "dev", INSIDE])?;
        // The host forwards nothing, but servers look for an address of their own along it.
        inside(&["route", "add", "default", "dev", INSIDE])?;
        ip(&["route", "add", &self.pods(), "via", &self.node().to_string()])?;
        Ok(())
    }
}

/// Removes the host's end at once; the kernel would do so some time after the namespace went.
pub fn part(host_address: Ipv4Addr) -> Result<()> {
    let [_, _, number, _] = host_address.octets();
    let device = Network { number }.device();
    if Path::new("/sys/class/net").join(&device).exists() {
        // Not with `run_quietly`: what was interrupted is taken down all the same.
        let status = Command::new(installed("ip")?).args(["link", "delete", &device]).status()?;
        ensure!(status.success(), "cannot remove the network device {device}");
    }
    Ok(())
}

fn ip(arguments: &[&str]) -> Result<Output> {
    run_quietly(Command::new(installed("ip").context("install iproute2")?).args(arguments))
}
