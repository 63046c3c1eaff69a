//! System shared memory that clients registered: read and written by pread and pwrite on a kept descriptor.
//!
//! Never mapped: a client that truncates its own segment must not kill the server. Python registers
//! (`headrace.engine.regions`); here are the same names with descriptors of their own. Whoever holds a window keeps its
//! segment open.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::RwLock;

use crate::error::{Error, Kind, Result};

/// `byte_size` bytes from `offset` of the segment `key`.
#[derive(Debug)]
pub struct Region {
    pub name: String,
    pub key: String,
    pub offset: u64,
    pub byte_size: u64,
    pub segment: File,
}

/// Some bytes of a region. `start` counts from the beginning of the segment.
#[derive(Clone, Debug)]
pub struct Window {
    region: Arc<Region>,
    start: u64,
    byte_size: u64,
}

impl Window {
    pub fn byte_size(&self) -> u64 {
        self.byte_size
    }

    /// A copy of the bytes.
    pub fn read(&self) -> Result<Bytes> {
        self.check_is_there()?;
        let mut copy = vec![0; self.byte_size as usize];
        if self.region.segment.read_exact_at(&mut copy, self.start).is_err() {
            self.check_is_there()?;
            return Err(self.failed("read"));
        }
        Ok(copy.into())
    }

    /// Put `data` at the beginning.
    pub fn write(&self, data: &[u8]) -> Result<()> {
        self.check_is_there()?; // writing behind its end would make the segment larger
        self.region.segment.write_all_at(data, self.start).map_err(|_| self.failed("written"))
    }

    /// Whether a byte of this one is a byte of the other.
    pub fn overlaps(&self, other: &Window) -> bool {
        let identity = |window: &Window| window.region.segment.metadata().map(|m| (m.dev(), m.ino())).ok();
        self.start.max(other.start) < (self.start + self.byte_size).min(other.start + other.byte_size)
            && identity(self) == identity(other)
    }

    fn failed(&self, what: &str) -> Error {
        Error::new(Kind::RegionFailed, format!("shared memory region '{}' cannot be {what}", self.region.name))
    }

    fn check_is_there(&self) -> Result<()> {
        let (end, size) = (self.start + self.byte_size, self.region.segment.metadata().map_or(0, |m| m.len()));
        if end <= size {
            return Ok(());
        }
        Err(Error::invalid(format!(
            "shared memory region '{}' is shorter than it was when it was registered: the tensor ends at byte {end} of the \
             segment '{}', which has {size}",
            self.region.name, self.region.key
        )))
    }
}

/// The registered regions by name.
#[derive(Default)]
pub struct Regions {
    named: RwLock<HashMap<String, Arc<Region>>>,
}

impl Regions {
    pub fn map_region(&self, region: Region) {
        self.named.write().insert(region.name.clone(), Arc::new(region));
    }

    pub fn unmap_region(&self, name: &str) {
        self.named.write().remove(name);
    }

    /// Some bytes of a region; what is below 0 wraps, as the protocol's sizes do.
    pub fn window(&self, name: &str, offset: i64, byte_size: i64) -> Result<Window> {
        let region = self.named.read().get(name).cloned().ok_or_else(|| Error::region_not_found(name))?;
        let (offset, byte_size) = (offset as u64, byte_size as u64);
        if offset >= region.byte_size {
            return Err(Error::invalid(format!("Invalid offset for shared memory region: '{name}'")));
        }
        let Some(end) = offset.checked_add(byte_size) else {
            return Err(Error::invalid(format!(
                "Integer overflow detected: byte_size ({byte_size}) + offset ({offset}) exceeds maximum value ({}) for region \
                 '{name}'",
                u64::MAX
            )));
        };
        if end > region.byte_size {
            return Err(Error::invalid(format!("Invalid offset + byte size for shared memory region: '{name}'")));
        }
        Ok(Window { start: region.offset + offset, byte_size, region })
    }
}
