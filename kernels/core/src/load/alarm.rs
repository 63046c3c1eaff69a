//! Wakes a task at an instant, to some microseconds; tokio's own timer counts whole milliseconds.

use crate::clock::Nanos;

#[cfg(target_os = "linux")]
pub use linux::Alarm;

#[cfg(target_os = "linux")]
mod linux {
    use std::io;
    use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

    use tokio::io::Interest;
    use tokio::io::unix::AsyncFd;

    use super::Nanos;

    /// A timer of the kernel.
    pub struct Alarm(AsyncFd<OwnedFd>);

    impl Alarm {
        pub fn new() -> io::Result<Alarm> {
            // SAFETY: a plain system call; what it returns is checked, and nobody else's.
            let descriptor = unsafe { libc::timerfd_create(libc::CLOCK_MONOTONIC, libc::TFD_NONBLOCK | libc::TFD_CLOEXEC) };
            if descriptor < 0 {
                return Err(io::Error::last_os_error());
            }
            // SAFETY: see above.
            let descriptor = unsafe { OwnedFd::from_raw_fd(descriptor) };
            // SAFETY: the descriptor stays where it is, and open, as long as the timer.
            let timer = unsafe { AsyncFd::register_with_interest(descriptor, Interest::READABLE) }?;
            Ok(Alarm(timer))
        }

        /// Come back at `instant`, or at once where that is over.
        pub async fn at(&self, instant: Nanos) -> io::Result<()> {
            let instant = instant.max(1); // zero would disarm it
            let due = libc::timespec { tv_sec: instant / 1_000_000_000, tv_nsec: instant % 1_000_000_000 };
            let time = libc::itimerspec { it_interval: libc::timespec { tv_sec: 0, tv_nsec: 0 }, it_value: due };
            // SAFETY: the descriptor is a timer, `time` is valid for the call, and the old value is not wanted.
            let done = unsafe { libc::timerfd_settime(self.0.as_raw_fd(), libc::TFD_TIMER_ABSTIME, &time, std::ptr::null_mut()) };
            if done < 0 {
                return Err(io::Error::last_os_error());
            }
            loop {
                let mut ready = self.0.readable().await?;
                let read = ready.try_io(|timer| {
                    let mut expirations = [0_u8; 8];
                    // SAFETY: the buffer is as long as said.
                    let read = unsafe { libc::read(timer.as_raw_fd(), expirations.as_mut_ptr().cast(), expirations.len()) };
                    if read < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
                });
                if let Ok(done) = read {
                    return done;
                }
            }
        }
    }
}

#[cfg(not(target_os = "linux"))]
pub struct Alarm;

#[cfg(not(target_os = "linux"))]
impl Alarm {
    pub fn new() -> std::io::Result<Alarm> {
        Ok(Alarm)
    }

    /// Come back at `instant`, or up to a millisecond later.
    pub async fn at(&self, instant: Nanos) -> std::io::Result<()> {
        let left = instant.saturating_sub(super::now()).max(0) as u64;
        tokio::time::sleep(std::time::Duration::from_nanos(left)).await;
        Ok(())
    }
}
