//! Any bytes as a `ModelInferRequest`: decoding and validation hold, and what prost reads, too, is the same.

#![no_main]

use bytes::Bytes;
use headrace_core::codec::{decode, request_id_of};
use headrace_core::datatype::Datatype;
use headrace_core::regions::Regions;
use headrace_core::spec::{Batching, Spec, TensorSpec};
use headrace_core::validate::admit;
use libfuzzer_sys::fuzz_target;
use prost::Message;

#[allow(dead_code, clippy::all)]
mod proto {
    include!("../../core/tests/proto/inference.rs");
}

fn spec() -> Spec {
    let tensor = |name: &str, datatype, dims, reshape| TensorSpec {
        name: name.to_owned(),
        datatype,
        dims,
        reshape,
        optional: name == "z",
        labels: Vec::new(),
    };
    Spec {
        name: "m".to_owned(),
        version: 1,
        max_batch_size: 4,
        inputs: vec![
            tensor("x", Datatype::Int32, vec![-1], None),
            tensor("s", Datatype::Bytes, vec![-1, 2], None),
            tensor("z", Datatype::Fp16, vec![1, -1], Some(vec![-1])),
        ],
        outputs: vec![tensor("y", Datatype::Int32, vec![-1], None)],
        batching: Batching::default(),
        decoupled: false,
        sequences: false,
        padding: None,
    }
}

fuzz_target!(|data: &[u8]| {
    let bytes = Bytes::copy_from_slice(data);
    let decoded = decode(&bytes, &Regions::default(), &[]);
    let _ = request_id_of(&bytes);
    // Prost takes some bytes that protobuf's own parser does not, and the other way round: what both take is the same.
    if let (Ok(ours), Ok(theirs)) = (&decoded, proto::ModelInferRequest::decode(data)) {
        assert_eq!(*ours.model, *theirs.model_name);
    }
    if let Ok(mut request) = decoded
        && let Ok(admitted) = admit(&spec(), &mut request)
    {
        assert!(admitted.rows <= 4);
    }
});
