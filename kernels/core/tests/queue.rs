//! The queue: the estimate's golden vectors, which Python meets too, and threads that all want something at once.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};

use bytes::Bytes;
use headrace_core::admission::{Ahead, Before, Depth, Due, Estimate, Limits, Line, Newcomer, in_share, lateness};
use headrace_core::batch::{Batch, Returned};
use headrace_core::clock::{Clock, NEVER};
use headrace_core::codec::{Input, Request};
use headrace_core::datatype::Datatype;
use headrace_core::entry::{Letter, Outbox, Sink};
use headrace_core::expiry::Expiry;
use headrace_core::ledger::{Ledger, RECORD_BYTES, RequestRecord};
use headrace_core::news::News;
use headrace_core::queue::{House, Queue, VIEW_BYTES};
use headrace_core::spec::{Batching, Spec, TensorSpec};
use headrace_core::validate::Bucket;

/// Where the outcome of a request stands in its record.
const OUTCOME_AT: usize = std::mem::offset_of!(RequestRecord, outcome);

#[test]
fn the_golden_vectors_of_the_estimate() {
    let file = include_str!("../../../tests/scheduling/estimate.json");
    let golden: serde_json::Value = serde_json::from_str(file).unwrap();
    let vectors = golden["vectors"].as_array().unwrap();
    assert!(!vectors.is_empty());
    for vector in vectors {
        let number = |key: &str| vector[key].as_i64().unwrap();
        let lists = |key: &str| -> Vec<Vec<i64>> { serde_json::from_value(vector[key].clone()).unwrap() };
        let line = |given: &[i64]| Line { base: given[1], row: given[2], max_rows: given[3] as u64 };
        let lines = lists("lines").iter().map(|given| (given[0] as u64, line(given))).collect();
        let estimate = Estimate { lines, instances: number("instances") as usize, margin: number("margin_ns") };
        let waiting = lists("waiting").into_iter().map(|given| (given[0] as u64, given[1] as u64));
        let first =
            lists("first").into_iter().map(|given| Before { bucket: given[0] as u64, rows: given[1] as u64, deadline: given[2] });
        let ahead = Ahead { waiting, first, free_at: number("free_at") };
        let due = Due { deadline: NEVER, target: NEVER, latest: number("latest"), queue_until: NEVER, key: 0, level: 0 };
        let size = Depth { requests: 1, rows: number("rows") as u64, nbytes: 0 };
        let new = Newcomer { id: "", due: &due, size, bucket: number("bucket") as u64 };
        let late = lateness(&estimate, new, ahead, number("now"));
        assert_eq!(late, number("late"), "{}", vector["why"]);
    }
}

#[test]
fn the_golden_vectors_of_shares() {
    let golden: serde_json::Value = serde_json::from_str(include_str!("../../../tests/scheduling/shares.json")).unwrap();
    for vector in golden["vectors"].as_array().unwrap() {
        let number = |key: &str| vector[key].as_u64().unwrap();
        let first = number("first");
        let found: Vec<u64> = (first..first + number("count")).filter(|nth| in_share(*nth, number("share") as u32)).collect();
        let expected: Vec<u64> = serde_json::from_value(vector["in"].clone()).unwrap();
        assert_eq!(found, expected, "{}", vector["why"]);
    }
}

#[test]
fn the_golden_vectors_of_buckets() {
    let file = include_str!("../../../tests/scheduling/buckets.json");
    let golden: serde_json::Value = serde_json::from_str(file).unwrap();
    for vector in golden["vectors"].as_array().unwrap() {
        let mut bucket = Bucket::default();
        for shape in vector["shapes"].as_array().unwrap() {
            match shape.as_array() {
                Some(sizes) => bucket.add(&sizes.iter().map(|size| size.as_i64().unwrap()).collect::<Vec<_>>()),
                None => bucket.leave_out(),
            }
        }
        assert_eq!(bucket.0.to_string(), vector["bucket"].as_str().unwrap());
    }
}

fn house() -> Arc<House> {
    house_by(Clock::Monotonic)
}

fn house_by(clock: Clock) -> Arc<House> {
    let news = Arc::new(News::default());
    Arc::new(House { clock, ledger: Arc::new(Ledger::new(Arc::clone(&news))), news, expiry: Arc::new(Expiry::default()) })
}

fn queue(house: &Arc<House>, sequences: bool) -> Arc<Queue> {
    let tensor = |name: &str| TensorSpec {
        name: name.to_owned(),
        datatype: Datatype::Int32,
        dims: vec![1],
        reshape: None,
        optional: false,
        labels: Vec::new(),
    };
    let spec = Spec {
        name: "m".to_owned(),
        version: 1,
        max_batch_size: 8,
        inputs: vec![tensor("x")],
        outputs: vec![tensor("y")],
        batching: Batching::default(),
        decoupled: false,
        sequences,
        padding: None,
    };
    let limits =
        Limits { requests: 1 << 20, rows: 1 << 20, nbytes: 1 << 30, undated: 1 << 20, estimate: None, shed: Default::default() };
    Queue::new(Arc::clone(house), 1, (1, 0), spec, limits)
}

/// Settles what arrives, and counts it.
#[derive(Default)]
struct Counter {
    answers: AtomicUsize,
}

impl Outbox for Counter {
    fn post(&self, letters: Vec<Letter>) {
        for letter in letters {
            let answer = letter.result.unwrap();
            let value = answer.len().checked_sub(4).map(|at| answer[at..].to_vec()).unwrap();
            assert_eq!(value, (letter.ask as u32).to_le_bytes(), "somebody else's answer");
            self.answers.fetch_add(1, Ordering::Relaxed);
            letter.settlement.unwrap().answered(1, answer.len() as u64);
        }
    }
}

fn request(value: u32) -> Box<Request> {
    let data = Bytes::copy_from_slice(&value.to_le_bytes());
    let input = Input { name: "x".to_owned().into(), datatype: "INT32".to_owned().into(), shape: vec![1, 1], data };
    Box::new(Request { model: "m".to_owned().into(), inputs: vec![input], ..Request::default() })
}

/// Take turns until the queue is closed and empty; every batch is the echo of what it gathers.
fn instance(queue: &Arc<Queue>, number: u16) {
    while let Some(turn) = queue.turn(None) {
        let entries = turn.view.chunks_exact(VIEW_BYTES).take(8);
        let numbers: Vec<u64> = entries.map(|entry| u64::from_le_bytes(entry[..8].try_into().unwrap())).collect();
        let Some(batch) = queue.take(&numbers, &[], number, 0, 0) else { continue };
        echo(batch);
    }
}

/// Answer a batch with what it gathers.
fn echo(mut batch: Batch) {
    let all = 0..batch.len();
    let gathered = batch.gather(all).unwrap();
    batch.stamp_executed(None);
    let echo = Returned { output: 0, shape: &gathered[0].shape, data: gathered[0].data.as_slice(), offsets: None };
    assert!(batch.reply(&[echo]).is_empty());
    batch.finish();
}

#[test]
fn threads_that_push_cancel_and_run_at_once() {
    const PUSHERS: u32 = 4;
    const EACH: u32 = 2000;
    let house = house();
    let queue = queue(&house, false);
    let counter = Arc::new(Counter::default());
    let cancelled = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let instances: Vec<_> = (0..2)
            .map(|number| {
                scope.spawn({
                    let queue = &queue;
                    move || instance(queue, number)
                })
            })
            .collect();
        let pushers: Vec<_> = (0..PUSHERS)
            .map(|pusher| {
                let (queue, counter, cancelled) = (&queue, &counter, &cancelled);
                scope.spawn(move || {
                    for number in 0..EACH {
                        let value = pusher * EACH + number;
                        let outbox = Arc::clone(counter) as Arc<dyn Outbox>;
                        let sink = Sink::Remote { outbox, mailbox: 0, ask: u64::from(value), is_stream: false };
                        let Ok(ticket) = queue.push(request(value), sink) else { panic!("refused") };
                        queue.wake();
                        if number % 7 == 0 {
                            ticket.cancel();
                            cancelled.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                })
            })
            .collect();
        pushers.into_iter().for_each(|pusher| pusher.join().unwrap());
        queue.close();
        instances.into_iter().for_each(|instance| instance.join().unwrap());
    });
    assert!(queue.wait_settled(0), "everything is settled");
    let (requests, batches) = house.ledger.take();
    assert_eq!(requests.len() / RECORD_BYTES.0, (PUSHERS * EACH) as usize, "one record a request");
    assert!(batches.len() / RECORD_BYTES.1 > 0);
    let mut outcomes = [0; 6];
    requests.chunks_exact(RECORD_BYTES.0).for_each(|record| outcomes[record[OUTCOME_AT] as usize] += 1);
    let (answered, gone) = (counter.answers.load(Ordering::Relaxed), cancelled.load(Ordering::Relaxed));
    // Who cancelled may have had the answer already.
    assert!(outcomes[5] <= gone);
    assert_eq!(outcomes[0] + outcomes[5], (PUSHERS * EACH) as usize);
    assert!(answered >= outcomes[0]);
}

/// A batch of 4 was to last 10 and still runs after 30, with 8 behind it. Of those, 4 can be in time if they run at once, and 4
/// cannot; so who comes now goes into the second batch, not the third.
#[test]
fn behind_a_run_that_takes_too_long_who_will_be_late_counts_for_nothing() {
    let now = Arc::new(AtomicI64::new(1));
    let house = house_by(Clock::Manual(Arc::clone(&now)));
    let queue = queue(&house, false);
    let mut bucket = Bucket::default();
    bucket.add(&[1]);
    let lines = [(bucket.0, Line { base: 10, row: 0, max_rows: 4 })].into_iter().collect();
    let estimate = Some(Estimate { lines, instances: 1, margin: 0 });
    queue.set_limits(Limits { requests: 100, rows: 100, nbytes: 1 << 20, undated: 100, estimate, shed: Default::default() });
    let counter = Arc::new(Counter::default());
    let push = |value: u32, deadline: Option<i64>| {
        let outbox = Arc::clone(&counter) as Arc<dyn Outbox>;
        let request = Box::new(Request { deadline, received: now.load(Ordering::Relaxed), ..*request(value) });
        queue.push(request, Sink::Remote { outbox, mailbox: 0, ask: u64::from(value), is_stream: false })
    };
    assert!(push(0, None).is_ok());
    let turn = queue.turn(None).unwrap();
    let number = u64::from_le_bytes(turn.view[..8].try_into().unwrap());
    let batch = queue.take(&[number], &[], 0, 0, 0).unwrap();
    for value in 1..=8 {
        assert!(push(value, Some(41)).is_ok());
    }
    now.store(31, Ordering::Relaxed);
    assert!(push(9, Some(50)).is_err(), "the second batch is done at 51");
    assert!(push(9, Some(51)).is_ok());
    echo(batch);
}

#[test]
fn a_batch_that_is_dropped_fails_what_it_holds() {
    struct Failed(AtomicUsize);
    impl Outbox for Failed {
        fn post(&self, letters: Vec<Letter>) {
            for letter in letters {
                let error = letter.result.unwrap_err();
                assert!(error.message.contains("was left without an answer"), "{}", error.message);
                self.0.fetch_add(1, Ordering::Relaxed);
                letter.settlement.unwrap().failed(&error, 1);
            }
        }
    }
    let house = house();
    let queue = queue(&house, false);
    let outbox = Arc::new(Failed(AtomicUsize::new(0)));
    for value in 0..3 {
        let sink = Sink::Remote { outbox: Arc::clone(&outbox) as Arc<dyn Outbox>, mailbox: 0, ask: 0, is_stream: false };
        assert!(queue.push(request(value), sink).is_ok());
    }
    assert!(queue.turn(None).is_some());
    drop(queue.take(&[1, 2, 3], &[], 0, 0, 0));
    assert_eq!(outbox.0.load(Ordering::Relaxed), 3);
    assert!(queue.wait_settled(0));
}

#[test]
fn an_answer_that_comes_after_its_cancel_is_settled() {
    let house = house();
    let queue = queue(&house, false);
    for value in 0..3 {
        assert!(queue.push(request(value), Sink::Local).is_ok());
    }
    assert!(queue.turn(None).is_some());
    let mut batch = queue.take(&[1, 2, 3], &[], 0, 0, 0).unwrap();
    let data: Vec<u8> = (0..3_u32).flat_map(u32::to_le_bytes).collect();
    let echo = Returned { output: 0, shape: &[3, 1], data: &data, offsets: None };
    assert_eq!(batch.reply(&[echo]), [0, 1, 2]);
    batch.finish();
    // The cancel of the first comes just before its answer is handed over, that of the second just after.
    let settlement = queue.take_handed(1).unwrap();
    queue.cancel_local(1);
    queue.hand(1, settlement);
    queue.cancel_local(2);
    assert!(queue.take_handed(1).is_none() && queue.take_handed(2).is_none());
    queue.take_handed(3).unwrap().answered(1, 0);
    assert!(queue.wait_settled(0), "everything is settled");
    let (requests, _) = house.ledger.take();
    assert_eq!(requests.len() / RECORD_BYTES.0, 3, "one record a request");
}

/// Settles what arrives, and counts answers and errors.
#[derive(Default)]
struct Tally {
    answers: AtomicUsize,
    errors: AtomicUsize,
}

impl Outbox for Tally {
    fn post(&self, letters: Vec<Letter>) {
        for letter in letters {
            let settlement = letter.settlement.unwrap();
            match letter.result {
                Ok(answer) => {
                    assert!(answer.ends_with(&(letter.ask as u32).to_le_bytes()), "somebody else's answer");
                    self.answers.fetch_add(1, Ordering::Relaxed);
                    settlement.answered(1, answer.len() as u64);
                }
                Err(error) => {
                    assert!(error.message.contains("was left without an answer"), "{}", error.message);
                    self.errors.fetch_add(1, Ordering::Relaxed);
                    settlement.failed(&error, 1);
                }
            }
        }
    }
}

#[test]
fn parts_are_answered_dropped_and_cancelled_at_once() {
    const EACH: u32 = 4000;
    let house = house();
    let queue = queue(&house, false);
    let tally = Arc::new(Tally::default());
    let (parts, taken) = std::sync::mpsc::channel::<Batch>();
    let cancelled = std::thread::scope(|scope| {
        scope.spawn(|| {
            let parts = parts;
            while let Some(turn) = queue.turn(None) {
                let entries = turn.view.chunks_exact(VIEW_BYTES).take(8);
                let numbers: Vec<u64> = entries.map(|entry| u64::from_le_bytes(entry[..8].try_into().unwrap())).collect();
                let Some(mut batch) = queue.take(&numbers, &[], 0, 0, 0) else { continue };
                batch.part().into_iter().for_each(|part| parts.send(part).unwrap());
            }
        });
        scope.spawn(|| {
            for (count, mut part) in taken.into_iter().enumerate() {
                if count % 5 > 0 {
                    let gathered = part.gather(0..1).unwrap();
                    part.stamp_executed(None);
                    let echo =
                        Returned { output: 0, shape: &gathered[0].shape, data: gathered[0].data.as_slice(), offsets: None };
                    assert!(!part.send(0, &[echo], true).unwrap());
                }
            }
        });
        let pusher = scope.spawn(|| {
            let mut cancelled = HashSet::new();
            for value in 0..EACH {
                let outbox = Arc::clone(&tally) as Arc<dyn Outbox>;
                let sink = Sink::Remote { outbox, mailbox: 0, ask: u64::from(value), is_stream: false };
                let Ok(ticket) = queue.push(request(value), sink) else { panic!("refused") };
                queue.wake();
                if value % 3 == 0 {
                    ticket.cancel();
                    cancelled.insert(ticket.number);
                }
            }
            queue.close();
            cancelled
        });
        pusher.join().unwrap()
    });
    assert!(queue.wait_settled(0), "everything is settled");
    let (requests, batches) = house.ledger.take();
    assert_eq!(requests.len() / RECORD_BYTES.0, EACH as usize, "one record a request");
    assert!(batches.len() / RECORD_BYTES.1 <= EACH as usize, "and none for a part");
    let mut outcomes = [0; 6];
    requests.chunks_exact(RECORD_BYTES.0).for_each(|record| outcomes[record[OUTCOME_AT] as usize] += 1);
    assert_eq!(outcomes.iter().sum::<usize>(), EACH as usize);
    assert!(outcomes[5] <= cancelled.len());
    assert!(tally.answers.load(Ordering::Relaxed) >= outcomes[0]);
    let gone = house.news.wait(false).map_or_else(Vec::new, |items| items.gone);
    let told: HashSet<u64> = gone.iter().map(|(_, number)| *number).collect();
    assert_eq!(told.len(), gone.len(), "once each");
    assert!(told.is_subset(&cancelled));
}

#[test]
fn a_cancel_is_news_once_whether_it_comes_before_a_batch_is_taken_apart_or_after() {
    let house = house();
    let queue = queue(&house, false);
    let tally = Arc::new(Tally::default());
    let push = |value: u32| {
        let sink = Sink::Remote { outbox: Arc::clone(&tally) as _, mailbox: 0, ask: u64::from(value), is_stream: false };
        queue.push(request(value), sink).ok().unwrap()
    };
    let tickets: Vec<_> = (0..3).map(push).collect();
    assert!(queue.push(request(3), Sink::Local).is_ok());
    assert!(queue.turn(None).is_some());
    let mut batch = queue.take(&[1, 2, 3, 4], &[], 0, 0, 0).unwrap();
    let gone = || house.news.wait(false).map_or_else(Vec::new, |items| items.gone);
    tickets[0].cancel();
    assert!(gone().is_empty());
    let mut parts = batch.part();
    assert_eq!(gone(), [(1, 1)]);
    tickets[0].cancel();
    tickets[1].cancel();
    tickets[1].cancel();
    queue.cancel_local(4);
    assert_eq!(gone(), [(1, 2), (1, 4)]);
    parts.clear();
    tickets[2].cancel();
    assert!(gone().is_empty(), "who was answered is not told of");
    assert!(queue.wait_settled(0));
    assert_eq!(tally.errors.load(Ordering::Relaxed), 1);
    drop(batch);
    assert_eq!(house.ledger.written(), (4, 1));
}

#[test]
fn a_local_request_whose_part_is_dropped_is_told_of_in_the_news() {
    let house = house();
    let queue = queue(&house, false);
    assert!(queue.push(request(0), Sink::Local).is_ok());
    assert!(queue.turn(None).is_some());
    drop(queue.take(&[1], &[], 0, 0, 0).unwrap().part());
    let answers = house.news.wait(false).unwrap().answers;
    assert_eq!(answers.iter().map(|answer| (answer.queue, answer.number)).collect::<Vec<_>>(), [(1, 1)]);
    queue.take_handed(1).unwrap().failed(&answers[0].error, 1);
    assert!(queue.wait_settled(0));
}

#[test]
fn an_instance_whose_last_batch_is_answered_late_is_busy_with_the_next() {
    let house = house();
    let queue = queue(&house, false);
    let counter = Arc::new(Counter::default());
    for value in 0..3 {
        let outbox = Arc::clone(&counter) as Arc<dyn Outbox>;
        let sink = Sink::Remote { outbox, mailbox: 0, ask: value, is_stream: false };
        assert!(queue.push(request(value as u32), sink).is_ok());
    }
    let field = |view: &[u8], at: usize| u64::from_le_bytes(view[at..at + 8].try_into().unwrap());
    let bucket = field(&queue.turn(None).unwrap().view, 40);
    queue.abandon_turn();
    let line = Line { base: 1 << 40, row: 0, max_rows: 8 };
    let estimate = Some(Estimate { lines: [(bucket, line)].into_iter().collect(), instances: 1, margin: 0 });
    let plenty = Limits { requests: 9, rows: 9, nbytes: 1 << 30, undated: 9, estimate, shed: Default::default() };
    queue.set_limits(plenty);
    let take = || queue.take(&[field(&queue.turn(None).unwrap().view, 0)], &[], 0, 0, 0).unwrap();
    let first = take();
    let turn = queue.turn(None).unwrap();
    queue.abandon_turn();
    assert!(turn.busy_until > 0, "it runs");
    let turn = queue.turn_at_once(0, first.number).unwrap();
    assert_eq!(turn.busy_until, 0, "it is done, and not answered yet");
    let second = queue.take(&[field(&turn.view, 0)], &[], 0, 0, 0).unwrap();
    echo(first);
    let turn = queue.turn(None).unwrap();
    assert!(turn.busy_until > 0, "the next one runs");
    let third = queue.take(&[field(&turn.view, 0)], &[], 1, 0, 0).unwrap();
    echo(second);
    echo(third);
}
