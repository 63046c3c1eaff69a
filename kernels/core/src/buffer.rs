//! Aligned memory for batches: taken from a pool, returned to it when nobody looks at it any more.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::ptr::NonNull;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

/// A cache line, and the widest vectors there are.
const ALIGNMENT: usize = 64;
/// Buffers a pool keeps, and the bytes it keeps in all.
const MOST_KEPT: usize = 16;
const MOST_BYTES: usize = 64 << 20;

/// Memory that begins at a multiple of 64 bytes.
pub struct Buffer {
    start: NonNull<u8>,
    length: usize,
    capacity: usize,
    pool: Weak<Pool>,
}

// SAFETY: the memory belongs to the buffer alone.
unsafe impl Send for Buffer {}
// SAFETY: it is written through `&mut` only, until it is shared for reading.
unsafe impl Sync for Buffer {}

impl Buffer {
    fn layout(capacity: usize) -> Layout {
        // SAFETY: the alignment is a power of two, and no capacity that a request can have overflows when rounded up.
        unsafe { Layout::from_size_align_unchecked(capacity, ALIGNMENT) }
    }

    fn allocate(capacity: usize, pool: Weak<Pool>) -> Buffer {
        let layout = Buffer::layout(capacity);
        // SAFETY: the capacity is above 0.
        let Some(start) = NonNull::new(unsafe { alloc(layout) }) else { handle_alloc_error(layout) };
        // SAFETY: just allocated with this size. Zeroed once, so that no byte of it is ever undefined.
        unsafe { start.as_ptr().write_bytes(0, capacity) };
        Buffer { start, length: 0, capacity, pool }
    }

    pub fn as_ptr(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: `length` bytes are allocated and initialised.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.length) }
    }

    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as above, and we have it alone.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.length) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some(pool) = self.pool.upgrade() {
            let mut kept = pool.kept.lock();
            let held: usize = kept.iter().map(|buffer| buffer.capacity).sum();
            if kept.len() < MOST_KEPT && held + self.capacity <= MOST_BYTES {
                // Without its pool: a buffer that the pool lets go of is freed.
                kept.push(Buffer { start: self.start, length: 0, capacity: self.capacity, pool: Weak::new() });
                return;
            }
        }
        // SAFETY: allocated with this layout, and given up by its only owner.
        unsafe { dealloc(self.start.as_ptr(), Buffer::layout(self.capacity)) }
    }
}

/// Buffers that are free.
#[derive(Default)]
pub struct Pool {
    kept: Mutex<Vec<Buffer>>,
}

impl Pool {
    /// A buffer of `length` bytes; what is in it is undefined, but initialised.
    pub fn take(self: &Arc<Pool>, length: usize) -> Buffer {
        let mut kept = self.kept.lock();
        // The smallest that fits, unless it would be a waste.
        let fitting = |buffer: &Buffer| buffer.capacity >= length && buffer.capacity / 4 <= length.max(ALIGNMENT);
        let best = kept.iter().enumerate().filter(|(_, buffer)| fitting(buffer)).min_by_key(|(_, buffer)| buffer.capacity);
        let found = best.map(|(index, _)| index).map(|index| kept.swap_remove(index));
        drop(kept);
        let mut buffer = match found {
            Some(mut buffer) => {
                buffer.pool = Arc::downgrade(self);
                buffer
            }
            None => Buffer::allocate(length.max(1).next_multiple_of(ALIGNMENT), Arc::downgrade(self)),
        };
        buffer.length = length;
        buffer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_and_used_again() {
        let pool = Arc::new(Pool::default());
        for length in [0, 1, 63, 64, 1000] {
            assert_eq!(pool.take(length).as_ptr() as usize % ALIGNMENT, 0);
        }
        let first = pool.take(5000);
        let (place, second) = (first.as_ptr(), pool.take(5000));
        assert_ne!(place, second.as_ptr(), "somebody looks at the first");
        drop(first);
        assert_eq!(place, pool.take(4990).as_ptr());
        drop(pool);
        assert_eq!(second.as_slice().len(), 5000, "a buffer outlives its pool");
    }
}
