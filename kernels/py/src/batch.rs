//! Batches, and the memory of their tensors.

use std::ffi::{CStr, c_int, c_void};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use headrace_core::batch::{self, Returned};
use headrace_core::codec::{Parameter, Request};
use headrace_core::entry::Sink;
use headrace_core::error::Error;
use headrace_core::origin::Origin;
use parking_lot::Mutex;
use pyo3::buffer::PyBuffer;
use pyo3::exceptions::{PyBufferError, PyIndexError, PyValueError};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};

use crate::queue::{park, send_parked};
use crate::{outside, raised};

/// Outputs of this many bytes are copied, and leave with the next turn or later; larger ones are scattered at once, from where they
/// are.
const SMALL: usize = 256 << 10;

/// An output: which one, its shape, its bytes, and the offsets of BYTES.
type GivenOutput = (usize, Vec<i64>, PyBuffer<u8>, Option<PyBuffer<i64>>);
/// See `Batch::heads`.
type Head<'py> = (u64, String, Bound<'py, PyDict>, Option<i64>, i64, u64, i64, GivenOrigin, Option<GivenSequence>, Vec<usize>);
/// `headrace.request.Origin`.
type GivenOrigin = (u64, u64, u64, u64, u64, u32, u8, u8);
/// `headrace.request.Sequence`.
type GivenSequence = (Py<PyAny>, bool, bool);
/// An input: which one, its shape, its bytes, and the offsets of BYTES.
type GatheredInput = (usize, Vec<i64>, Buffer, Option<Buffer>);

/// The bytes of a buffer.
pub fn slice_of<T: pyo3::buffer::Element>(buffer: &PyBuffer<T>) -> PyResult<&[T]> {
    if !buffer.is_c_contiguous() {
        return Err(PyValueError::new_err("the buffer is not contiguous"));
    }
    if buffer.item_count() == 0 {
        return Ok(&[]);
    }
    // SAFETY: a buffer view keeps its memory alive and in place, and whoever passes one here does not write meanwhile.
    Ok(unsafe { std::slice::from_raw_parts(buffer.buf_ptr().cast::<T>(), buffer.item_count()) })
}

struct OwnedOutput {
    output: usize,
    shape: Vec<i64>,
    data: Vec<u8>,
    offsets: Option<Vec<i64>>,
}

/// An answer whose letters are still to be written. Dropping it writes them.
pub struct Parked {
    batch: Arc<Mutex<batch::Batch>>,
    outputs: Vec<OwnedOutput>,
}

impl Parked {
    /// Its instance, and its number.
    pub fn batch(&self) -> (u16, u64) {
        let batch = self.batch.lock();
        (batch.instance(), batch.number)
    }

    /// Write the letters; when that was done, in ns.
    pub fn send(self) -> i64 {
        let batch = Arc::clone(&self.batch);
        drop(self);
        batch.lock().queue.clock.now()
    }
}

impl Drop for Parked {
    fn drop(&mut self) {
        let outputs = self.outputs.iter().map(|output| Returned {
            output: output.output,
            shape: &output.shape,
            data: &output.data,
            offsets: output.offsets.as_deref(),
        });
        let mut batch = self.batch.lock();
        batch.reply(&outputs.collect::<Vec<_>>());
        batch.finish();
    }
}

#[pyclass(frozen, module = "headrace_kernels")]
pub struct Batch {
    core: Arc<Mutex<batch::Batch>>,
    is_parked: AtomicBool,
}

impl Batch {
    pub fn new(core: batch::Batch) -> Batch {
        Batch { core: Arc::new(Mutex::new(core)), is_parked: AtomicBool::new(false) }
    }
}

/// Python has let go of it before everything was answered: what is open fails, without the interpreter.
impl Drop for Batch {
    fn drop(&mut self) {
        if self.is_open() {
            Python::attach(|py| py.detach(|| self.core.lock().finish()));
        }
    }
}

#[pymethods]
impl Batch {
    #[getter]
    fn number(&self) -> u64 {
        self.core.lock().number
    }

    /// Where the rows of each request begin; one more than there are requests.
    #[getter]
    fn offsets(&self) -> Vec<u32> {
        self.core.lock().offsets.clone()
    }

    /// What the inputs are padded to, 0 without padding, and the length of each request.
    #[getter]
    fn lengths(&self) -> (u32, Vec<u32>) {
        let core = self.core.lock();
        let admitted = || (0..core.len()).filter_map(|index| core.entry(index)).map(|entry| &entry.admitted);
        (admitted().next().map_or(0, |first| first.padded), admitted().map(|admitted| admitted.length).collect())
    }

    /// Requests that came from this process: their place, and their number in the queue.
    #[getter]
    fn locals(&self) -> Vec<(usize, u64)> {
        let core = self.core.lock();
        let entries = (0..core.len()).filter_map(|index| core.entry(index).map(|entry| (index, entry)));
        entries.filter(|(_, entry)| matches!(entry.sink, Sink::Local)).map(|(index, entry)| (index, entry.number)).collect()
    }

    /// The outputs somebody asked for, or the request at `index`, by their place in the spec.
    #[pyo3(signature = (index=None))]
    fn wanted(&self, index: Option<usize>) -> Vec<usize> {
        let core = self.core.lock();
        core.wanted(range(index, core.len()))
    }

    /// Copy the inputs of all requests, or of the one at `index`, into aligned memory.
    #[pyo3(signature = (index=None))]
    fn gather(&self, py: Python<'_>, index: Option<usize>) -> PyResult<Vec<GatheredInput>> {
        let gathered = outside(py, || {
            let mut core = self.core.lock();
            let of = range(index, core.len());
            core.gather(of)
        });
        let wrap = |input: batch::Gathered| (input.input, input.shape, Buffer(input.data), input.offsets.map(Buffer));
        Ok(gathered.map_err(|error| raised(&error))?.into_iter().map(wrap).collect())
    }

    /// Answer every open request with its rows. Returns the places of local ones, which have to be told.
    fn reply(&self, py: Python<'_>, outputs: Vec<GivenOutput>) -> PyResult<Vec<usize>> {
        let mut core = self.core.lock();
        core.stamp_executed(None);
        let is_small = outputs.iter().map(|(_, _, data, _)| data.len_bytes()).sum::<usize>() <= SMALL;
        if is_small && !core.has_locals() && !core.is_part {
            drop(core);
            let own = |(output, shape, data, offsets): &GivenOutput| {
                let (data, offsets) = (slice_of(data)?.to_vec(), offsets.as_ref().map(slice_of).transpose()?);
                Ok(OwnedOutput { output: *output, shape: shape.clone(), data, offsets: offsets.map(<[i64]>::to_vec) })
            };
            let outputs = outputs.iter().map(own).collect::<PyResult<_>>()?;
            self.is_parked.store(true, Ordering::Relaxed);
            park(py, Parked { batch: Arc::clone(&self.core), outputs });
            return Ok(Vec::new());
        }
        drop(core);
        send_parked(py);
        let returned = outputs.iter().map(returned).collect::<PyResult<Vec<_>>>()?;
        Ok(outside(py, || self.core.lock().reply(&returned)))
    }

    /// One answer to one request. Whether it is a local one, who has to be told.
    fn send(&self, py: Python<'_>, index: usize, outputs: Vec<GivenOutput>, is_final: bool) -> PyResult<bool> {
        let returned = outputs.iter().map(returned).collect::<PyResult<Vec<_>>>()?;
        let sent = outside(py, || {
            let mut core = self.core.lock();
            core.stamp_executed(Some(index));
            core.send(index, &returned, is_final)
        });
        sent.map_err(|error| raised(&error))
    }

    /// Answer with an error: the request at `index`, or all that are open. Returns the places of local ones.
    #[pyo3(signature = (code, message, outcome, index=None))]
    fn fail(&self, py: Python<'_>, code: u8, message: String, outcome: u8, index: Option<usize>) -> Vec<usize> {
        let error = Error::foreign(code, message, outcome);
        outside(py, || self.core.lock().fail(&error, index))
    }

    /// Each request as a batch of its own, with its number in the queue; this one is over with that.
    fn part(&self, py: Python<'_>) -> Vec<(u64, Batch)> {
        send_parked(py);
        let parts = self.core.lock().part();
        let numbered = parts.into_iter().map(|part| (part.entry(0).map_or(0, |entry| entry.number), Batch::new(part)));
        numbered.collect()
    }

    /// Whether a request still waits for an answer.
    #[getter]
    fn is_open(&self) -> bool {
        !self.is_parked.load(Ordering::Relaxed) && self.core.lock().is_open()
    }

    /// Whether anybody still waits whose deadline has not passed.
    #[getter]
    fn is_wanted(&self) -> bool {
        self.core.lock().is_wanted()
    }

    /// Everything is answered; what is not, fails.
    fn finish(&self, py: Python<'_>) {
        if !self.is_parked.load(Ordering::Relaxed) {
            send_parked(py);
            py.detach(|| self.core.lock().finish());
        }
    }

    /// It runs somewhere else, and this thread has time: what it has parked is sent.
    fn away(&self, py: Python<'_>) {
        send_parked(py);
    }

    /// Of each request what has to go along when it is sent on: number, id, parameters, deadline, timeout, priority, received, where it
    /// comes from, its place in a sequence, and the outputs it gets by their places in the spec.
    fn heads<'py>(&self, py: Python<'py>) -> PyResult<Vec<Head<'py>>> {
        let core = self.core.lock();
        let head = |index: usize, number: u64, request: &Request| {
            let Origin { client, trace_high, trace_low, span, parent, parent_model, trace_flags, context } = request.origin;
            Ok((
                number,
                request.id.to_string(),
                parameters(py, request)?,
                request.deadline,
                request.timeout,
                request.priority,
                request.received,
                (client, trace_high, trace_low, span, parent, parent_model, trace_flags, context),
                sequence(py, request)?,
                core.wanted(index..index + 1),
            ))
        };
        let entries = (0..core.len()).filter_map(|index| core.entry(index).map(|entry| (index, entry)));
        entries.map(|(index, entry)| head(index, entry.number, &entry.request)).collect()
    }

    /// The request at `index`, field by field; its inputs as (name, datatype, shape, bytes).
    fn request<'py>(&self, py: Python<'py>, index: usize) -> PyResult<Bound<'py, PyDict>> {
        let core = self.core.lock();
        let entry = core.entry(index).ok_or_else(|| PyIndexError::new_err("there is no such request"))?;
        let (request, told) = (&entry.request, PyDict::new(py));
        let declared = &core.queue.spec.inputs;
        let inputs = request.inputs.iter().map(|input| {
            let place = declared.iter().position(|known| *known.name == *input.name);
            let tensor = place.and_then(|place| entry.admitted.inputs[place].as_ref());
            let data = tensor.map_or(&b""[..], |tensor| &tensor.data);
            (&*input.name, &*input.datatype, &input.shape, PyBytes::new(py, data))
        });
        told.set_item("model", &*request.model)?;
        told.set_item("version", request.version)?;
        told.set_item("id", &*request.id)?;
        told.set_item("parameters", parameters(py, request)?)?;
        told.set_item("inputs", inputs.collect::<Vec<_>>())?;
        told.set_item("outputs", request.outputs.iter().map(|output| &*output.name).collect::<Vec<_>>())?;
        let classes = request.outputs.iter().filter(|output| output.classes > 0);
        let classes: Vec<_> = classes.map(|output| (&*output.name, output.classes)).collect();
        told.set_item("classes", classes)?;
        told.set_item("deadline", request.deadline)?;
        told.set_item("timeout_ns", request.timeout)?;
        told.set_item("priority", request.priority)?;
        told.set_item("sequence", sequence(py, request)?)?;
        told.set_item("received", request.received)?;
        told.set_item("decoded", request.decoded)?;
        told.set_item("wants_empty_final", request.wants_empty_final)?;
        Ok(told)
    }
}

fn parameters<'py>(py: Python<'py>, request: &Request) -> PyResult<Bound<'py, PyDict>> {
    let told = PyDict::new(py);
    for (name, parameter) in &request.parameters {
        told.set_item(&**name, value(py, parameter)?)?;
    }
    Ok(told)
}

fn sequence(py: Python<'_>, request: &Request) -> PyResult<Option<GivenSequence>> {
    request.sequence.as_ref().map(|place| Ok((value(py, &place.id)?, place.start, place.end))).transpose()
}

fn value(py: Python<'_>, parameter: &Parameter) -> PyResult<Py<PyAny>> {
    Ok(match parameter {
        Parameter::Bool(flag) => flag.into_pyobject(py)?.to_owned().into_any().unbind(),
        Parameter::Int(number) => number.into_pyobject(py)?.into_any().unbind(),
        Parameter::Double(number) => number.into_pyobject(py)?.into_any().unbind(),
        Parameter::String(text) => (&**text).into_pyobject(py)?.into_any().unbind(),
    })
}

fn returned(output: &GivenOutput) -> PyResult<Returned<'_>> {
    let (output, shape, data, offsets) = output;
    let offsets = offsets.as_ref().map(slice_of).transpose()?;
    Ok(Returned { output: *output, shape, data: slice_of(data)?, offsets })
}

fn range(index: Option<usize>, all: usize) -> std::ops::Range<usize> {
    index.map_or(0..all, |index| index..index + 1)
}

/// Memory of a batch, as a buffer of bytes. It goes back to its pool when the last view of it is gone.
#[pyclass(frozen, module = "headrace_kernels")]
pub struct Buffer(headrace_core::buffer::Buffer);

impl Buffer {
    pub fn of(memory: headrace_core::buffer::Buffer) -> Buffer {
        Buffer(memory)
    }
}

#[pymethods]
impl Buffer {
    #[allow(clippy::cast_possible_wrap)]
    unsafe fn __getbuffer__(slf: Bound<'_, Self>, view: *mut ffi::Py_buffer, flags: c_int) -> PyResult<()> {
        const FORMAT: &CStr = c"B";
        if view.is_null() {
            return Err(PyBufferError::new_err("no view to fill in"));
        }
        let buffer = &slf.get().0;
        let (start, length) = (buffer.as_ptr(), buffer.as_slice().len());
        // SAFETY: `view` is valid, as the protocol says; the memory lives as long as the object that the view holds on to, and
        // nobody but views looks at it. `shape` and `strides` point into the view itself.
        unsafe {
            (*view).obj = slf.into_any().into_ptr();
            (*view).buf = start.cast::<c_void>();
            (*view).len = length as isize;
            (*view).readonly = 0;
            (*view).itemsize = 1;
            (*view).format = if flags & ffi::PyBUF_FORMAT == 0 { std::ptr::null_mut() } else { FORMAT.as_ptr().cast_mut() };
            (*view).ndim = 1;
            (*view).shape = if flags & ffi::PyBUF_ND == 0 { std::ptr::null_mut() } else { &raw mut (*view).len };
            (*view).strides = if flags & ffi::PyBUF_STRIDES == 0 { std::ptr::null_mut() } else { &raw mut (*view).itemsize };
            (*view).suboffsets = std::ptr::null_mut();
            (*view).internal = std::ptr::null_mut();
        }
        Ok(())
    }
}
