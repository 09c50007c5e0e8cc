//! The ledger as Prometheus metrics. docs/metrics.md explains each of them.

mod groups;
mod memory;
mod node;
mod process;
mod promises;
mod requests;
mod sample;

use prometheus::{TextEncoder, proto::MetricFamily};

pub use self::process::Process;
use super::ledger::Ledger;

/// Media type of [`render`]'s text.
pub const CONTENT_TYPE: &str = prometheus::TEXT_FORMAT;

/// All metrics in the text exposition format. `process`: `None` if it could not be read.
pub fn render(ledger: &Ledger, process: Option<&Process>) -> String {
    let families = families(ledger, process);
    TextEncoder::new().encode_to_string(&families).expect("BUG: a metric family without samples or name")
}

fn families(ledger: &Ledger, process: Option<&Process>) -> Vec<MetricFamily> {
    let mut families = node::families(ledger);
    families.push(node::joins(ledger));
    families.extend(node::cluster(ledger));
    families.extend(node::cost(ledger));
    families.extend(groups::families(ledger));
    families.extend(requests::families(&ledger.groups));
    families.extend(memory::families(ledger));
    families.extend(promises::families(ledger));
    families.extend(process.into_iter().flat_map(process::families));
    families.retain(|family| !family.get_metric().is_empty());
    families
}
