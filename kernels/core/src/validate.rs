//! The judge of requests: what a version declares against what a request brings.
//!
//! The reference is `headrace.protocol.validate`; the order of the checks and the words are Triton's.

use bytes::Bytes;

use crate::classify;
use crate::codec::{Input, Request};
use crate::datatype::{Datatype, format_shape, product};
use crate::error::{Error, Result, request_prefix};
use crate::padding::{self, Length};
use crate::spec::{Spec, TensorSpec};

const BATCH_NOTE: &str = "NOTE: Setting a non-zero max_batch_size in the model config requires a batch dimension to be \
    prepended to each input shape. If you want to specify the full shape including the batch dim in your input dims config, \
    try setting max_batch_size to zero. See the model configuration docs for more info on max_batch_size.";
/// Bytes that a process can address on the machines there are.
const ADDRESSABLE: u128 = 1 << 47;

/// One input as the model sees it: batch dimension and reshape included.
#[derive(Clone, Debug)]
pub struct Tensor {
    pub shape: Vec<i64>,
    pub data: Bytes,
}

/// A wanted output: its place in the spec, and its place in the request's own list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    pub output: usize,
    pub asked: Option<usize>,
}

/// A request that its model can run.
#[derive(Clone, Debug)]
pub struct Admitted {
    /// One a declared input, in the model's order; None for an optional one that was left out.
    pub inputs: Vec<Option<Tensor>>,
    /// In the order of the answer.
    pub outputs: Vec<Wanted>,
    /// The size of the batch dimension, 1 without one.
    pub rows: u32,
    /// What requests of one batch have in common, as a number. Equal shapes have equal buckets.
    pub bucket: u64,
    pub nbytes: u64,
    /// Of the padded inputs, and what they are padded to; 0 without padding.
    pub length: u32,
    pub padded: u32,
}

impl Admitted {
    /// Whether both may share a batch: the same inputs, of the same shapes but for the rows and, with padding, for the length.
    pub fn is_mate(&self, other: &Admitted, spec: &Spec) -> bool {
        self.bucket == other.bucket
            && self.padded == other.padded
            && self.inputs.len() == other.inputs.len()
            && self.inputs.iter().zip(&other.inputs).enumerate().all(|(input, (a, b))| match (a, b) {
                (Some(a), Some(b)) => padding::are_alike(spec, input, &a.shape, &b.shape),
                (None, None) => true,
                _ => padding::is_made(spec, input),
            })
    }
}

/// The number of a bucket, input by input: see `headrace.protocol.validate.bucket_of`.
pub struct Bucket(pub u64);

impl Default for Bucket {
    fn default() -> Bucket {
        Bucket(0xcbf2_9ce4_8422_2325)
    }
}

impl Bucket {
    /// An input of this shape, the batch dimension not counted.
    pub fn add(&mut self, shape: &[i64]) {
        self.word(shape.len() as u64);
        for size in shape {
            self.word(*size as u64);
        }
    }

    /// An optional input that is not there.
    pub fn leave_out(&mut self) {
        self.word(u64::MAX);
    }

    fn word(&mut self, word: u64) {
        self.0 = (self.0 ^ word).wrapping_mul(0x100_0000_01b3);
    }
}

/// Check a request and bring its tensors into the model's order. Their data moves out of the request.
pub fn admit(spec: &Spec, request: &mut Request) -> Result<Admitted> {
    let outputs = wanted_outputs(spec, request)?;
    check_names(spec, request)?;
    let rows = if spec.batches() { check_batch(spec, request)? } else { 1 };
    let mut inputs = Vec::with_capacity(spec.inputs.len());
    let mut nbytes = 0;
    for declared in &spec.inputs {
        let Some(index) = request.inputs.iter().position(|given| *given.name == *declared.name) else {
            inputs.push(None);
            continue;
        };
        let (shape, size) = admit_input(spec, request, declared, &request.inputs[index])?;
        nbytes += size;
        inputs.push(Some(Tensor { shape, data: std::mem::take(&mut request.inputs[index].data) }));
    }
    let Length { length, padded } = padding::judge(spec, &request.id, &inputs)?;
    let bucket = bucket_of(spec, &inputs, padded);
    Ok(Admitted { inputs, outputs, rows, bucket, nbytes, length, padded })
}

/// The number of a bucket: of the inputs as the model sees them.
fn bucket_of(spec: &Spec, inputs: &[Option<Tensor>], padded: u32) -> u64 {
    let mut bucket = Bucket::default();
    for (input, tensor) in inputs.iter().enumerate() {
        match tensor {
            _ if padded > 0 && padding::is_padded(spec, input, tensor.is_some()) => {
                bucket.add(&padding::inner_shape(spec, input, tensor.as_ref(), padded));
            }
            Some(tensor) => bucket.add(&tensor.shape[usize::from(spec.batches())..]),
            None => bucket.leave_out(),
        }
    }
    bucket.0
}

fn wanted_outputs(spec: &Spec, request: &Request) -> Result<Vec<Wanted>> {
    if request.outputs.is_empty() {
        return Ok((0..spec.outputs.len()).map(|output| Wanted { output, asked: None }).collect());
    }
    let mut wanted = Vec::with_capacity(request.outputs.len());
    for (asked, given) in request.outputs.iter().enumerate() {
        let Some(output) = spec.outputs.iter().position(|known| *known.name == *given.name) else {
            let told = format!("unexpected inference output '{}' for model '{}'", given.name, spec.name);
            return Err(Error::invalid(told));
        };
        wanted.push(Wanted { output, asked: Some(asked) });
    }
    for Wanted { output, asked } in &wanted {
        if asked.is_some_and(|asked| request.outputs[asked].classes > 0) {
            classify::check(spec.outputs[*output].datatype)?;
        }
    }
    Ok(wanted)
}

fn check_names(spec: &Spec, request: &Request) -> Result<()> {
    let given = &request.inputs;
    let required = spec.inputs.iter().filter(|input| !input.optional).count();
    if !(required..=spec.inputs.len()).contains(&given.len()) {
        return Err(wrong_inputs(spec, request));
    }
    for input in given {
        if !spec.inputs.iter().any(|known| *known.name == *input.name) {
            let told = format!("unexpected inference input '{}' for model '{}'", input.name, spec.name);
            return Err(Error::invalid(told));
        }
    }
    // Optional inputs can make up the number; Triton leaves those requests to the backend.
    if spec.inputs.iter().any(|known| !known.optional && !has(request, &known.name)) {
        return Err(wrong_inputs(spec, request));
    }
    Ok(())
}

fn has(request: &Request, name: &str) -> bool {
    request.inputs.iter().any(|given| *given.name == *name)
}

fn wrong_inputs(spec: &Spec, request: &Request) -> Error {
    let required = spec.inputs.iter().filter(|input| !input.optional);
    let count = required.clone().count();
    let missing: Vec<&str> = required.map(|input| input.name.as_str()).filter(|name| !has(request, name)).collect();
    let expected = if count == spec.inputs.len() {
        format!("expected {count} inputs")
    } else {
        format!("expected number of inputs between {count} and {}", spec.inputs.len())
    };
    // Triton's list loses its opening bracket when nothing is missing; clients match on the text as it is.
    let lacking = if missing.is_empty() { "]".to_owned() } else { format!("[{}]", quoted(missing)) };
    Error::invalid(format!(
        "{}{expected} but got {} inputs for model '{}'. Got input(s) [{}], but missing required input(s) {lacking}. Please \
         provide all required input(s).",
        request_prefix(&request.id),
        request.inputs.len(),
        spec.name,
        quoted(request.inputs.iter().map(|input| &*input.name)),
    ))
}

fn quoted<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    names.into_iter().map(|name| format!("'{name}'")).collect::<Vec<_>>().join(",")
}

fn check_batch(spec: &Spec, request: &Request) -> Result<u32> {
    let prefix = || request_prefix(&request.id);
    let mut rows = None;
    for input in &request.inputs {
        let Some(&size) = input.shape.first() else {
            return Err(Error::invalid(format!(
                "{}input '{}' has no shape but model requires batch dimension for '{}'",
                prefix(),
                input.name,
                spec.name
            )));
        };
        if rows.is_some_and(|rows| rows != size) {
            return Err(Error::invalid(format!(
                "{}input '{}' batch size does not match other inputs for '{}'",
                prefix(),
                input.name,
                spec.name
            )));
        }
        rows = Some(size);
    }
    let rows = rows.unwrap_or(1);
    // Rows without a single element cost their sender nothing, and would be as many pieces as he likes.
    let splits = spec.batching.splits_oversize && request.inputs.iter().any(|input| !input.shape.contains(&0));
    if rows > spec.max_batch_size && !splits {
        return Err(Error::invalid(format!(
            "{}inference request batch-size must be <= {} for '{}'",
            prefix(),
            spec.max_batch_size,
            spec.name
        )));
    }
    // What is below 0 is for `admit_input` to refuse.
    Ok(u32::try_from(rows).unwrap_or(0))
}

/// The shape the model sees, and the bytes the tensor takes.
fn admit_input(spec: &Spec, request: &Request, declared: &TensorSpec, given: &Input) -> Result<(Vec<i64>, u64)> {
    let prefix = || request_prefix(&request.id);
    let (name, model) = (&declared.name, &spec.name);
    if *given.datatype != *declared.datatype.name() {
        return Err(Error::invalid(format!(
            "{}inference input '{name}' data-type is '{}', but model '{model}' expects '{}'",
            prefix(),
            given.datatype,
            declared.datatype.name()
        )));
    }
    let shape = &given.shape;
    if shape.iter().any(|size| *size < 0) {
        return Err(Error::invalid(format!(
            "{}All input dimensions should be specified for input '{name}' for model '{model}', got {}",
            prefix(),
            format_shape(shape)
        )));
    }
    let batch = usize::from(spec.batches());
    let fits = shape.len() == declared.dims.len() + batch
        && declared.dims.iter().zip(&shape[batch..]).all(|(dim, size)| *dim == -1 || dim == size);
    if !fits {
        let expected = if batch > 0 { [&[-1], &declared.dims[..]].concat() } else { declared.dims.clone() };
        return Err(Error::invalid(format!(
            "{}unexpected shape for input '{name}' for model '{model}'. Expected {}, got {}. {}",
            prefix(),
            format_shape(&expected),
            format_shape(shape),
            if batch > 0 { BATCH_NOTE } else { "" }
        )));
    }
    let mut seen = shape.clone();
    if let Some(reshape) = &declared.reshape {
        seen.truncate(batch);
        seen.extend(resolve_reshape(&shape[batch..], &declared.dims, reshape));
    }
    let size = check_data(request, spec, declared, &seen, &given.data)?;
    Ok((seen, size))
}

fn check_data(request: &Request, spec: &Spec, declared: &TensorSpec, shape: &[i64], data: &Bytes) -> Result<u64> {
    let prefix = || request_prefix(&request.id);
    let what = || format!("input '{}' for model '{}'", declared.name, spec.name);
    let others = shape.iter().map(|size| (*size).max(1) as u128).try_fold(1u128, u128::checked_mul);
    if shape.contains(&0) && others.is_none_or(|count| count > ADDRESSABLE) {
        // No data, so no size gives it away; but backends multiply the other dimensions all the same.
        return Err(Error::invalid(format!("{}{} has the impossible shape {}", prefix(), what(), format_shape(shape))));
    }
    let count = shape.iter().map(|size| *size as u128).try_fold(1u128, u128::checked_mul);
    if declared.datatype == Datatype::Bytes {
        let count = count.and_then(|count| usize::try_from(count).ok());
        let elements = check_bytes(data, count, shape, &prefix(), &what())?;
        return Ok((data.len() + 8 + 4 * elements) as u64); // as offsets and data
    }
    let size = declared.datatype.size();
    if count.and_then(|count| count.checked_mul(size as u128)) != Some(data.len() as u128) {
        let told = format!(
            "{}input byte size mismatch for {}. Expected {}, got {}",
            prefix(),
            what(),
            product(shape, size as u64),
            data.len()
        );
        return Err(Error::invalid(told));
    }
    Ok(data.len() as u64)
}

/// Elements from the wire: each a little-endian length, then that many bytes. `expected` None: more than there can be.
fn check_bytes(data: &[u8], expected: Option<usize>, shape: &[i64], prefix: &str, what: &str) -> Result<usize> {
    let (mut found, mut at) = (0, 0);
    while at < data.len() {
        let left = data.len() - at;
        let Some(length) = data[at..].first_chunk::<4>() else {
            return Err(Error::invalid(format!(
                "{prefix}incomplete string length indicator for inference {what}, expecting 4 bytes but only {left} bytes \
                 available. Please make sure the string length indicator is in one buffer."
            )));
        };
        if Some(found) == expected {
            return Err(Error::invalid(format!(
                "{prefix}unexpected number of string elements {} for inference {what}, expecting {found}",
                found + 1
            )));
        }
        let length = u32::from_le_bytes(*length) as usize;
        at += 4;
        if length > data.len() - at {
            // Triton leaves this one to the backend; a length that lies must not get that far.
            return Err(Error::invalid(format!(
                "{prefix}incomplete string data for inference {what}, expecting string of length {length} but only {} bytes \
                 available.",
                data.len() - at
            )));
        }
        at += length;
        found += 1;
    }
    if Some(found) != expected {
        let expected = product(shape, 1);
        let told = format!("{prefix}expected {expected} string elements for inference {what}, got {found}");
        return Err(Error::invalid(told));
    }
    Ok(found)
}

/// `reshape` with its variable dimensions filled from `actual`, which matches `dims`: the n-th -1 of both is the same.
fn resolve_reshape<'a>(actual: &'a [i64], dims: &'a [i64], reshape: &'a [i64]) -> impl Iterator<Item = i64> + 'a {
    let mut variable = actual.iter().zip(dims).filter(|(_, dim)| **dim == -1).map(|(size, _)| *size);
    reshape.iter().map(move |size| if *size == -1 { variable.next().unwrap_or(1) } else { *size })
}
