//! Onsets of trouble, as the probes tell them.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
    time::Duration,
};

use aya::maps::{MapData, RingBuf};
use bytes::Buf;
use enforcer_ebpf::layout;
use tokio::io::{Interest, unix::AsyncFd};

use crate::model::Signal;

/// Slow ones of a victim came too thick.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Onset {
    /// On the monotonic clock.
    pub at: Duration,
    /// The victim row.
    pub victim: u32,
    pub signal: Signal,
}

/// The ring that the probes write to.
pub struct Onsets(RingBuf<MapData>);

impl Onsets {
    pub(super) fn new(map: aya::maps::Map) -> Result<Self, aya::maps::MapError> {
        RingBuf::try_from(map).map(Self)
    }

    /// The next one, oldest first. `None`: no more for now.
    pub fn take(&mut self) -> Option<Onset> {
        loop {
            let record = self.0.next()?;
            // What cannot be decoded was not written by these probes; the next tick sees all the same.
            if let Some(onset) = decode(&record) {
                return Some(onset);
            }
        }
    }

    /// Becomes readable when there is one.
    ///
    /// # Errors
    /// What `epoll(7)` says.
    #[expect(unsafe_code, reason = "how tokio takes a descriptor that is not a socket")]
    pub fn watch(self) -> io::Result<AsyncFd<Self>> {
        // SAFETY: the ring keeps one descriptor open as long as it lives, and the result owns the ring.
        let watched = unsafe { AsyncFd::register_with_interest(self, Interest::READABLE) };
        watched.map_err(|err| err.into_parts().1)
    }
}

impl AsFd for Onsets {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl std::os::fd::AsRawFd for Onsets {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.0.as_raw_fd()
    }
}

/// A [`layout::Onset`], field by field.
fn decode(mut record: &[u8]) -> Option<Onset> {
    if record.remaining() < size_of::<layout::Onset>() {
        return None;
    }
    let at = Duration::from_nanos(record.get_u64_ne());
    let victim = record.get_u32_ne();
    let signal = match record.get_u32_ne() {
        layout::Onset::WAIT => Signal::RunQueueWait,
        layout::Onset::LATENCY => Signal::RequestLatency,
        _ => return None,
    };
    Some(Onset { at, victim, signal })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_decoded_field_by_field() {
        let mut record = Vec::new();
        record.extend(7_000_000_000_u64.to_ne_bytes());
        record.extend(3_u32.to_ne_bytes());
        record.extend(layout::Onset::LATENCY.to_ne_bytes());
        let expected = Onset { at: Duration::from_secs(7), victim: 3, signal: Signal::RequestLatency };
        assert_eq!(decode(&record), Some(expected));
        assert_eq!(decode(&record[..15]), None, "too short");
        record[12] = 9;
        assert_eq!(decode(&record), None, "no such signal");
    }
}
