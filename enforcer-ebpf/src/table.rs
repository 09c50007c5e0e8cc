//! The slot table: cgroup to [`Place`], by array lookups and comparisons only.
//!
//! Four entries share a cache line and a bucket; the agent alone writes. An entry is published by writing its place
//! first and its key last, and withdrawn by clearing the key, so that a probe never pairs a key with a stale place (on
//! weakly ordered machines it may for some nanoseconds; a removed cgroup runs nothing by then).

use crate::layout::Place;

/// Buckets, a power of two. 16,384 × 64 bytes = 1 MiB.
pub const BUCKET_COUNT: u32 = 1 << BUCKET_BITS;
const BUCKET_BITS: u32 = 14;
/// Entries per bucket: with 4,096 cgroups the chance that any bucket overflows is about one in ten; an overflow is counted.
pub const WAYS: usize = 4;

/// Which cgroup: the inode number of its directory, which is the kernel's `kernfs_node.id`, told apart by hierarchy.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key(pub u64);

impl Key {
    /// No cgroup: inode 0 does not exist.
    pub const EMPTY: Self = Self(0);
    const V1: u64 = 1 << 63;

    /// A directory of the v2 hierarchy.
    #[inline(always)]
    pub const fn v2(id: u64) -> Self {
        Self(id)
    }

    /// A directory of the v1 hierarchy that holds the cpu controller. Each hierarchy numbers its own inodes.
    #[inline(always)]
    pub const fn v1_cpu(id: u64) -> Self {
        Self(id | Self::V1)
    }

    /// The bucket that may hold the key (Fibonacci hashing: ids are handed out in steps).
    #[inline(always)]
    pub const fn bucket(self) -> u32 {
        (self.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - BUCKET_BITS)) as u32
    }
}

/// One entry: `key` owns `place`. Empty when the key is [`Key::EMPTY`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Entry {
    pub key: Key,
    pub place: Place,
}

/// One cache line of entries.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Bucket(pub [Entry; WAYS]);

impl Bucket {
    /// The place of `key`, if this bucket holds it.
    #[inline(always)]
    pub fn find(&self, key: Key) -> Option<Place> {
        let [a, b, c, d] = &self.0;
        if a.key == key {
            Some(a.place)
        } else if b.key == key {
            Some(b.place)
        } else if c.key == key {
            Some(c.place)
        } else if d.key == key {
            Some(d.place)
        } else {
            None
        }
    }
}

const _: () = assert!(size_of::<Bucket>() == 64);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_that_come_in_steps_spread_over_the_buckets() {
        // A cgroup directory takes an id for itself and one for each of its files: ids come about 40 apart.
        for step in [1, 2, 16, 40, 41, 64, 1024] {
            let mut fill = vec![0u32; BUCKET_COUNT as usize];
            for n in 0..4096u64 {
                fill[Key::v2(1000 + n * step).bucket() as usize] += 1;
            }
            let overflowing = fill.iter().filter(|&&entries| entries as usize > WAYS).count();
            assert!(overflowing <= 2, "step {step}: {overflowing} buckets overflow");
        }
    }

    #[test]
    fn a_bucket_tells_hierarchies_apart() {
        let mut bucket = Bucket::default();
        bucket.0[3] = Entry { key: Key::v1_cpu(7), place: Place::new(5, 0, 3) };
        assert_eq!(bucket.find(Key::v1_cpu(7)), Some(Place::new(5, 0, 3)));
        assert_eq!(bucket.find(Key::v2(7)), None);
    }
}
