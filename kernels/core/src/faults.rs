//! Panics on purpose, for tests: what stands between a bug and a dead server must be seen to hold.
//!
//! Compiled in with the feature `faults` only; otherwise a point costs nothing.

/// Where a panic can be placed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Point {
    /// Decoding a request.
    Decode = 0,
    /// Gathering a batch.
    Gather = 1,
    /// Scattering the answers of a batch.
    Scatter = 2,
    /// Sending an answer, on the I/O thread.
    Io = 3,
}

impl Point {
    /// The point of this name.
    pub fn named(name: &str) -> Option<Point> {
        match name {
            "decode" => Some(Point::Decode),
            "gather" => Some(Point::Gather),
            "scatter" => Some(Point::Scatter),
            "io" => Some(Point::Io),
            _ => None,
        }
    }
}

#[cfg(feature = "faults")]
mod armed {
    use super::Point;
    use std::sync::atomic::{AtomicUsize, Ordering};

    static LEFT: [AtomicUsize; 4] = [const { AtomicUsize::new(0) }; 4];

    /// Let the next `count` passes of `point` panic.
    pub fn arm(point: Point, count: usize) {
        LEFT[point as usize].store(count, Ordering::SeqCst);
    }

    /// Panic, if somebody asked for it.
    #[allow(clippy::panic)]
    pub fn pass(point: Point) {
        let left = &LEFT[point as usize];
        if left.load(Ordering::Relaxed) > 0 && left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok()
        {
            panic!("a fault was injected at {point:?}");
        }
    }
}

#[cfg(feature = "faults")]
pub use armed::{arm, pass};

/// Does nothing in this build.
#[cfg(not(feature = "faults"))]
#[inline(always)]
pub fn pass(_: Point) {}

/// What a panic said.
pub fn said(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "a panic that says nothing".to_owned())
}
