//! Panics and delays on purpose, for tests: what stands between a bug and a dead server must be seen to hold, and where time goes
//! must be seen to be told.
//!
//! Compiled in with the feature `faults` only; otherwise a point costs nothing.

/// Where a fault can be placed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Point {
    /// Decoding a request.
    Decode = 0,
    /// Taking a batch out of a queue.
    Take = 1,
    /// Gathering a batch.
    Gather = 2,
    /// Scattering the answers of a batch.
    Scatter = 3,
    /// Sending an answer, on the I/O thread.
    Io = 4,
}

impl Point {
    /// The point of this name.
    pub fn named(name: &str) -> Option<Point> {
        match name {
            "decode" => Some(Point::Decode),
            "take" => Some(Point::Take),
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
    use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
    use std::time::Duration;

    static LEFT: [AtomicUsize; 5] = [const { AtomicUsize::new(0) }; 5];
    static DELAYS: [AtomicU64; 5] = [const { AtomicU64::new(0) }; 5];

    /// Let the next `count` passes of `point` panic, or take `delay` longer if that is any time.
    pub fn arm(point: Point, count: usize, delay: Duration) {
        DELAYS[point as usize].store(delay.as_nanos() as u64, Ordering::SeqCst);
        LEFT[point as usize].store(count, Ordering::SeqCst);
    }

    /// Do what somebody asked for.
    #[allow(clippy::panic)]
    pub fn pass(point: Point) {
        let left = &LEFT[point as usize];
        if left.load(Ordering::Relaxed) > 0 && left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok()
        {
            match DELAYS[point as usize].load(Ordering::SeqCst) {
                0 => panic!("a fault was injected at {point:?}"),
                delay => std::thread::sleep(Duration::from_nanos(delay)),
            }
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
