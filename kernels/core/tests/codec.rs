//! The codec against prost, which knows the same protocol from the same file.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use bytes::Bytes;
use headrace_core::codec::{Answer, Asking, Encoder, Given, Parameter, Part, Place, Request, Wanted, decode, failure, refusal};
use headrace_core::datatype::Datatype;
use headrace_core::error::Error;
use headrace_core::regions::Regions;
use prost::Message;

#[allow(dead_code, clippy::all, clippy::pedantic)]
mod proto {
    include!("proto/inference.rs");
}

use proto::infer_parameter::ParameterChoice;
use proto::model_infer_request::{InferInputTensor, InferRequestedOutputTensor};
use proto::{InferParameter, InferTensorContents, ModelInferRequest, ModelInferResponse, ModelStreamInferResponse};

/// Numbers from a seed: the same in every run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }

    fn word(&mut self) -> String {
        (0..self.roll(6)).map(|_| ['a', 'é', '水', '0', ' '][self.roll(5) as usize]).collect()
    }

    fn bytes(&mut self, most: u64) -> Vec<u8> {
        (0..self.roll(most)).map(|_| self.roll(256) as u8).collect()
    }
}

fn parameter(choice: ParameterChoice) -> InferParameter {
    InferParameter { parameter_choice: Some(choice) }
}

fn message(dice: &mut Dice) -> ModelInferRequest {
    let mut message = ModelInferRequest { model_name: dice.word(), id: dice.word(), ..Default::default() };
    if dice.roll(2) == 0 {
        message.model_version = (1 + dice.roll(1 << 40)).to_string();
    }
    for number in 0..dice.roll(4) {
        let choice = match dice.roll(4) {
            0 => ParameterChoice::BoolParam(dice.roll(2) == 0),
            1 => ParameterChoice::Int64Param(dice.roll(u64::MAX) as i64),
            2 => ParameterChoice::StringParam(dice.word()),
            _ => ParameterChoice::DoubleParam(dice.roll(1000) as f64 / 7.0),
        };
        message.parameters.insert(format!("k{number}"), parameter(choice));
    }
    let is_raw = dice.roll(2) == 0;
    for number in 0..1 + dice.roll(3) {
        let mut input = InferInputTensor {
            name: format!("x{number}"),
            datatype: "INT32".to_owned(),
            shape: (0..dice.roll(4)).map(|_| dice.roll(1 << 35) as i64 - 1).collect(),
            ..Default::default()
        };
        if is_raw {
            message.raw_input_contents.push(dice.bytes(40).into());
        } else {
            let int_contents = (0..dice.roll(5)).map(|_| dice.roll(1 << 33) as i32).collect();
            input.contents = Some(InferTensorContents { int_contents, ..Default::default() });
        }
        message.inputs.push(input);
    }
    for number in 0..dice.roll(3) {
        message.outputs.push(InferRequestedOutputTensor { name: format!("y{number}"), ..Default::default() });
    }
    message
}

fn parameters_of(message: &ModelInferRequest) -> Vec<(String, Parameter)> {
    let mut told: Vec<_> = message
        .parameters
        .iter()
        .map(|(name, value)| {
            let value = match value.parameter_choice.clone().unwrap() {
                ParameterChoice::BoolParam(flag) => Parameter::Bool(flag),
                ParameterChoice::Int64Param(number) => Parameter::Int(number),
                ParameterChoice::StringParam(text) => Parameter::String(text.into()),
                ParameterChoice::DoubleParam(number) => Parameter::Double(number),
                ParameterChoice::Uint64Param(_) => panic!("not made"),
            };
            (name.clone(), value)
        })
        .collect();
    told.sort_by(|(a, _), (b, _)| a.cmp(b));
    told
}

fn assert_same(request: &Request, message: &ModelInferRequest) {
    assert_eq!(&*request.model, message.model_name);
    assert_eq!(&*request.id, message.id);
    assert_eq!(request.version, message.model_version.parse().unwrap_or(0));
    let mut told: Vec<_> = request.parameters.iter().map(|(name, value)| (name.to_string(), value.clone())).collect();
    told.sort_by(|(a, _), (b, _)| a.cmp(b));
    assert_eq!(told, parameters_of(message));
    assert_eq!(request.outputs.len(), message.outputs.len());
    assert_eq!(request.inputs.len(), message.inputs.len());
    for (index, (given, wanted)) in request.inputs.iter().zip(&message.inputs).enumerate() {
        assert_eq!((&*given.name, &*given.datatype, &given.shape), (&*wanted.name, &*wanted.datatype, &wanted.shape));
        let data: Vec<u8> = match &wanted.contents {
            Some(contents) => contents.int_contents.iter().flat_map(|number| number.to_le_bytes()).collect(),
            None => message.raw_input_contents[index].to_vec(),
        };
        assert_eq!(given.data, data);
    }
}

#[test]
fn what_prost_writes_is_read() {
    let mut dice = Dice(7);
    for _ in 0..5000 {
        let message = message(&mut dice);
        let request = decode(&message.encode_to_vec().into(), &Regions::default(), &[]).unwrap();
        assert_same(&request, &message);
    }
}

#[test]
fn what_both_read_is_the_same_whatever_was_done_to_it() {
    let mut dice = Dice(11);
    let mut read = 0;
    for _ in 0..50_000 {
        let mut bytes = message(&mut dice).encode_to_vec();
        for _ in 0..1 + dice.roll(3) {
            let at = dice.roll(bytes.len() as u64) as usize;
            match dice.roll(3) {
                0 => bytes[at] = dice.roll(256) as u8,
                1 => bytes.truncate(at),
                _ => bytes.insert(at, dice.roll(256) as u8),
            }
            if bytes.is_empty() {
                break;
            }
        }
        let ours = decode(&Bytes::from(bytes.clone()), &Regions::default(), &[]);
        // Neither takes all that the other does: protobuf's own parser, which Python tests compare with, stands in between.
        if let (Ok(request), Ok(theirs)) = (ours, ModelInferRequest::decode(&bytes[..])) {
            read += 1;
            assert_eq!(&*request.model, theirs.model_name);
            assert_eq!(request.inputs.len(), theirs.inputs.len());
        }
    }
    assert!(read > 1000, "most of it could not be read: {read}");
}

#[test]
fn every_piece_of_a_message_may_end_the_bytes() {
    let mut dice = Dice(3);
    for _ in 0..200 {
        let bytes = Bytes::from(message(&mut dice).encode_to_vec());
        for length in 0..bytes.len() {
            let _ = decode(&bytes.slice(..length), &Regions::default(), &[]);
        }
    }
}

fn outputs<'a>(shape: &'a [i64], data: &'a [u8], offsets: &'a [i64]) -> [Wanted<'a>; 3] {
    [
        Wanted { name: "y", datatype: Datatype::Fp32, rows: Some(2), shape, part: Part::Raw(data) },
        Wanted { name: "t", datatype: Datatype::Bytes, rows: None, shape: &[3], part: Part::Elements { offsets, data } },
        Wanted { name: "elsewhere", datatype: Datatype::Int8, rows: None, shape: &[], part: Part::Nothing },
    ]
}

#[test]
fn what_is_written_is_what_prost_reads() {
    let (shape, data, offsets) = ([9, 1 << 40], [1, 2, 3, 4, 5], [1, 1, 3, 5]);
    let written = Encoder { model: "m", version: "12", stream: false }.encode("id", &outputs(&shape, &data, &offsets), true);
    let written = written.unwrap();
    assert_eq!(written[..5], [&[0][..], &(written.len() as u32 - 5).to_be_bytes()].concat());
    let message = ModelInferResponse::decode(&written[5..]).unwrap();
    assert_eq!((&*message.model_name, &*message.model_version, &*message.id), ("m", "12", "id"));
    let told: Vec<_> = message.outputs.iter().map(|o| (&*o.name, &*o.datatype, o.shape.clone())).collect();
    assert_eq!(told, [("y", "FP32", vec![2, 1 << 40]), ("t", "BYTES", vec![3]), ("elsewhere", "INT8", vec![])]);
    let raw: Vec<&[u8]> = message.raw_output_contents.iter().map(|raw| &raw[..]).collect();
    assert_eq!(raw, [&[1, 2, 3, 4, 5][..], &[0, 0, 0, 0, 2, 0, 0, 0, 2, 3, 2, 0, 0, 0, 4, 5], &[]]);
}

#[test]
fn what_goes_to_another_server_is_what_prost_reads() {
    let parameters = [
        ("b", Parameter::Bool(true)),
        ("i", Parameter::Int(-7)),
        ("s", Parameter::String("é".to_owned().into())),
        ("d", Parameter::Double(0.1)),
    ];
    let parameters = parameters.map(|(name, value)| (name.to_owned(), value));
    let place = |offset| Place { region: "r".to_owned(), offset, nbytes: 1 << 33 };
    let placed = place(64);
    let inputs = [
        Given { name: "x", datatype: "FP32", shape: &[2, 1 << 40], data: &[1, 2, 3], place: None },
        Given { name: "elsewhere", datatype: "INT8", shape: &[0], data: &[], place: Some(&placed) },
        Given { name: "scalar", datatype: "BOOL", shape: &[], data: &[1], place: None },
    ];
    let outputs = [("y".to_owned(), None), ("z".to_owned(), Some(place(0)))];
    let asking = Asking { model: "m", version: "12", id: "", parameters: &parameters, inputs: &inputs, outputs: &outputs };
    let written = asking.encode().unwrap();
    assert_eq!(written[..5], [&[0][..], &(written.len() as u32 - 5).to_be_bytes()].concat());
    let message = ModelInferRequest::decode(&written[5..]).unwrap();
    assert_eq!((&*message.model_name, &*message.model_version, &*message.id), ("m", "12", ""));
    let sorted = |mut given: Vec<(String, Parameter)>| {
        given.sort_by(|(a, _), (b, _)| a.cmp(b));
        given
    };
    assert_eq!(parameters_of(&message), sorted(parameters.to_vec()));
    let told: Vec<_> = message.inputs.iter().map(|input| (&*input.name, &*input.datatype, &input.shape[..])).collect();
    assert_eq!(told, [("x", "FP32", &[2, 1 << 40][..]), ("elsewhere", "INT8", &[0]), ("scalar", "BOOL", &[])]);
    let raw: Vec<&[u8]> = message.raw_input_contents.iter().map(|raw| &raw[..]).collect();
    assert_eq!(raw, [&[1, 2, 3][..], &[1]]);
    let string = |text: &str| parameter(ParameterChoice::StringParam(text.to_owned()));
    let number = |number| parameter(ParameterChoice::Int64Param(number));
    let first = [("shared_memory_region".to_owned(), string("r")), ("shared_memory_byte_size".to_owned(), number(1 << 33))];
    assert_eq!(message.outputs[1].parameters, first.clone().into());
    let all = first.into_iter().chain([("shared_memory_offset".to_owned(), number(64))]);
    assert_eq!(message.inputs[1].parameters, all.collect());
    assert!(message.inputs[0].parameters.is_empty() && message.outputs[0].parameters.is_empty());
    assert_eq!((&*message.outputs[0].name, &*message.outputs[1].name), ("y", "z"));
}

#[test]
fn what_another_server_answers_is_read() {
    let (shape, data, offsets) = ([9, 1 << 40], [1, 2, 3, 4, 5], [1, 1, 3, 5]);
    let written = Encoder { model: "m", version: "12", stream: false }.encode("id", &outputs(&shape, &data, &offsets), true);
    let written = written.unwrap().slice(5..);
    let answer = Answer::read(&written).unwrap();
    assert_eq!(&*answer.version, "12");
    let told: Vec<_> = answer.outputs.iter().map(|output| (&*output.name, &*output.datatype, output.shape.clone())).collect();
    assert_eq!(told, [("y", "FP32", vec![2, 1 << 40]), ("t", "BYTES", vec![3]), ("elsewhere", "INT8", vec![])]);
    assert_eq!(answer.raw[0], data[..]);
    assert_eq!(answer.raw.len(), 3);
    for length in 0..written.len() {
        let _ = Answer::read(&written.slice(..length)); // whatever it says, it says it
    }
    assert!(Answer::read(&Bytes::from_static(&[0x2a, 5, 1])).is_err());
}

#[test]
fn answers_of_streams_carry_their_flag() {
    for is_final in [false, true] {
        let written = Encoder { model: "m", version: "1", stream: true }.encode("", &[], is_final).unwrap();
        let message = ModelStreamInferResponse::decode(&written[5..]).unwrap();
        let flag = message.infer_response.unwrap().parameters["triton_final_response"].clone();
        assert_eq!(flag, parameter(ParameterChoice::BoolParam(is_final)));
    }
    let error = Error::deadline_expired("m");
    let refused = ModelStreamInferResponse::decode(&refusal(&error, "r1")[5..]).unwrap();
    let plain = ModelInferResponse { id: "r1".to_owned(), ..Default::default() };
    assert_eq!((refused.error_message, refused.infer_response), (error.message.clone(), Some(plain)));
    let failed = ModelStreamInferResponse::decode(&failure(&error, "m", 3, "r1")[5..]).unwrap();
    let response = failed.infer_response.unwrap();
    assert_eq!((&*response.model_name, &*response.model_version, &*response.id), ("m", "3", "r1"));
    assert!(response.parameters.contains_key("triton_final_response"));
}
