//! Who drives a connection: its task on the I/O thread, or a thread that has answers for it.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use futures_util::task::AtomicWaker;
use parking_lot::Mutex;

/// A connection, to be driven. `is_task`: by its task, which also takes new calls.
pub trait Drive: Send {
    fn drive(&mut self, cx: &mut Context<'_>, is_task: bool) -> Poll<()>;
}

/// How often a thread that has answers looks whether driving a connection has woken it again, before its task has to.
const ROUNDS: usize = 4;

thread_local! {
    /// The connections that something was woken on since this thread began to distribute answers; None: it does not.
    static WOKEN: RefCell<Option<Vec<Arc<Link>>>> = const { RefCell::new(None) };
}

/// One connection, and who is to be woken for it. It is what everything in the connection has for a waker.
#[derive(Default)]
pub struct Link {
    connection: Mutex<Option<Box<dyn Drive>>>,
    task: AtomicWaker,
    /// It is over, and the task has not seen that yet.
    is_over: AtomicBool,
}

impl Link {
    pub fn set(&self, connection: Box<dyn Drive>) {
        *self.connection.lock() = Some(connection);
    }

    /// Drop it, and all its calls with it. Their wakers hold on to the link, so nobody else would.
    pub fn clear(&self) {
        let connection = self.connection.lock().take();
        drop(connection);
    }

    /// Drive it from its task. Ready when it is over; it is dropped then, with all its calls.
    pub fn poll(self: &Arc<Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.task.register(cx.waker());
        let waker = Waker::from(Arc::clone(self));
        let mut held = self.connection.lock();
        let Some(connection) = held.as_mut() else { return Poll::Ready(()) };
        let is_over = self.is_over.load(Ordering::Acquire) || connection.drive(&mut Context::from_waker(&waker), true).is_ready();
        if !is_over {
            return Poll::Pending;
        }
        drop(held);
        self.clear();
        Poll::Ready(())
    }

    /// Leave it to the task.
    pub fn wake_task(&self) {
        self.task.wake();
    }

    /// Drive it from this thread, if nobody else does.
    fn drive_here(self: &Arc<Self>) {
        let Some(mut held) = self.connection.try_lock() else { return self.wake_task() };
        let Some(connection) = held.as_mut() else { return };
        let waker = Waker::from(Arc::clone(self));
        let driven = catch_unwind(AssertUnwindSafe(|| connection.drive(&mut Context::from_waker(&waker), false)));
        drop(held);
        if !matches!(driven, Ok(Poll::Pending)) {
            self.is_over.store(true, Ordering::Release);
            self.wake_task();
        }
    }
}

impl Wake for Link {
    fn wake(self: Arc<Self>) {
        let left = WOKEN.with_borrow_mut(|woken| match woken {
            Some(links) => {
                if !links.iter().any(|known| Arc::ptr_eq(known, &self)) {
                    links.push(self);
                }
                None
            }
            None => Some(self),
        });
        if let Some(link) = left {
            link.wake_task();
        }
    }
}

/// Do something that wakes connections, then drive those from this thread.
pub fn driving(distribute: impl FnOnce()) {
    let is_nested = WOKEN.with_borrow(Option::is_some);
    if is_nested {
        return distribute(); // by somebody who is driving already
    }
    WOKEN.set(Some(Vec::new()));
    let _end = Collected;
    distribute();
    for _ in 0..ROUNDS {
        let woken = WOKEN.with_borrow_mut(|woken| woken.as_mut().map(std::mem::take)).unwrap_or_default();
        if woken.is_empty() {
            break;
        }
        woken.iter().for_each(Link::drive_here);
    }
}

/// Ends the collecting of wakes, after a panic, too: otherwise nobody would hear of this thread's answers any more.
struct Collected;

impl Drop for Collected {
    fn drop(&mut self) {
        // Whoever was woken once more has something to read or to wait for: that is for its task.
        let left = WOKEN.take().unwrap_or_default();
        left.iter().for_each(|link| link.wake_task());
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    /// Counts how often somebody was woken.
    #[derive(Default)]
    pub(in super::super) struct Counter(pub AtomicUsize);

    impl Wake for Counter {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn wakes_reach_the_task_after_a_panic() {
        let (link, counter) = (Arc::new(Link::default()), Arc::new(Counter::default()));
        link.task.register(&Waker::from(Arc::clone(&counter)));
        let done = catch_unwind(AssertUnwindSafe(|| {
            driving(|| {
                Waker::from(Arc::clone(&link)).wake();
                std::panic::resume_unwind(Box::new("distributing failed"));
            });
        }));
        assert!(done.is_err());
        assert_eq!(counter.0.load(Ordering::Relaxed), 1);
        assert!(WOKEN.with_borrow(Option::is_none));
    }
}
