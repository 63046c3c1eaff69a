//! The one clock: whole nanoseconds of CLOCK_MONOTONIC, the unit of the ledger.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

/// An instant or a duration, in ns.
pub type Nanos = i64;

/// The instant that never comes.
pub const NEVER: Nanos = i64::MAX;

/// Where the time comes from.
#[derive(Clone, Debug, Default)]
pub enum Clock {
    /// CLOCK_MONOTONIC.
    #[default]
    Monotonic,
    /// What tests set. Nobody is woken by it.
    Manual(Arc<AtomicI64>),
}

impl Clock {
    /// The instant.
    pub fn now(&self) -> Nanos {
        match self {
            Clock::Monotonic => monotonic(),
            Clock::Manual(now) => now.load(Ordering::Acquire),
        }
    }
}

fn monotonic() -> Nanos {
    read(libc::CLOCK_MONOTONIC)
}

/// CPU time of this thread so far.
pub fn thread_cpu() -> Nanos {
    read(libc::CLOCK_THREAD_CPUTIME_ID)
}

fn read(clock: libc::clockid_t) -> Nanos {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is valid for the call, which cannot fail for these clocks.
    unsafe { libc::clock_gettime(clock, &mut time) };
    time.tv_sec * 1_000_000_000 + time.tv_nsec
}
