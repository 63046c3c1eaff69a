//! What the ledger costs a request in here: its record, taking it, and reading where the request comes from.
//!
//! `cargo run --release --example ledger -- [FILE FILE]`: into the rings of these files (`headrace.ledger.ring.make_ring_file`),
//! of requests and of batches, or into none.

use std::fs::File;
use std::hint::black_box;
use std::io::Result;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Instant;

use headrace_core::ledger::{BatchRecord, Ledger, RECORD_BYTES, RequestRecord};
use headrace_core::origin::Origin;
use headrace_core::ring::Ring;
use http::{HeaderMap, HeaderValue};

const REQUESTS: u64 = 2_000_000;
const BATCH: u64 = 16;
const AT_ONCE: u64 = 8192;

fn main() -> Result<()> {
    let ledger = Ledger::new(Arc::default());
    let files: Vec<String> = std::env::args().skip(1).collect();
    if let [requests, batches] = &files[..] {
        let map = |path: &String, bytes| Ring::map(File::options().read(true).write(true).open(path)?.as_fd(), bytes);
        ledger.write_to(map(requests, RECORD_BYTES.0)?, map(batches, RECORD_BYTES.1)?);
    }
    let (begun, mut taking) = (Instant::now(), 0);
    for number in 0..REQUESTS {
        ledger.write(&RequestRecord { number, ..RequestRecord::default() });
        if number % BATCH == 0 {
            ledger.write_batch(&BatchRecord { number, ..BatchRecord::default() });
        }
        if number % AT_ONCE == AT_ONCE - 1 {
            let begun = Instant::now();
            black_box(ledger.take());
            taking += begun.elapsed().as_nanos();
        }
    }
    let a_request = |ns: u128| ns as f64 / REQUESTS as f64;
    println!("write {:.0} ns, take {:.0} ns", a_request(begun.elapsed().as_nanos() - taking), a_request(taking));

    let mut headers = HeaderMap::new();
    for (name, value) in [("content-type", "application/grpc"), ("user-agent", "grpc"), ("te", "trailers")] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    time("origin", &headers);
    headers.insert("traceparent", HeaderValue::from_static("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"));
    headers.insert("x-headrace-client", HeaderValue::from_static("till-4"));
    time("origin, of a trace and a client", &headers);
    Ok(())
}

fn time(what: &str, headers: &HeaderMap) {
    let begun = Instant::now();
    for _ in 0..REQUESTS {
        black_box(Origin::of(black_box(headers), 7));
    }
    println!("{what} {:.0} ns", begun.elapsed().as_nanos() as f64 / REQUESTS as f64);
}
