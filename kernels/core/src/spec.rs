//! What one version of a model takes and gives. See `headrace.model.ModelSpec`.

use std::collections::HashMap;

use crate::clock::Nanos;
use crate::datatype::Datatype;

/// One input or output. `dims` is what clients send or get, without the batch dimension, -1 where the size varies.
#[derive(Clone, Debug)]
pub struct TensorSpec {
    pub name: String,
    pub datatype: Datatype,
    pub dims: Vec<i64>,
    /// What the model itself sees instead of `dims`, where it differs.
    pub reshape: Option<Vec<i64>>,
    pub optional: bool,
    pub labels: Vec<String>,
}

/// Triton's `ModelQueuePolicy`. `max_requests` 0: no own limit.
#[derive(Clone, Debug, Default)]
pub struct QueuePolicy {
    pub timeout: Nanos,
    pub allow_override: bool,
    pub delay: bool,
    pub max_requests: usize,
}

/// How requests are ordered, and what the queue policies of their levels are.
#[derive(Clone, Debug)]
pub struct Batching {
    pub preserve_ordering: bool,
    pub priority_levels: u64,
    pub default_priority: u64,
    pub policy: QueuePolicy,
    pub level_policies: HashMap<u32, QueuePolicy>,
    /// When a request that names no deadline is due, counted from when it was received.
    pub objective: Nanos,
    /// Whether a request is refused that would miss its target, and not only one that would miss its deadline.
    pub sheds_target: bool,
    /// Whether a request with more rows than a batch may have is admitted: it runs in pieces.
    pub splits_oversize: bool,
}

impl Batching {
    /// The queue policy of a priority level.
    pub fn policy_of(&self, level: u32) -> &QueuePolicy {
        self.level_policies.get(&level).unwrap_or(&self.policy)
    }
}

impl Default for Batching {
    fn default() -> Batching {
        Batching {
            preserve_ordering: false,
            priority_levels: 0,
            default_priority: 0,
            policy: QueuePolicy::default(),
            level_policies: HashMap::new(),
            objective: 10_000_000_000,
            sheds_target: false,
            splits_oversize: false,
        }
    }
}

/// What an input is padded with, and what a mask that is made has where there is something: one element each.
#[derive(Clone, Debug)]
pub struct Pad {
    pub element: Vec<u8>,
    pub one: Vec<u8>,
}

/// How requests of different lengths share a batch. See `headrace.model.Padding`.
#[derive(Clone, Debug)]
pub struct Padding {
    /// Which dimension varies, counted without the batch dimension.
    pub axis: usize,
    /// What inputs are padded to, ascending.
    pub edges: Vec<i64>,
    /// One a declared input; None for those that are not padded.
    pub pads: Vec<Option<Pad>>,
    /// The input that is made where a request leaves it out.
    pub mask: Option<usize>,
    /// One a declared output: whether it stays as it is, although a dimension of it varies.
    pub whole: Vec<bool>,
}

/// One version of a model.
#[derive(Clone, Debug)]
pub struct Spec {
    pub name: String,
    pub version: i64,
    pub max_batch_size: i64,
    pub inputs: Vec<TensorSpec>,
    pub outputs: Vec<TensorSpec>,
    pub batching: Batching,
    pub decoupled: bool,
    pub sequences: bool,
    pub padding: Option<Padding>,
}

impl Spec {
    /// Whether tensors have a batch dimension.
    pub fn batches(&self) -> bool {
        self.max_batch_size > 0
    }
}
