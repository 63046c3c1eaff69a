//! What Python hands in: its own dataclasses, read by their attributes.

use std::collections::HashMap;

use headrace_core::admission;
use headrace_core::codec::{Output, Parameter, Request, Sequence};
use headrace_core::datatype::Datatype;
use headrace_core::origin::Origin;
use headrace_core::spec::{Batching, Pad, Padding, QueuePolicy, Spec, TensorSpec};
use headrace_core::wire::Text;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

#[derive(FromPyObject)]
pub struct GivenTensor {
    name: String,
    datatype: String,
    dims: Vec<i64>,
    reshape: Option<Vec<i64>>,
    optional: bool,
    labels: Vec<String>,
}

#[derive(FromPyObject)]
pub struct GivenPolicy {
    timeout_ns: i64,
    allow_override: bool,
    delay: bool,
    max_requests: usize,
}

#[derive(FromPyObject)]
pub struct GivenBatching {
    preserve_ordering: bool,
    priority_levels: u64,
    default_priority: u64,
    policy: GivenPolicy,
    level_policies: HashMap<u32, GivenPolicy>,
    objective_ns: i64,
    sheds_target: bool,
    splits_oversize: bool,
}

#[derive(FromPyObject)]
pub struct GivenPadding {
    axis: usize,
    edges: Vec<i64>,
    mask: String,
    whole: Vec<String>,
}

/// `headrace.model.ModelSpec`.
#[derive(FromPyObject)]
pub struct GivenSpec {
    name: String,
    version: i64,
    max_batch_size: i64,
    inputs: Vec<GivenTensor>,
    outputs: Vec<GivenTensor>,
    batching: GivenBatching,
    decoupled: bool,
    sequences: bool,
    padding: Option<GivenPadding>,
    pads: Vec<(usize, Vec<u8>, Vec<u8>)>,
}

#[derive(FromPyObject)]
pub struct GivenLine {
    base_ns: i64,
    row_ns: i64,
    max_rows: u64,
}

#[derive(FromPyObject)]
pub struct GivenEstimate {
    lines: HashMap<u64, GivenLine>,
    instances: usize,
    margin_ns: i64,
}

/// `headrace.scheduling.admission.Limits`.
#[derive(FromPyObject)]
pub struct GivenLimits {
    requests: u64,
    rows: u64,
    nbytes: u64,
    undated: u64,
    estimate: Option<GivenEstimate>,
    shed: HashMap<u32, u32>,
}

#[derive(FromPyObject)]
enum GivenId {
    Number(i64),
    Text(String),
}

#[derive(FromPyObject)]
pub struct GivenSequence {
    id: GivenId,
    start: bool,
    end: bool,
}

/// `headrace.request.Request`, but for its tensors.
#[derive(FromPyObject)]
pub struct GivenRequest {
    model: String,
    version: i64,
    id: String,
    outputs: Vec<String>,
    classes: HashMap<String, i64>,
    deadline: Option<i64>,
    timeout_ns: i64,
    priority: u64,
    sequence: Option<GivenSequence>,
    received: i64,
    decoded: i64,
    wants_empty_final: bool,
    origin: GivenOrigin,
}

/// `headrace.request.Origin`, which is a tuple.
#[derive(FromPyObject)]
struct GivenOrigin(u64, u64, u64, u64, u64, u32, u8, u8);

impl GivenTensor {
    fn read(self) -> PyResult<TensorSpec> {
        let datatype = Datatype::named(&self.datatype)
            .ok_or_else(|| PyValueError::new_err(format!("'{}' is no datatype", self.datatype)))?;
        let GivenTensor { name, dims, reshape, optional, labels, .. } = self;
        Ok(TensorSpec { name, datatype, dims, reshape, optional, labels })
    }
}

impl From<GivenPolicy> for QueuePolicy {
    fn from(given: GivenPolicy) -> QueuePolicy {
        QueuePolicy {
            timeout: given.timeout_ns,
            allow_override: given.allow_override,
            delay: given.delay,
            max_requests: given.max_requests,
        }
    }
}

impl GivenPadding {
    fn read(self, given: Vec<(usize, Vec<u8>, Vec<u8>)>, inputs: &[TensorSpec], outputs: &[TensorSpec]) -> Padding {
        let mut pads: Vec<Option<Pad>> = vec![None; inputs.len()];
        for (place, element, one) in given {
            pads[place] = Some(Pad { element, one });
        }
        let mask = inputs.iter().position(|input| input.name == self.mask);
        let whole = outputs.iter().map(|output| self.whole.contains(&output.name)).collect();
        Padding { axis: self.axis, edges: self.edges, pads, mask, whole }
    }
}

impl GivenSpec {
    pub fn read(self) -> PyResult<Spec> {
        let (batching, pads) = (self.batching, self.pads);
        let inputs = self.inputs.into_iter().map(GivenTensor::read).collect::<PyResult<Vec<_>>>()?;
        let outputs = self.outputs.into_iter().map(GivenTensor::read).collect::<PyResult<Vec<_>>>()?;
        let padding = self.padding.map(|padding| padding.read(pads, &inputs, &outputs));
        Ok(Spec {
            name: self.name,
            version: self.version,
            max_batch_size: self.max_batch_size,
            inputs,
            outputs,
            batching: Batching {
                preserve_ordering: batching.preserve_ordering,
                priority_levels: batching.priority_levels,
                default_priority: batching.default_priority,
                policy: batching.policy.into(),
                level_policies: batching.level_policies.into_iter().map(|(level, policy)| (level, policy.into())).collect(),
                objective: batching.objective_ns,
                sheds_target: batching.sheds_target,
                splits_oversize: batching.splits_oversize,
            },
            decoupled: self.decoupled,
            sequences: self.sequences,
            padding,
        })
    }
}

impl From<GivenEstimate> for admission::Estimate {
    fn from(given: GivenEstimate) -> admission::Estimate {
        let GivenEstimate { lines, instances, margin_ns } = given;
        let line = |GivenLine { base_ns, row_ns, max_rows }| admission::Line { base: base_ns, row: row_ns, max_rows };
        let lines = lines.into_iter().map(|(bucket, given)| (bucket, line(given))).collect();
        admission::Estimate { lines, instances, margin: margin_ns }
    }
}

impl From<GivenLimits> for admission::Limits {
    fn from(given: GivenLimits) -> admission::Limits {
        let GivenLimits { requests, rows, nbytes, undated, estimate, shed } = given;
        let shed = shed.into_iter().collect();
        admission::Limits { requests, rows, nbytes, undated, estimate: estimate.map(Into::into), shed }
    }
}

impl From<GivenOrigin> for Origin {
    fn from(given: GivenOrigin) -> Origin {
        let GivenOrigin(client, trace_high, trace_low, span, parent, parent_model, trace_flags, context) = given;
        Origin { client, trace_high, trace_low, span, parent, parent_model, trace_flags, context }
    }
}

impl From<GivenRequest> for Request {
    fn from(given: GivenRequest) -> Request {
        let classes = given.classes;
        let output = |name: String| Output { classes: classes.get(&name).copied().unwrap_or(0), name: name.into(), placed: None };
        let sequence = given.sequence.map(|sequence| Sequence {
            id: match sequence.id {
                GivenId::Number(number) => Parameter::Int(number),
                GivenId::Text(text) => Parameter::String(text.into()),
            },
            start: sequence.start,
            end: sequence.end,
        });
        Request {
            model: Text::from(given.model),
            version: given.version,
            id: given.id.into(),
            parameters: Vec::new(),
            inputs: Vec::new(),
            outputs: given.outputs.into_iter().map(output).collect(),
            deadline: given.deadline,
            timeout: given.timeout_ns,
            priority: given.priority,
            sequence,
            wants_empty_final: given.wants_empty_final,
            received: given.received,
            decoded: given.decoded,
            origin: given.origin.into(),
        }
    }
}
