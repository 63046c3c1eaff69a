//! What belongs to one server beside its sockets: the mailboxes in which answers arrive, the connections, and the queues that
//! have to be woken.
//!
//! This is the pump. In one direction the I/O thread pushes requests without waking anybody, and wakes each queue once when it
//! has looked at every connection that had something to say. In the other, whoever has answers – an instance thread with those
//! of a batch – puts them into their mailboxes and then drives the connections themselves: the answers are written by the thread
//! that has them, and the I/O thread need not wake up for it. Only a connection that the I/O thread is busy with is left to it.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};

use futures_util::task::AtomicWaker;
use parking_lot::Mutex;
use rustc_hash::FxHashMap;

use super::link::{Link, driving};
use super::server::Shared;
use crate::entry::{Letter, Outbox};
use crate::queue::Queue;

#[derive(Default)]
struct Mailbox {
    letters: VecDeque<Letter>,
    waker: Option<Waker>,
}

/// The mailboxes of a server.
#[derive(Default)]
pub struct Inbox {
    mailboxes: Mutex<FxHashMap<u64, Mailbox>>,
    next: AtomicU64,
}

impl Inbox {
    /// A new mailbox, which is closed when its owner is dropped.
    pub fn open(self: &Arc<Self>) -> MailboxOwner {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        self.mailboxes.lock().insert(id, Mailbox::default());
        MailboxOwner { id, inbox: Arc::clone(self) }
    }

    /// Put letters into their mailboxes and wake their owners.
    pub fn distribute(&self, letters: Vec<Letter>) {
        // Those whose mailbox is closed are dropped, which settles them as cancelled; not while the mailboxes are held.
        let (mut lost, mut owners) = (Vec::new(), Vec::new());
        let mut mailboxes = self.mailboxes.lock();
        for letter in letters {
            match mailboxes.get_mut(&letter.mailbox) {
                Some(mailbox) => {
                    mailbox.letters.push_back(letter);
                    owners.extend(mailbox.waker.take());
                }
                None => lost.push(letter),
            }
        }
        drop(mailboxes);
        drop(lost);
        owners.into_iter().for_each(Waker::wake);
    }

    /// Let every call look at what has changed.
    fn wake_all(&self) {
        let owners: Vec<Waker> = self.mailboxes.lock().values_mut().filter_map(|mailbox| mailbox.waker.take()).collect();
        owners.into_iter().for_each(Waker::wake);
    }
}

impl Outbox for Inbox {
    fn post(&self, letters: Vec<Letter>) {
        driving(|| self.distribute(letters));
    }
}

/// Where the answers of one call arrive.
pub struct MailboxOwner {
    pub id: u64,
    inbox: Arc<Inbox>,
}

impl MailboxOwner {
    pub fn poll_next(&self, cx: &mut Context<'_>) -> Poll<Letter> {
        let mut mailboxes = self.inbox.mailboxes.lock();
        let Some(mailbox) = mailboxes.get_mut(&self.id) else { return Poll::Pending };
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
        let closed = self.inbox.mailboxes.lock().remove(&self.id);
        drop(closed);
    }
}

/// The state of a server's connections.
pub struct Io {
    pub shared: Arc<Shared>,
    dirty: Mutex<Vec<Arc<Queue>>>,
    flusher: AtomicWaker,
    /// Bytes of messages that are not complete yet.
    pub partial: Arc<AtomicUsize>,
    /// No stream reads any more; each ends with its last answer.
    pub is_finishing: AtomicBool,
    /// Calls that are under way.
    pub calls: AtomicUsize,
    pub connections: Mutex<FxHashMap<u64, Arc<Link>>>,
    next_connection: AtomicU64,
    pub ended: tokio::sync::Notify,
}

impl Io {
    pub fn new(shared: Arc<Shared>) -> Arc<Io> {
        Arc::new(Io {
            shared,
            dirty: Mutex::default(),
            flusher: AtomicWaker::new(),
            partial: Arc::default(),
            is_finishing: AtomicBool::new(false),
            calls: AtomicUsize::new(0),
            connections: Mutex::default(),
            next_connection: AtomicU64::new(0),
            ended: tokio::sync::Notify::new(),
        })
    }

    /// Count a connection as open; its number.
    pub fn enter(&self, link: &Arc<Link>) -> u64 {
        let id = self.next_connection.fetch_add(1, Ordering::Relaxed);
        self.connections.lock().insert(id, Arc::clone(link));
        id
    }

    /// It is closed.
    pub fn leave(&self, id: u64) {
        let gone = self.connections.lock().remove(&id);
        drop(gone);
        self.ended.notify_waiters();
    }

    /// Something was pushed there: wake it when everything that has arrived is pushed.
    pub fn wake_later(&self, queue: &Arc<Queue>) {
        let mut dirty = self.dirty.lock();
        if !dirty.iter().any(|known| Arc::ptr_eq(known, queue)) {
            dirty.push(Arc::clone(queue));
        }
        drop(dirty);
        self.flusher.wake();
    }

    /// Wake queues, for ever. Runs behind the connections that are ready: a task that is woken goes to the end of the line.
    pub async fn flush(self: Arc<Self>) {
        poll_fn(|cx: &mut Context<'_>| {
            self.flusher.register(cx.waker());
            let dirty = std::mem::take(&mut *self.dirty.lock());
            dirty.iter().for_each(|queue| queue.wake());
            Poll::<()>::Pending
        })
        .await;
    }

    /// Let every call and every connection look at what has changed.
    pub fn wake_all(&self) {
        self.shared.inbox.wake_all();
        let links: Vec<Arc<Link>> = self.connections.lock().values().cloned().collect();
        links.iter().for_each(|link| link.wake_task());
    }
}
