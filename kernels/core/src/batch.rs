//! A batch: entries that run together, their tensors gathered, their answers scattered.
//!
//! Belongs to one instance thread, or, taken apart, each part to whoever holds it. Dropping it fails whatever was not answered.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use crate::buffer::Buffer;
use crate::classify;
use crate::codec::{Encoder, MAX_MESSAGE, Part, Wanted};
use crate::datatype::Datatype;
use crate::entry::{Entry, Letter, Sink};
use crate::error::{Error, Kind, Result};
use crate::faults::{self, Point};
use crate::ledger::BatchRecord;
use crate::padding::{self, Cut};
use crate::queue::{Post, Queue};
use crate::validate::Admitted;

/// One input of a batch: rows of all its requests, stacked.
pub struct Gathered {
    /// Which input of the spec.
    pub input: usize,
    pub shape: Vec<i64>,
    pub data: Buffer,
    /// Of BYTES: one more int64 than there are elements.
    pub offsets: Option<Buffer>,
}

/// One output of a model, whole. `shape` is what clients are told; rows are its first dimension if the model batches.
pub struct Returned<'a> {
    /// Which output of the spec.
    pub output: usize,
    pub shape: &'a [i64],
    pub data: &'a [u8],
    pub offsets: Option<&'a [i64]>,
}

struct Member {
    entry: Box<Entry>,
    is_open: bool,
    /// An answer could not be sent: what the model still says is dropped.
    is_given_up: bool,
}

/// See the head of this file.
pub struct Batch {
    pub queue: Arc<Queue>,
    pub number: u64,
    /// Where the rows of each request begin; one more than there are requests.
    pub offsets: Vec<u32>,
    /// One request of a batch that was taken apart: no record of a batch is its own, and its answers wait for nobody's turn.
    pub is_part: bool,
    members: Vec<Member>,
    record: BatchRecord,
    is_finished: bool,
}

impl Batch {
    /// `record` says what the plan and the queue know.
    pub fn new(queue: Arc<Queue>, mut entries: Vec<Box<Entry>>, record: BatchRecord) -> Batch {
        if queue.spec.padding.is_some() {
            padding::settle(&mut entries);
        }
        let mut offsets = Vec::with_capacity(entries.len() + 1);
        offsets.push(0);
        let mut rows = 0;
        for entry in &entries {
            rows += entry.admitted.rows;
            offsets.push(rows);
        }
        let number = record.number;
        let record = BatchRecord {
            model: queue.model,
            rows: rows.max(1),
            requests: entries.len() as u32,
            padding: padding::counted(entries.iter().map(|entry| &entry.admitted)),
            ..record
        };
        let members = entries.into_iter().map(|entry| Member { entry, is_open: true, is_given_up: false }).collect();
        Batch { queue, number, offsets, is_part: false, members, record, is_finished: false }
    }

    pub fn len(&self) -> usize {
        self.members.len()
    }

    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Which instance runs it.
    pub fn instance(&self) -> u16 {
        self.record.instance
    }

    pub fn entry(&self, index: usize) -> Option<&Entry> {
        self.members.get(index).map(|member| &*member.entry)
    }

    pub fn has_locals(&self) -> bool {
        self.members.iter().any(|member| matches!(member.entry.sink, Sink::Local))
    }

    /// The outputs that a request of `of` asked for, in the order the model declares them.
    pub fn wanted(&self, of: std::ops::Range<usize>) -> Vec<usize> {
        let members = self.members.get(of).unwrap_or_default();
        let is_wanted = |output: &usize| {
            members.iter().any(|member| member.entry.admitted.outputs.iter().any(|wanted| wanted.output == *output))
        };
        (0..self.queue.spec.outputs.len()).filter(is_wanted).collect()
    }

    /// Copy the inputs of some of the requests into aligned buffers, one an input.
    pub fn gather(&mut self, of: std::ops::Range<usize>) -> Result<Vec<Gathered>> {
        let gathered = catch_unwind(AssertUnwindSafe(|| self.copy_inputs(of.clone())))
            .map_err(|panic| Error::broken(format!("gathering a batch panicked: {}", faults::said(&*panic))))?;
        let now = self.queue.clock.now();
        self.record.gathered = now;
        let is_part = self.is_part;
        for member in self.members.get_mut(of).unwrap_or_default() {
            // A part was gathered with its batch.
            if let Some(settlement) = &mut member.entry.settlement
                && !(is_part && settlement.record.gathered > 0)
            {
                settlement.record.gathered = now;
            }
        }
        Ok(gathered)
    }

    fn copy_inputs(&self, of: std::ops::Range<usize>) -> Vec<Gathered> {
        faults::pass(Point::Gather);
        let members = self.members.get(of).unwrap_or_default();
        let spec = &self.queue.spec;
        let admitted: Vec<&Admitted> = members.iter().map(|member| &member.entry.admitted).collect();
        let batches = spec.batches();
        let specs = spec.inputs.iter().enumerate();
        let copy = |(input, declared): (usize, &crate::spec::TensorSpec)| {
            if let Some(padded) = padding::gather(spec, &self.queue.pool, input, &admitted) {
                return Some(padded);
            }
            let tensors = || admitted.iter().filter_map(move |member| member.inputs[input].as_ref());
            let mut shape = tensors().next()?.shape.clone();
            if batches {
                shape[0] = tensors().map(|tensor| tensor.shape[0]).sum();
            }
            let (data, offsets) = if declared.datatype == Datatype::Bytes {
                let (data, offsets) = self.copy_elements(tensors().map(|tensor| &tensor.data[..]));
                (data, Some(offsets))
            } else {
                let size = tensors().map(|tensor| tensor.data.len()).sum();
                let mut data = self.queue.pool.take(size);
                let mut to = data.as_mut_slice();
                for tensor in tensors() {
                    let (mine, rest) = to.split_at_mut(tensor.data.len());
                    mine.copy_from_slice(&tensor.data);
                    to = rest;
                }
                (data, None)
            };
            Some(Gathered { input, shape, data, offsets })
        };
        specs.filter_map(copy).collect()
    }

    /// Length-prefixed elements, which validation has walked through once, as data and offsets.
    fn copy_elements<'a>(&self, tensors: impl Iterator<Item = &'a [u8]> + Clone) -> (Buffer, Buffer) {
        let elements: Vec<&[u8]> = tensors
            .flat_map(|mut wire| {
                std::iter::from_fn(move || {
                    let (length, rest) = wire.split_first_chunk::<4>()?;
                    let (element, rest) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
                    wire = rest;
                    Some(element)
                })
            })
            .collect();
        let mut offsets = self.queue.pool.take(8 * (elements.len() + 1));
        let mut data = self.queue.pool.take(elements.iter().map(|element| element.len()).sum());
        let mut at = 0;
        offsets.as_mut_slice()[..8].copy_from_slice(&0u64.to_le_bytes());
        for (element, offset) in elements.iter().zip(offsets.as_mut_slice()[8..].as_chunks_mut::<8>().0) {
            data.as_mut_slice()[at..at + element.len()].copy_from_slice(element);
            at += element.len();
            *offset = (at as u64).to_le_bytes();
        }
        (data, offsets)
    }

    /// The model is done with these; what never got that far keeps its zeros. Call it when outputs, or an error, are there.
    pub fn stamp_executed(&mut self, index: Option<usize>) {
        let now = self.queue.clock.now();
        self.record.executed = now;
        for (place, member) in self.members.iter_mut().enumerate() {
            if member.is_open
                && index.is_none_or(|index| index == place)
                && let Some(settlement) = &mut member.entry.settlement
                && settlement.record.gathered > 0
            {
                settlement.record.executed = now;
            }
        }
    }

    /// Answer every open request with its rows, for good. Returns the local ones, which their callers have to be told.
    pub fn reply(&mut self, outputs: &[Returned<'_>]) -> Vec<usize> {
        let open: Vec<usize> = (0..self.len()).filter(|index| self.members[*index].is_open).collect();
        self.answer(&open, outputs, true, true)
    }

    /// One answer to one request, with outputs of its own. Whether it is a local one, who has to be told.
    pub fn send(&mut self, index: usize, outputs: &[Returned<'_>], is_final: bool) -> Result<bool> {
        let member = self.members.get(index).ok_or_else(|| Error::broken(format!("there is no request {index}")))?;
        if member.is_given_up {
            return Ok(false);
        }
        if !member.is_open {
            let what = format!("request {index} of batch {} was answered after its final answer", self.number);
            return Err(Error::broken(what));
        }
        Ok(!self.answer(&[index], outputs, false, is_final).is_empty())
    }

    /// Answer with an error: one request, or all that are open. Returns the local ones.
    pub fn fail(&mut self, error: &Error, index: Option<usize>) -> Vec<usize> {
        self.stamp_executed(index);
        let indices: Vec<usize> = match index {
            Some(index) => vec![index],
            None => (0..self.len()).filter(|index| self.members[*index].is_open).collect(),
        };
        let (mut post, mut locals) = (Post::default(), Vec::new());
        for index in indices {
            if !self.members.get(index).is_some_and(|member| member.is_open) {
                continue;
            }
            self.record.failed += 1;
            self.hand_over(index, Some(Err(error.clone())), true, &mut post, &mut locals);
        }
        self.record.scattered = self.queue.clock.now();
        post.send();
        locals
    }

    /// Each request as a batch of its own, to be answered later and from any thread; this one is over with that. What was
    /// answered stays so. Whoever is cancelled from now on, or was before, is in the news: see `News::gone`.
    pub fn part(&mut self) -> Vec<Batch> {
        let now = self.queue.clock.now();
        (self.record.executed, self.record.scattered) = (now, now);
        let part = |member: Member| Batch {
            queue: Arc::clone(&self.queue),
            number: self.number,
            offsets: vec![0, member.entry.admitted.rows],
            is_part: true,
            members: vec![member],
            record: BatchRecord::default(),
            is_finished: false,
        };
        let parts: Vec<Batch> = std::mem::take(&mut self.members).into_iter().map(part).collect();
        self.queue.watch(parts.iter().filter(|part| part.is_open()).filter_map(|part| part.entry(0)));
        parts
    }

    /// Everything is answered, or is failed now; writes the record of the batch.
    pub fn finish(&mut self) {
        if self.is_finished {
            return;
        }
        self.is_finished = true;
        if self.is_open() {
            let error = Error::broken(format!("batch {} was left without an answer", self.number));
            for local in self.fail(&error, None) {
                self.queue.tell(self.members[local].entry.number, error.clone());
            }
        }
        if !self.is_part {
            self.queue.finished(&self.record);
        }
    }

    /// Whether a request still waits for an answer.
    pub fn is_open(&self) -> bool {
        self.members.iter().any(|member| member.is_open)
    }

    /// Whether anybody still waits: a request that is open, was not cancelled, and is not past its deadline.
    pub fn is_wanted(&self) -> bool {
        let now = self.queue.clock.now();
        let is_wanted = |member: &Member| member.is_open && !member.entry.fate.is_cancelled() && member.entry.due.deadline > now;
        self.members.iter().any(is_wanted)
    }

    fn answer(&mut self, indices: &[usize], outputs: &[Returned<'_>], shared: bool, is_final: bool) -> Vec<usize> {
        let (mut post, mut locals) = (Post::default(), Vec::new());
        for &index in indices {
            let is_local = matches!(self.members[index].entry.sink, Sink::Local);
            let encoded = (!is_local && !self.members[index].entry.fate.is_cancelled()).then(|| {
                catch_unwind(AssertUnwindSafe(|| self.encode(index, outputs, shared, is_final))).unwrap_or_else(|panic| {
                    let error = Error::broken(format!("an answer panicked: {}", faults::said(&*panic)));
                    self.queue.report(&error);
                    Err(error)
                })
            });
            let is_final = is_final || matches!(encoded, Some(Err(_)));
            if matches!(encoded, Some(Err(_))) && !shared {
                self.members[index].is_given_up = true;
            }
            self.hand_over(index, encoded, is_final, &mut post, &mut locals);
        }
        self.record.scattered = self.queue.clock.now();
        post.send();
        locals
    }

    /// Give an answer to whoever waits for it. `result` None: a local one, or one that nobody wants any more.
    fn hand_over(
        &mut self,
        index: usize,
        result: Option<Result<bytes::Bytes>>,
        is_final: bool,
        post: &mut Post,
        locals: &mut Vec<usize>,
    ) {
        let now = self.queue.clock.now();
        let member = &mut self.members[index];
        let entry = &mut member.entry;
        if let Some(settlement) = &mut entry.settlement
            && settlement.record.executed > 0
        {
            let record = &mut settlement.record;
            record.first = if record.first == 0 { now } else { record.first };
            record.scattered = now;
        }
        let settlement = if is_final { entry.settlement.take() } else { None };
        member.is_open &= !is_final;
        if entry.fate.is_cancelled() {
            // A settlement that is dropped is one of a cancelled request.
            return;
        }
        match (&entry.sink, result) {
            (Sink::Local, _) => {
                if let Some(settlement) = settlement {
                    self.queue.hand(entry.number, settlement);
                }
                locals.push(index);
            }
            (Sink::Remote { outbox, mailbox, ask, .. }, Some(result)) => {
                let (mailbox, ask) = (*mailbox, *ask);
                post.add(outbox, Letter { mailbox, ask, result, is_final, settlement });
            }
            (Sink::Remote { .. }, None) => {}
        }
    }

    fn encode(&self, index: usize, outputs: &[Returned<'_>], shared: bool, is_final: bool) -> Result<bytes::Bytes> {
        faults::pass(Point::Scatter);
        let (spec, entry) = (&self.queue.spec, &*self.members[index].entry);
        let Sink::Remote { is_stream, .. } = entry.sink else {
            return Ok(bytes::Bytes::new());
        };
        if is_stream && is_final && outputs.is_empty() && !entry.request.wants_empty_final {
            return Ok(bytes::Bytes::new());
        }
        let rows = self.offsets[index] as usize..self.offsets[index + 1] as usize;
        let is_slice = shared && spec.batches() && self.len() > 1;
        let mine = || is_slice.then(|| rows.clone());
        let named = |output: usize| {
            let found = outputs.iter().find(|returned| returned.output == output);
            found.ok_or_else(|| Error::broken("an output that is wanted was not returned"))
        };
        // What is cut back, and classes, are made here, so they need a place that outlives what refers to them.
        let wanted: &[crate::validate::Wanted] = if outputs.is_empty() { &[] } else { &entry.admitted.outputs };
        let cut = |wanted: &crate::validate::Wanted| padding::cut(spec, named(wanted.output)?, mine(), &entry.admitted);
        let is_cut = entry.admitted.length < entry.admitted.padded;
        let cuts: Vec<Option<Cut>> = if is_cut { wanted.iter().map(cut).collect::<Result<_>>()? } else { Vec::new() };
        let cut_at = |place: usize| cuts.get(place).and_then(Option::as_ref);
        let mut made: Vec<Option<Classes>> = Vec::new();
        let mut told = Vec::with_capacity(wanted.len());
        for (place, wanted) in wanted.iter().enumerate() {
            let returned = named(wanted.output)?;
            let part = cut_at(place).map_or_else(|| part_of(returned, mine()), |cut| Part::Raw(&cut.wire));
            let asked = wanted.asked.and_then(|asked| entry.request.outputs.get(asked));
            told.push((wanted.output, returned, part, asked));
            made.push(match asked {
                Some(asked) if asked.classes > 0 => {
                    let labels = &spec.outputs[wanted.output].labels;
                    let datatype = spec.outputs[wanted.output].datatype;
                    let batch = match (spec.batches(), is_slice) {
                        (true, true) => rows.len(),
                        (true, false) => returned.shape.first().copied().unwrap_or(1) as usize,
                        (false, _) => 1,
                    };
                    let Part::Raw(data) = part else {
                        return classify::check(Datatype::Bytes).map(|()| bytes::Bytes::new());
                    };
                    let (wire, kept) = classify::top(datatype, data, batch, asked.classes as usize, labels)?;
                    let shape = if spec.batches() { vec![batch as i64, kept as i64] } else { vec![kept as i64] };
                    Some((wire, shape))
                }
                _ => None,
            });
        }
        let mut answers = Vec::with_capacity(told.len());
        for (at, ((output, returned, part, asked), classes)) in told.iter().zip(&made).enumerate() {
            let declared = &spec.outputs[*output];
            let mut answer = Wanted {
                name: &declared.name,
                datatype: declared.datatype,
                rows: is_slice.then_some(rows.len() as i64),
                shape: returned.shape,
                part: *part,
            };
            if let Some(cut) = cut_at(at) {
                (answer.rows, answer.shape) = (None, &cut.shape);
            }
            if let Some((wire, shape)) = classes {
                (answer.datatype, answer.rows, answer.shape) = (Datatype::Bytes, None, shape);
                answer.part = Part::Raw(wire);
            } else if let Some(window) = asked.and_then(|asked| asked.placed.as_ref()) {
                place(&declared.name, *part, window)?;
                answer.part = Part::Nothing;
            }
            answers.push(answer);
        }
        let encoder = Encoder { model: &spec.name, version: &self.queue.version, stream: is_stream };
        encoder.encode(&entry.request.id, &answers, is_final)
    }
}

type Classes = (Vec<u8>, Vec<i64>);

impl Drop for Batch {
    fn drop(&mut self) {
        self.finish();
    }
}

/// The rows of an output, or all of it.
fn part_of<'a>(returned: &Returned<'a>, rows: Option<std::ops::Range<usize>>) -> Part<'a> {
    let all = returned.shape.first().map_or(1, |size| *size as usize);
    match (returned.offsets, rows) {
        (Some(offsets), None) => Part::Elements { offsets, data: returned.data },
        (Some(offsets), Some(rows)) => {
            let width = (offsets.len() - 1).checked_div(all).unwrap_or(0);
            Part::Elements { offsets: &offsets[rows.start * width..=rows.end * width], data: returned.data }
        }
        (None, None) => Part::Raw(returned.data),
        (None, Some(rows)) => {
            let width = returned.data.len().checked_div(all).unwrap_or(0);
            Part::Raw(&returned.data[rows.start * width..rows.end * width])
        }
    }
}

/// Write an output to shared memory, in the form it has on the wire.
fn place(name: &str, part: Part<'_>, window: &crate::regions::Window) -> Result<()> {
    let size = part.size();
    if size as u64 > window.byte_size() {
        return Err(Error::new(
            Kind::RegionFailed,
            format!(
                "shared memory size specified with the request for output '{name}' ({} bytes) should be at least {size} bytes \
                 to hold the results",
                window.byte_size()
            ),
        ));
    }
    match part {
        Part::Raw(bytes) => window.write(bytes),
        Part::Elements { .. } => {
            let mut wire = Vec::with_capacity(size.min(MAX_MESSAGE));
            part.write(&mut wire);
            window.write(&wire)
        }
        Part::Nothing => Ok(()),
    }
}
