//! Fixed-size records in a ring, in memory that another process may map and read while it is written. The format is that of
//! docs/ledger.md; its reference is `headrace.ledger.ring`.
//!
//! One writer at a time, who holds `&mut`. A record is complete before `written` counts it, and `written` counts the one before
//! it before a byte of the next is there: so whoever reads `written`, copies, and reads it again knows which records were whole.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering, fence};

#[cfg(target_endian = "big")]
compile_error!("records are written as they lie in memory, and are read as little endian");

/// Where the records begin.
pub const HEADER_BYTES: usize = 4096;
const MAGIC: [u8; 8] = *b"HRLEDGER";
const LAYOUT: u32 = 1;
const LAYOUT_AT: usize = 8;
const RECORD_BYTES_AT: usize = 12;
const CAPACITY_AT: usize = 16;
const WRITTEN_AT: usize = 64;

enum Memory {
    /// Of this process; of words, so that counters are aligned.
    Own(Box<[u64]>),
    Mapped {
        start: *mut u8,
        bytes: usize,
    },
}

// SAFETY: the mapping belongs to its ring, as the box does.
unsafe impl Send for Memory {}

impl Memory {
    fn start(&self) -> *mut u8 {
        match self {
            Memory::Own(words) => words.as_ptr().cast::<u8>().cast_mut(),
            Memory::Mapped { start, .. } => *start,
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if let Memory::Mapped { start, bytes } = *self {
            // SAFETY: it was mapped by us, and nobody refers to it any more.
            unsafe { libc::munmap(start.cast(), bytes) };
        }
    }
}

/// See the head of this file.
pub struct Ring {
    memory: Memory,
    record_bytes: usize,
    capacity: u64,
    written: u64,
}

impl Ring {
    /// A ring that nobody else sees.
    pub fn own(record_bytes: usize, capacity: u64) -> Ring {
        let words = (HEADER_BYTES + record_bytes * capacity as usize).div_ceil(8);
        Ring { memory: Memory::Own(vec![0; words].into_boxed_slice()), record_bytes, capacity, written: 0 }
    }

    /// The ring in a file that was prepared for it; it goes on where the file stands.
    ///
    /// # Errors
    /// It cannot be mapped, or it is no ring of such records.
    pub fn map(descriptor: BorrowedFd<'_>, record_bytes: usize) -> io::Result<Ring> {
        let wrong = |what: &str| Err(io::Error::new(io::ErrorKind::InvalidData, format!("this is no ring of ours: {what}")));
        // SAFETY: all zeros are a valid `stat`, and the call fills it.
        let mut stat: libc::stat = unsafe { std::mem::zeroed() };
        // SAFETY: both are valid during the call.
        if unsafe { libc::fstat(descriptor.as_raw_fd(), &mut stat) } != 0 {
            return Err(io::Error::last_os_error());
        }
        let bytes = stat.st_size as usize;
        if bytes < HEADER_BYTES {
            return wrong("it is too short");
        }
        let (access, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
        // SAFETY: a new mapping, which overlaps nothing.
        let start = unsafe { libc::mmap(ptr::null_mut(), bytes, access, kind, descriptor.as_raw_fd(), 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let memory = Memory::Mapped { start: start.cast(), bytes };
        // SAFETY: the header is within the mapping.
        let header = unsafe { std::slice::from_raw_parts(memory.start(), WRITTEN_AT) };
        let capacity = header[CAPACITY_AT..].first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        let number = |at: usize| header[at..].first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes));
        if header[..8] != MAGIC || number(LAYOUT_AT) != LAYOUT {
            return wrong("it has another layout");
        }
        if number(RECORD_BYTES_AT) as usize != record_bytes {
            return wrong("its records have another size");
        }
        let fits = (capacity as usize).checked_mul(record_bytes).is_some_and(|records| records <= bytes - HEADER_BYTES);
        if capacity == 0 || !fits {
            return wrong("its capacity is not that of the file");
        }
        let mut ring = Ring { memory, record_bytes, capacity, written: 0 };
        ring.written = ring.counter().load(Ordering::Acquire);
        Ok(ring)
    }

    /// How many records there have been.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// How many it holds.
    pub fn capacity(&self) -> u64 {
        self.capacity
    }

    /// Add a record, over the oldest one if the ring is full.
    pub fn write(&mut self, record: &[u8]) {
        assert_eq!(record.len(), self.record_bytes, "a record of this ring");
        // The counter of the record before goes first: see the head of this file.
        fence(Ordering::Release);
        // SAFETY: the slot is within the memory, which nobody of this process touches meanwhile: we are `&mut`.
        unsafe { ptr::copy_nonoverlapping(record.as_ptr(), self.slot(self.written), self.record_bytes) };
        self.written += 1;
        self.counter().store(self.written, Ordering::Release);
    }

    /// Add copies of the records from `first` up to `end` to `to`. All of them must still be there.
    pub fn copy(&self, first: u64, end: u64, to: &mut Vec<u8>) {
        assert!(end <= self.written && end - first <= self.capacity, "records that are there");
        let mut at = first;
        while at < end {
            let upto = end.min(at + self.capacity - at % self.capacity);
            // SAFETY: from `at` up to the end of the ring, or to `end`: within the memory, and nobody writes while we are `&`.
            to.extend_from_slice(unsafe { std::slice::from_raw_parts(self.slot(at), (upto - at) as usize * self.record_bytes) });
            at = upto;
        }
    }

    fn slot(&self, at: u64) -> *mut u8 {
        // SAFETY: within the memory, by construction.
        unsafe { self.memory.start().add(HEADER_BYTES + (at % self.capacity) as usize * self.record_bytes) }
    }

    fn counter(&self) -> &AtomicU64 {
        // SAFETY: aligned, within the header, and only ever looked at as an atomic.
        unsafe { AtomicU64::from_ptr(self.memory.start().add(WRITTEN_AT).cast()) }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;
    use std::os::unix::fs::FileExt;

    use super::*;

    fn prepared(name: &str, record_bytes: u32, capacity: u64, layout: u32) -> File {
        let path = std::env::temp_dir().join(format!("headrace-ring-{}-{name}", std::process::id()));
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        file.set_len((HEADER_BYTES + 8 * 4) as u64).unwrap();
        file.write_all_at(&MAGIC, 0).unwrap();
        file.write_all_at(&layout.to_le_bytes(), LAYOUT_AT as u64).unwrap();
        file.write_all_at(&record_bytes.to_le_bytes(), RECORD_BYTES_AT as u64).unwrap();
        file.write_all_at(&capacity.to_le_bytes(), CAPACITY_AT as u64).unwrap();
        file
    }

    fn numbers(ring: &Ring, first: u64, end: u64) -> Vec<u64> {
        let mut packed = Vec::new();
        ring.copy(first, end, &mut packed);
        packed.as_chunks::<8>().0.iter().map(|bytes| u64::from_le_bytes(*bytes)).collect()
    }

    #[test]
    fn the_oldest_go_first_and_copies_go_round() {
        let mut ring = Ring::own(8, 4);
        (0..6u64).for_each(|number| ring.write(&number.to_le_bytes()));
        assert_eq!((ring.written(), ring.capacity()), (6, 4));
        assert_eq!(numbers(&ring, 2, 6), [2, 3, 4, 5]);
        assert_eq!(numbers(&ring, 3, 5), [3, 4]);
        assert!(numbers(&ring, 6, 6).is_empty());
    }

    #[test]
    fn what_is_mapped_is_in_the_file_and_goes_on_there() {
        let file = prepared("file", 8, 4, LAYOUT);
        let mut ring = Ring::map(file.as_fd(), 8).unwrap();
        (0..5u64).for_each(|number| ring.write(&number.to_le_bytes()));
        let mut found = [0; 8];
        file.read_exact_at(&mut found, WRITTEN_AT as u64).unwrap();
        assert_eq!(u64::from_le_bytes(found), 5);
        file.read_exact_at(&mut found, HEADER_BYTES as u64).unwrap();
        assert_eq!(u64::from_le_bytes(found), 4, "over the oldest");
        drop(ring);
        let mut again = Ring::map(file.as_fd(), 8).unwrap();
        again.write(&9u64.to_le_bytes());
        assert_eq!(numbers(&again, 4, 6), [4, 9]);
    }

    #[test]
    fn what_is_no_ring_is_refused() {
        for (name, file) in [
            ("layout", prepared("layout", 8, 4, LAYOUT + 1)),
            ("size", prepared("size", 16, 2, LAYOUT)),
            ("capacity", prepared("capacity", 8, 5, LAYOUT)),
            ("none", prepared("none", 8, 0, LAYOUT)),
            ("huge", prepared("huge", 8, u64::MAX / 2, LAYOUT)),
        ] {
            assert!(Ring::map(file.as_fd(), 8).is_err(), "{name}");
        }
        let short = prepared("short", 8, 4, LAYOUT);
        short.set_len(100).unwrap();
        assert!(Ring::map(short.as_fd(), 8).is_err());
    }
}
