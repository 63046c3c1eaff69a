//! What lives on the I/O thread: mailboxes in which answers arrive, and the queues that have to be woken.
//!
//! This is the pump. A batch posts all its letters at once and wakes the thread once; the thread pushes requests without
//! waking anybody, and wakes each queue once when it has looked at every connection that had something to say.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use futures_util::task::AtomicWaker;
use parking_lot::Mutex;
use rustc_hash::FxHashMap;

use super::server::Shared;
use crate::entry::{Letter, Outbox};
use crate::queue::Queue;

/// Letters on their way to the I/O thread.
#[derive(Default)]
pub struct Inbox {
    posted: Mutex<Vec<Letter>>,
    waker: AtomicWaker,
}

impl Outbox for Inbox {
    fn post(&self, letters: Vec<Letter>) {
        let mut posted = self.posted.lock();
        let was_empty = posted.is_empty();
        if was_empty {
            *posted = letters;
        } else {
            posted.extend(letters);
        }
        drop(posted);
        if was_empty {
            self.waker.wake();
        }
    }
}

#[derive(Default)]
struct Mailbox {
    letters: VecDeque<Letter>,
    waker: Option<Waker>,
}

/// The state of the I/O thread.
pub struct Io {
    pub shared: Arc<Shared>,
    mailboxes: RefCell<FxHashMap<u64, Mailbox>>,
    next_mailbox: Cell<u64>,
    dirty: RefCell<Vec<Arc<Queue>>>,
    flusher: RefCell<Option<Waker>>,
    /// Bytes of messages that are not complete yet.
    pub partial: Rc<Cell<usize>>,
    /// No stream reads any more; each ends with its last answer.
    pub is_finishing: Cell<bool>,
    /// Calls that are under way, connections that are open.
    pub calls: Cell<usize>,
    pub connections: RefCell<FxHashMap<u64, Option<Waker>>>,
    pub ended: tokio::sync::Notify,
}

impl Io {
    pub fn new(shared: Arc<Shared>) -> Rc<Io> {
        Rc::new(Io {
            shared,
            mailboxes: RefCell::default(),
            next_mailbox: Cell::new(0),
            dirty: RefCell::default(),
            flusher: RefCell::default(),
            partial: Rc::default(),
            is_finishing: Cell::new(false),
            calls: Cell::new(0),
            connections: RefCell::default(),
            ended: tokio::sync::Notify::new(),
        })
    }

    /// The number of a new connection, which counts as open from now on.
    pub fn next_connection(&self) -> u64 {
        let id = self.next_mailbox.get();
        self.next_mailbox.set(id + 1);
        self.connections.borrow_mut().insert(id, None);
        id
    }

    /// A new mailbox, which is closed when its owner is dropped.
    pub fn open_mailbox(self: &Rc<Self>) -> MailboxOwner {
        let id = self.next_mailbox.get();
        self.next_mailbox.set(id + 1);
        self.mailboxes.borrow_mut().insert(id, Mailbox::default());
        MailboxOwner { id, io: Rc::clone(self) }
    }

    /// Something was pushed there: wake it when everything that has arrived is pushed.
    pub fn wake_later(&self, queue: &Arc<Queue>) {
        let mut dirty = self.dirty.borrow_mut();
        if !dirty.iter().any(|known| Arc::ptr_eq(known, queue)) {
            dirty.push(Arc::clone(queue));
        }
        if let Some(waker) = self.flusher.borrow_mut().take() {
            waker.wake();
        }
    }

    /// Deliver letters, for ever.
    pub async fn deliver(self: Rc<Self>) {
        let inbox = Arc::clone(&self.shared.inbox);
        poll_fn(|cx: &mut Context<'_>| {
            inbox.waker.register(cx.waker());
            let letters = std::mem::take(&mut *inbox.posted.lock());
            // Those whose mailbox is closed are dropped, which settles them as cancelled; not while we hold the mailboxes.
            let mut lost = Vec::new();
            let mut mailboxes = self.mailboxes.borrow_mut();
            for letter in letters {
                match mailboxes.get_mut(&letter.mailbox) {
                    Some(mailbox) => {
                        mailbox.letters.push_back(letter);
                        if let Some(waker) = mailbox.waker.take() {
                            waker.wake();
                        }
                    }
                    None => lost.push(letter),
                }
            }
            drop(mailboxes);
            drop(lost);
            Poll::<()>::Pending
        })
        .await;
    }

    /// Wake queues, for ever. Runs behind the connections that are ready: a task that is woken goes to the end of the line.
    pub async fn flush(self: Rc<Self>) {
        poll_fn(|cx: &mut Context<'_>| {
            *self.flusher.borrow_mut() = Some(cx.waker().clone());
            for queue in self.dirty.borrow_mut().drain(..) {
                queue.wake();
            }
            Poll::<()>::Pending
        })
        .await;
    }

    /// Let every call look at what has changed.
    pub fn wake_all(&self) {
        for mailbox in self.mailboxes.borrow_mut().values_mut() {
            if let Some(waker) = mailbox.waker.take() {
                waker.wake();
            }
        }
        for waker in self.connections.borrow_mut().values_mut().filter_map(Option::take) {
            waker.wake();
        }
    }
}

/// Where the answers of one call arrive.
pub struct MailboxOwner {
    pub id: u64,
    io: Rc<Io>,
}

impl MailboxOwner {
    pub fn poll_next(&self, cx: &mut Context<'_>) -> Poll<Letter> {
        let mut mailboxes = self.io.mailboxes.borrow_mut();
        let Some(mailbox) = mailboxes.get_mut(&self.id) else {
            return Poll::Pending;
        };
        match mailbox.letters.pop_front() {
            Some(letter) => Poll::Ready(letter),
            None => {
                mailbox.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl Drop for MailboxOwner {
    fn drop(&mut self) {
        let closed = self.io.mailboxes.borrow_mut().remove(&self.id);
        drop(closed);
    }
}
