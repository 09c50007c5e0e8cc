//! A BPF array in the agent's memory.
//!
//! Reading a counter is a load and costs no system call; the kernel's map stays alive as long as it is mapped.

use std::{
    io,
    os::fd::{AsFd, AsRawFd as _},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use memmap2::{MmapOptions, MmapRaw};

/// An array map created with `BPF_F_MMAPABLE` (5.5), seen as 64-bit words. Elements lie back to back.
#[derive(Debug)]
pub struct MappedArray {
    memory: MmapRaw,
    words_per_element: usize,
    elements: usize,
}

impl MappedArray {
    /// Maps `elements` elements of `element_bytes` each. `element_bytes` is a multiple of 8, as for all records in
    /// [`enforcer_ebpf::layout`].
    ///
    /// # Errors
    /// What `mmap(2)` says.
    pub fn new(map: impl AsFd, element_bytes: usize, elements: usize) -> io::Result<Self> {
        debug_assert!(element_bytes.is_multiple_of(8) && elements > 0);
        let memory = MmapOptions::new().len(element_bytes * elements).map_raw(map.as_fd().as_raw_fd())?;
        Ok(Self { memory, words_per_element: element_bytes / 8, elements })
    }

    /// The words of one element.
    ///
    /// # Panics
    /// If there is no such element: the caller and the loader disagree about sizes.
    #[expect(unsafe_code, reason = "the one place where the agent looks at memory that the kernel writes")]
    #[expect(clippy::cast_ptr_alignment, reason = "a mapping starts at a page")]
    pub fn element(&self, index: usize) -> &[AtomicU64] {
        assert!(index < self.elements, "BUG: element {index} of {}", self.elements);
        let words = self.words_per_element;
        // SAFETY: within the mapping, which is page-aligned and lives as long as `self`. The kernel writes it
        // concurrently with plain 64-bit or 32-bit stores; relaxed atomic loads are how to look at such memory.
        unsafe {
            std::slice::from_raw_parts(self.memory.as_mut_ptr().cast::<AtomicU64>().add(index * words), words)
        }
    }

    /// The word of element `index` that holds the field at `offset` bytes.
    pub fn word(&self, index: usize, offset: usize) -> &AtomicU64 {
        &self.element(index)[offset / 8]
    }

    /// Sets every word of an element to zero.
    pub fn clear(&self, index: usize) {
        for word in self.element(index) {
            word.store(0, Relaxed);
        }
    }
}
