//! `cargo run --release --example echo -- HOST:PORT`: a server without Python whose one model gives back what it gets: the whole
//! data plane, and nothing else. For measuring it, and load generators against it.

use std::os::fd::IntoRawFd;
use std::sync::Arc;

use headrace_core::admission::Limits;
use headrace_core::batch::Returned;
use headrace_core::clock::Clock;
use headrace_core::datatype::Datatype;
use headrace_core::expiry::Expiry;
use headrace_core::grpc::{Forwarding, Listener, Options, Server, StreamWindow};
use headrace_core::ledger::Ledger;
use headrace_core::news::News;
use headrace_core::queue::{House, Queue, VIEW_BYTES};
use headrace_core::regions::Regions;
use headrace_core::routes::Routes;
use headrace_core::spec::{Batching, Spec, TensorSpec};
use prost::Message;
use proto::ModelMetadataResponse;
use proto::model_metadata_response::TensorMetadata;

#[allow(dead_code, clippy::all, clippy::pedantic)]
#[path = "../tests/proto/inference.rs"]
mod proto;

const ROWS: i64 = 64;
/// What a load generator asks first.
const METADATA: &str = "/inference.GRPCInferenceService/ModelMetadata";

fn tensor(name: &str) -> TensorSpec {
    let (reshape, labels) = (None, Vec::new());
    TensorSpec { name: name.to_owned(), datatype: Datatype::Fp32, dims: vec![-1], reshape, optional: false, labels }
}

fn metadata() -> ModelMetadataResponse {
    let tensor = |name: &str, size| TensorMetadata { name: name.to_owned(), datatype: "FP32".to_owned(), shape: vec![-1, size] };
    ModelMetadataResponse {
        name: "echo".to_owned(),
        versions: vec!["1".to_owned()],
        platform: "echo".to_owned(),
        inputs: vec![tensor("x", 64)],
        outputs: vec![tensor("y", 64)],
        ..ModelMetadataResponse::default()
    }
}

fn main() -> std::io::Result<()> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:0".to_owned());
    let news = Arc::new(News::default());
    let house = Arc::new(House {
        clock: Clock::Monotonic,
        ledger: Arc::new(Ledger::new(Arc::clone(&news))),
        news,
        expiry: Arc::new(Expiry::default()),
    });
    let spec = Spec {
        name: "echo".to_owned(),
        version: 1,
        max_batch_size: ROWS,
        inputs: vec![tensor("x")],
        outputs: vec![tensor("y")],
        batching: Batching::default(),
        decoupled: false,
        sequences: false,
        padding: None,
    };
    let limits =
        Limits { requests: 1 << 14, rows: 1 << 20, nbytes: 4 << 30, undated: 1 << 14, estimate: None, shed: Default::default() };
    let queue = Queue::new(Arc::clone(&house), 1, (1, 0), spec, limits);
    let routes = Arc::new(Routes::default());
    routes.publish("echo".to_owned(), Some([(1, Some(Arc::clone(&queue)))].into()));
    let listener = std::net::TcpListener::bind(address)?;
    println!("ready grpc={}", listener.local_addr()?);
    // SAFETY: the descriptor was just taken out of its owner.
    let listener = unsafe { Listener::from_descriptor(listener.into_raw_fd(), false) };
    let options = Options {
        methods: [METADATA.to_owned()].into(),
        dialogues: [].into(),
        forwarding: Forwarding::new("").map_err(std::io::Error::other)?,
        window: StreamWindow { requests: 1024, unsent: 64 << 20, flood: 256 << 20 },
    };
    let ledger = Arc::clone(&house.ledger);
    std::thread::spawn(move || {
        // Nobody reads the records; they must not fill the memory either.
        loop {
            std::thread::sleep(std::time::Duration::from_millis(100));
            ledger.take();
        }
    });
    let server = Server::start(listener, house, routes, Arc::new(Regions::default()), options)?;
    let calls = server.calls();
    std::thread::spawn(move || {
        while let Some(call) = calls.next() {
            call.answer(&metadata().encode_to_vec());
        }
    });
    run(&queue);
    Ok(())
}

fn run(queue: &Arc<Queue>) {
    while let Some(turn) = queue.turn(None) {
        let entries = turn.view.chunks_exact(VIEW_BYTES).take(ROWS as usize);
        let numbers: Vec<u64> = entries.filter_map(|entry| entry.first_chunk().copied().map(u64::from_le_bytes)).collect();
        let Some(mut batch) = queue.take(&numbers, &[], 0, 0, 0) else { continue };
        let all = 0..batch.len();
        if let Ok(gathered) = batch.gather(all) {
            batch.stamp_executed(None);
            let x = &gathered[0];
            batch.reply(&[Returned { output: 0, shape: &x.shape, data: x.data.as_slice(), offsets: None }]);
        }
        batch.finish();
    }
}
