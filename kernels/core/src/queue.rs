//! What waits for one loaded version, in order. The reference is `headrace.scheduling.queue`.
//!
//! Threads: the I/O thread and callers in the process push, instance threads take turns, the expiry thread drops what is
//! overdue, whoever hands over an answer settles. One lock guards all of it, and nobody is called with it held. Invariants: an
//! entry is in `order` iff it waits and is not parked; `unsettled` counts every pushed entry until its record is written; one
//! turn is open at a time.

use std::cmp::Reverse;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::admission::{Ahead, Depth, Limits, Newcomer, check, due, in_share};
use crate::batch::Batch;
use crate::buffer::Pool;
use crate::clock::{Clock, NEVER, Nanos};
use crate::codec::Request;
use crate::entry::{Entry, Fate, Lane, Letter, Settlement, Sink, Ticket, lane_of};
use crate::error::{Error, Kind};
use crate::expiry::Expiry;
use crate::faults::{self, Point};
use crate::ledger::{BatchRecord, Ledger, RequestRecord};
use crate::news::{Level, LocalAnswer, News};
use crate::spec::Spec;
use crate::validate::admit;
use crate::waiting::State;

/// Bytes of an entry in a view; the layout is `headrace.scheduling.plan.VIEW`.
pub const VIEW_BYTES: usize = 72;

/// What all queues of a kernel share.
pub struct House {
    pub clock: Clock,
    pub ledger: Arc<Ledger>,
    pub news: Arc<News>,
    pub expiry: Arc<Expiry>,
}

/// A request that was not admitted; it comes back whole where another queue may take it.
pub struct Rejected {
    pub error: Error,
    pub request: Option<Box<Request>>,
}

/// See the head of this file. `id` tells the queues of a kernel apart, `model` is the ledger's number of the version.
pub struct Queue {
    pub id: u64,
    pub model: u32,
    pub spec: Spec,
    pub version: String,
    pub clock: Clock,
    pub pool: Arc<Pool>,
    house: Arc<House>,
    limits: Mutex<Limits>,
    state: Mutex<State>,
    changed: Condvar,
    all_settled: Condvar,
}

/// The right to take from a queue.
pub struct Turn {
    /// The most urgent entries, `VIEW_BYTES` each.
    pub view: Vec<u8>,
    /// The queue is closed: nobody else will come.
    pub is_last_call: bool,
    /// When the first of the instances that run is predicted to be idle; 0 if none runs, or it is not known.
    pub busy_until: Nanos,
}

impl Queue {
    /// `account`: the ledger's number of the version, and the one above which requests and batches are numbered.
    pub fn new(house: Arc<House>, id: u64, account: (u32, u64), spec: Spec, limits: Limits) -> Arc<Queue> {
        let (model, above) = account;
        Arc::new(Queue {
            id,
            model,
            version: spec.version.to_string(),
            spec,
            clock: house.clock.clone(),
            pool: Arc::default(),
            house,
            limits: Mutex::new(limits),
            state: Mutex::new(State { numbers: above, batches: above, ..State::default() }),
            changed: Condvar::new(),
            all_settled: Condvar::new(),
        })
    }

    /// Admit a request. Nobody is woken: see `wake`.
    pub fn push(self: &Arc<Self>, mut request: Box<Request>, sink: Sink) -> Result<Ticket, Rejected> {
        if self.state.lock().is_closed {
            return Err(Rejected { error: Error::queue_closed(&request.id), request: Some(request) });
        }
        let mut admitted = admit(&self.spec, &mut request).map_err(|error| Rejected { error, request: None })?;
        let now = self.clock.now();
        let times = due(&request, &self.spec.batching, now);
        let lane = request.sequence.as_ref().filter(|_| self.spec.sequences).map(|sequence| lane_of(&sequence.id));
        let fate = Arc::new(Fate::default());
        let size = Depth { requests: 1, rows: u64::from(admitted.rows.max(1)), nbytes: admitted.nbytes };
        let overdue = times.deadline.min(times.queue_until);

        let mut state = self.state.lock();
        if let Err(error) = self.check(&mut state, Newcomer { id: &request.id, due: &times, size, bucket: admitted.bucket }, now)
        {
            drop(state);
            if error.kind == Some(Kind::QueueClosed) {
                restore(&self.spec, &mut request, &mut admitted);
                return Err(Rejected { error, request: Some(request) });
            }
            return Err(Rejected { error, request: None });
        }
        state.numbers += 1;
        let number = state.numbers;
        let record = RequestRecord {
            number,
            received: request.received,
            decoded: request.decoded,
            queued: now,
            deadline: if times.deadline == NEVER { 0 } else { times.deadline },
            bytes_in: admitted.nbytes,
            model: self.model,
            rows: admitted.rows,
            level: times.level,
            ..RequestRecord::default().with_origin(&request.origin)
        };
        let settlement = Settlement::new(Arc::clone(self), record, lane.clone(), Arc::clone(&fate));
        let entry = Box::new(Entry {
            number,
            key: times.key,
            due: times,
            request: *request,
            admitted,
            sink,
            lane,
            is_parked: false,
            queued: now,
            fate: Arc::clone(&fate),
            settlement: Some(settlement),
        });
        state.unsettled += 1;
        if matches!(entry.sink, Sink::Local) {
            state.local_fates.insert(number, Arc::clone(&fate));
        }
        state.count(&entry, true);
        state.line_up(entry);
        let is_first = state.note_overdue(number, overdue);
        drop(state);
        if is_first {
            self.house.expiry.at(self, overdue);
        }
        Ok(Ticket { queue: Arc::clone(self), number, fate })
    }

    /// Let an idle instance look at what was pushed.
    pub fn wake(&self) {
        self.changed.notify_one();
    }

    /// Nobody wants the answer of this entry any more, as its `Fate` says already.
    pub fn cancel(&self, number: u64) {
        let mut state = self.state.lock();
        let gone = state.leave(number);
        let handed = state.handed.remove(&number);
        let is_parted = state.parted.remove(&number);
        drop(state);
        // Dropped settlements are those of cancelled requests.
        drop((gone, handed));
        if is_parted {
            self.house.news.gone(self.id, number);
        }
    }

    /// Nobody wants the answer of a local entry any more, wherever it is. What runs is not answered.
    pub fn cancel_local(&self, number: u64) {
        let state = self.state.lock();
        if let Some(fate) = state.local_fates.get(&number) {
            fate.cancel();
        }
        drop(state);
        self.cancel(number);
    }

    /// Wait for something to plan; None when the queue is closed and empty. `until`: come back then although nothing came.
    pub fn turn(&self, until: Option<Nanos>) -> Option<Turn> {
        self.house.ledger.wait_for_room();
        let mut state = self.state.lock();
        loop {
            if state.is_closed && state.order.is_empty() && state.lanes.is_empty() {
                // Whoever woke us meant an instance that has something to do; the others have to end, too.
                self.changed.notify_all();
                return None;
            }
            if let Some(turn) = self.open_turn(&mut state, until) {
                return Some(turn);
            }
            let until = if state.order.is_empty() { None } else { until };
            wait(&self.changed, &mut state, &self.clock, until);
        }
    }

    /// The same without waiting, for an instance that is done with this batch but has not answered it yet; None where there is nothing
    /// to plan.
    pub fn turn_at_once(&self, instance: u16, done: u64) -> Option<Turn> {
        if !self.house.ledger.has_room() {
            return None;
        }
        let mut state = self.state.lock();
        state.done(instance, done);
        self.open_turn(&mut state, None)
    }

    fn open_turn(&self, state: &mut State, until: Option<Nanos>) -> Option<Turn> {
        let is_fresh = until.is_none_or(|until| state.has_news || state.is_closed || until <= self.clock.now());
        // With `preserve_ordering`, one batch at a time: the next could overtake it.
        let is_held = self.spec.batching.preserve_ordering && state.running > 0;
        if state.order.is_empty() || !is_fresh || state.turn_open || is_held {
            return None;
        }
        (state.turn_open, state.has_news) = (true, false);
        let busy_until = state.free_at.values().map(|(_, at)| *at).filter(|at| *at > 0).min().unwrap_or(0);
        Some(Turn { view: self.view(state), is_last_call: state.is_closed, busy_until })
    }

    /// Carry out a plan and end the turn: these entries as one batch, those are expired.
    ///
    /// `predicted` is how long the batch will run, as far as that is known, in ns.
    pub fn take(
        self: &Arc<Self>,
        take: &[u64],
        drop_them: &[u64],
        instance: u16,
        reason: u16,
        predicted: Nanos,
    ) -> Option<Batch> {
        faults::pass(Point::Take);
        let now = self.clock.now();
        let mut state = self.state.lock();
        let expired: Vec<_> = drop_them.iter().filter_map(|number| state.leave(*number)).collect();
        let mut entries: Vec<Box<Entry>> = Vec::with_capacity(take.len());
        for number in take {
            let Some(entry) = state.waiting.get(number) else {
                continue;
            };
            // A bucket in the view is a hash; entries share a batch only if the shapes themselves are equal.
            let is_mate = entries.first().is_none_or(|first| first.admitted.is_mate(&entry.admitted, &self.spec));
            if is_mate && let Some(entry) = state.leave(*number) {
                entries.push(entry);
            }
        }
        let number = if entries.is_empty() { 0 } else { state.batches + 1 };
        state.batches = state.batches.max(number);
        state.running += usize::from(!entries.is_empty());
        if !entries.is_empty()
            && let Some(estimate) = &self.limits.lock().estimate
        {
            let rows = entries.iter().map(|entry| entry.size().rows).sum();
            let lasts = estimate.lasts(entries[0].admitted.bucket, rows);
            state.free_at.insert(instance, (number, now.saturating_add(lasts)));
        }
        state.turn_open = false;
        drop(state);
        self.changed.notify_one();
        self.answer_dropped(expired, &Error::cannot_meet_deadline(None), now);
        if entries.is_empty() {
            return None;
        }
        for (place, entry) in entries.iter_mut().enumerate() {
            if let Some(settlement) = &mut entry.settlement {
                let record = &mut settlement.record;
                (record.batch, record.place, record.taken) = (number, place as u32, now);
                record.predicted = predicted;
            }
        }
        let record = BatchRecord { number, taken: now, predicted, instance, reason, ..BatchRecord::default() };
        Some(Batch::new(Arc::clone(self), entries, record))
    }

    /// End a turn that no plan came out of.
    pub fn abandon_turn(&self) {
        self.state.lock().turn_open = false;
        self.changed.notify_one();
    }

    /// A batch is answered in full.
    pub fn finished(&self, record: &BatchRecord) {
        self.house.ledger.write_batch(record);
        let mut state = self.state.lock();
        state.running -= 1;
        state.done(record.instance, record.number);
        drop(state);
        self.changed.notify_one();
    }

    /// The batch of these entries was taken apart: whose client goes now, or has gone, is told to whoever has the part.
    pub fn watch<'a>(&self, parted: impl Iterator<Item = &'a Entry>) {
        let mut gone = Vec::new();
        let mut state = self.state.lock();
        for entry in parted {
            // Its cancel came too early to find it here, or finds nothing when it comes: see `Ticket::cancel`.
            if entry.fate.is_cancelled() {
                gone.push(entry.number);
            } else {
                state.parted.insert(entry.number);
            }
        }
        drop(state);
        gone.into_iter().for_each(|number| self.house.news.gone(self.id, number));
    }

    /// An error for a local entry, whose settlement is handed over: see `hand`.
    pub fn tell(&self, number: u64, error: Error) {
        self.house.news.answer(LocalAnswer { queue: self.id, number, error });
    }

    /// A line in the log about something that went wrong on our side.
    pub fn report(&self, error: &Error) {
        self.house.news.log(Level::Error, error.message.clone());
    }

    /// Change the bounds, from the next push on.
    pub fn set_limits(&self, limits: Limits) {
        *self.limits.lock() = limits;
    }

    pub fn depth(&self) -> Depth {
        self.state.lock().depth
    }

    /// Entries that wait, entries that are not settled, batches that run, and whether it is closed: for people.
    pub fn counts(&self) -> (u64, usize, usize, bool) {
        let state = self.state.lock();
        (state.depth.requests, state.unsettled, state.running, state.is_closed)
    }

    /// Wait until every pushed entry is settled, or `until`; says whether it is so.
    pub fn wait_settled(&self, until: Nanos) -> bool {
        let mut state = self.state.lock();
        while state.unsettled > 0 && self.clock.now() < until {
            wait(&self.all_settled, &mut state, &self.clock, Some(until));
        }
        state.unsettled == 0
    }

    /// Take no more. What is queued is still served.
    pub fn close(&self) {
        self.state.lock().is_closed = true;
        self.changed.notify_all();
    }

    /// Take no more, and refuse what waits.
    pub fn abandon(self: &Arc<Self>) {
        self.close();
        let mut state = self.state.lock();
        let mut numbers: Vec<u64> = state.waiting.keys().copied().collect();
        numbers.sort_unstable();
        let left: Vec<_> = numbers.into_iter().filter_map(|number| state.leave(number)).collect();
        drop(state);
        self.changed.notify_all();
        let refused = left.into_iter().map(|entry| {
            let error = Error::queue_closed(&entry.request.id);
            (entry, error)
        });
        self.answer(refused.collect());
    }

    /// Answer what is overdue at `now` and still waits. Returns the instant to come back at, if any.
    pub fn expire(self: &Arc<Self>, now: Nanos) -> Option<Nanos> {
        let mut gone = Vec::new();
        let mut state = self.state.lock();
        while let Some(Reverse((at, number))) = state.overdue.peek().copied()
            && at <= now
        {
            state.overdue.pop();
            let Some(entry) = state.waiting.get(&number) else {
                continue;
            };
            if entry.due.deadline > now && self.spec.batching.policy_of(entry.due.level).delay {
                state.postpone(number);
                self.changed.notify_one();
            } else {
                gone.extend(state.leave(number));
            }
        }
        let again = state.overdue.peek().map(|Reverse((at, _))| *at);
        drop(state);
        self.answer_dropped(gone, &Error::queue_timeout(), now);
        again
    }

    /// A settlement has ended: the record first, so that whoever waits for the last entry finds it in the ledger.
    pub fn settled(&self, record: &RequestRecord, lane: Option<Lane>) {
        self.house.ledger.write(record);
        let mut state = self.state.lock();
        state.unsettled -= 1;
        if !state.local_fates.is_empty() {
            state.local_fates.remove(&record.number);
        }
        if !state.parted.is_empty() {
            state.parted.remove(&record.number);
        }
        let frees = lane.is_some_and(|lane| state.free_lane(&lane));
        let is_last = state.unsettled == 0;
        drop(state);
        if frees {
            self.changed.notify_all();
        }
        if is_last {
            self.all_settled.notify_all();
        }
    }

    /// The answer of a local entry goes to its caller, who settles it: see `settle_local`.
    pub fn hand(&self, number: u64, settlement: Settlement) {
        let mut state = self.state.lock();
        if settlement.is_cancelled() {
            // Its caller has gone and will not come for it: `cancel` has looked here already. To drop it settles it.
            drop(state);
            return drop(settlement);
        }
        state.handed.insert(number, settlement);
    }

    /// The settlement of a local entry that was answered; None if it has been settled.
    pub fn take_handed(&self, number: u64) -> Option<Settlement> {
        self.state.lock().handed.remove(&number)
    }

    /// Answer entries that left the queue with errors.
    fn answer(&self, entries: Vec<(Box<Entry>, Error)>) {
        let mut post = Post::default();
        for (mut entry, error) in entries {
            let Some(settlement) = entry.settlement.take() else {
                continue;
            };
            match &entry.sink {
                Sink::Local => {
                    self.hand(entry.number, settlement);
                    self.tell(entry.number, error);
                }
                Sink::Remote { outbox, mailbox, ask, .. } => {
                    let (mailbox, ask) = (*mailbox, *ask);
                    post.add(outbox, Letter { mailbox, ask, result: Err(error), is_final: true, settlement: Some(settlement) });
                }
            }
        }
        post.send();
    }

    /// Entries that left before their turn; `early` is for those whose deadline has not come yet.
    fn answer_dropped(&self, entries: Vec<Box<Entry>>, early: &Error, now: Nanos) {
        let dropped = entries.into_iter().map(|entry| {
            let error = if entry.fate.is_cancelled() {
                Error::cancelled()
            } else if entry.due.deadline > now {
                early.clone()
            } else {
                Error::deadline_expired(&self.spec.name)
            };
            (entry, error)
        });
        self.answer(dropped.collect());
    }

    fn check(&self, state: &mut State, new: Newcomer<'_>, now: Nanos) -> Result<(), Error> {
        if state.is_closed {
            return Err(Error::queue_closed(new.id));
        }
        let most = self.spec.batching.policy_of(new.due.level).max_requests;
        if most > 0 && state.in_level.get(&new.due.level).is_some_and(|count| *count >= most) {
            return Err(Error::queue_full(new.id));
        }
        let limits = self.limits.lock();
        if let Some(share) = limits.shed.get(&new.due.level) {
            let came = state.came.entry(new.due.level).or_default();
            *came += 1;
            if in_share(*came, *share) {
                return Err(Error::class_shed(new.due.level));
            }
        }
        let instances = limits.estimate.as_ref().map_or(usize::MAX, |estimate| estimate.instances);
        let ahead = Ahead {
            waiting: state.in_bucket.iter().map(|(bucket, rows)| (*bucket, *rows)),
            first: state.order.range(..=(new.due.key, u64::MAX)).map(|(_, entry)| *entry),
            // An instance that has not taken anything yet is idle.
            free_at: match state.free_at.len() < instances {
                true => 0,
                false => state.free_at.values().map(|(_, at)| *at).min().unwrap_or(0),
            },
        };
        check(new, state.depth, ahead, &limits, now)
    }

    fn view(&self, state: &State) -> Vec<u8> {
        let most = 4 * self.spec.max_batch_size.max(1) as usize;
        let mut view = Vec::with_capacity(most.min(state.order.len()) * VIEW_BYTES);
        for (_, number) in state.order.keys().take(most) {
            let Some(entry) = state.waiting.get(number) else {
                continue;
            };
            view.extend_from_slice(&entry.number.to_le_bytes());
            for instant in [entry.key, entry.queued, entry.due.target, entry.due.deadline] {
                view.extend_from_slice(&instant.to_le_bytes());
            }
            view.extend_from_slice(&entry.admitted.bucket.to_le_bytes());
            view.extend_from_slice(&entry.admitted.nbytes.to_le_bytes());
            view.extend_from_slice(&entry.admitted.rows.max(1).to_le_bytes());
            view.extend_from_slice(&entry.due.level.to_le_bytes());
            view.extend_from_slice(&entry.admitted.padded.to_le_bytes());
            view.extend_from_slice(&[0; 4]);
        }
        view
    }
}

/// Letters by the outbox they go to, so that each is woken once.
#[derive(Default)]
pub struct Post {
    letters: Vec<(Arc<dyn crate::entry::Outbox>, Vec<Letter>)>,
}

impl Post {
    pub fn add(&mut self, outbox: &Arc<dyn crate::entry::Outbox>, letter: Letter) {
        match self.letters.iter_mut().find(|(known, _)| Arc::ptr_eq(known, outbox)) {
            Some((_, letters)) => letters.push(letter),
            None => self.letters.push((Arc::clone(outbox), vec![letter])),
        }
    }

    pub fn send(self) {
        for (outbox, letters) in self.letters {
            outbox.post(letters);
        }
    }
}

/// Give a request back the data that `admit` took.
fn restore(spec: &Spec, request: &mut Request, admitted: &mut crate::validate::Admitted) {
    for (declared, tensor) in spec.inputs.iter().zip(&mut admitted.inputs) {
        let given = request.inputs.iter_mut().find(|input| *input.name == *declared.name);
        if let (Some(given), Some(tensor)) = (given, tensor) {
            given.data = std::mem::take(&mut tensor.data);
        }
    }
}

fn wait(condition: &Condvar, state: &mut MutexGuard<'_, State>, clock: &Clock, until: Option<Nanos>) {
    match until {
        None | Some(NEVER) => condition.wait(state),
        Some(until) => {
            let left = until.saturating_sub(clock.now()).max(0) as u64;
            condition.wait_for(state, Duration::from_nanos(left));
        }
    }
}
