//! Calls of other servers.

use bytes::Bytes;
use headrace_core::buffer::Pool;
use headrace_core::client::{self, Failure};
use headrace_core::codec::{Answer, Asking, Given, Parameter, Place, framed};
use parking_lot::Mutex;
use pyo3::buffer::PyBuffer;
use pyo3::create_exception;
use pyo3::exceptions::{PyException, PyOSError};
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use std::sync::Arc;

use crate::batch::{Buffer, slice_of};
use crate::raised;

create_exception!(_native, CallError, PyException, "A call that was not answered well: (what became of it, gRPC code, words).");

const INFER: &str = "/inference.GRPCInferenceService/ModelInfer";
const MALFORMED: &str = "the answer is not a ModelInferResponse message";
const INTERNAL: u8 = 13;

type GivenPlace = (String, i64, i64);
/// Name, datatype, shape, bytes, place.
type GivenInput = (String, String, Vec<i64>, Option<PyBuffer<u8>>, Option<GivenPlace>);
/// Name, datatype, shape.
type Output = (String, String, Vec<i64>);

#[derive(FromPyObject)]
enum GivenParameter {
    Bool(bool),
    Int(i64),
    Double(f64),
    String(String),
}

impl From<GivenParameter> for Parameter {
    fn from(given: GivenParameter) -> Parameter {
        match given {
            GivenParameter::Bool(flag) => Parameter::Bool(flag),
            GivenParameter::Int(integer) => Parameter::Int(integer),
            GivenParameter::Double(double) => Parameter::Double(double),
            GivenParameter::String(text) => Parameter::String(text.into()),
        }
    }
}

fn place_of((region, offset, nbytes): GivenPlace) -> Place {
    Place { region, offset, nbytes }
}

#[pyclass(frozen, module = "headrace_kernels")]
pub struct Channel {
    core: Mutex<client::Channel>,
    pool: Arc<Pool>,
}

#[pymethods]
impl Channel {
    #[new]
    fn new(address: &str, patience: i64) -> PyResult<Channel> {
        let core = client::Channel::new(address, patience).map_err(|error| PyOSError::new_err(error.to_string()))?;
        Ok(Channel { core: Mutex::new(core), pool: Arc::default() })
    }

    /// Any unary call.
    fn call<'py>(&self, py: Python<'py>, path: &str, payload: &[u8], until: i64) -> PyResult<Bound<'py, PyBytes>> {
        let answer = py.detach(|| {
            let mut message = framed(payload.len()).map_err(|error| raised(&error))?;
            message.extend_from_slice(payload);
            self.core.lock().call(path, &[], message.into(), until).map_err(failed)
        });
        Ok(PyBytes::new(py, &answer?))
    }

    /// `ModelInfer`: the version that answered, the outputs, their raw contents.
    #[expect(clippy::too_many_arguments, reason = "the fields of a request")]
    fn infer(
        &self,
        py: Python<'_>,
        model: &str,
        version: &str,
        id: &str,
        parameters: Vec<(String, GivenParameter)>,
        inputs: Vec<GivenInput>,
        outputs: Vec<(String, Option<GivenPlace>)>,
        until: i64,
        metadata: Vec<(String, String)>,
    ) -> PyResult<(String, Vec<Output>, Vec<Buffer>)> {
        let parameters: Vec<_> = parameters.into_iter().map(|(name, value)| (name, value.into())).collect();
        let outputs: Vec<_> = outputs.into_iter().map(|(name, place)| (name, place.map(place_of))).collect();
        let places: Vec<_> = inputs.iter().map(|input| input.4.clone().map(place_of)).collect();
        let given = inputs.iter().zip(&places).map(|((name, datatype, shape, data, _), place)| {
            let data = data.as_ref().map_or(Ok(&[][..]), slice_of)?;
            Ok(Given { name, datatype, shape, data, place: place.as_ref() })
        });
        let given = given.collect::<PyResult<Vec<_>>>()?;
        let asking = Asking { model, version, id, parameters: &parameters, inputs: &given, outputs: &outputs };
        py.detach(|| {
            let message = asking.encode().map_err(|error| raised(&error))?;
            let answer = self.core.lock().call(INFER, &metadata, message.into(), until).map_err(failed)?;
            let told = |_| CallError::new_err(("answered", INTERNAL, MALFORMED));
            let Answer { version, outputs, raw } = Answer::read(&answer).map_err(told)?;
            let outputs = outputs.into_iter().map(|output| (output.name.to_string(), output.datatype.to_string(), output.shape));
            Ok((version.to_string(), outputs.collect(), raw.iter().map(|data| self.aligned(data)).collect()))
        })
    }

    /// Be connected; whether that succeeded until then.
    fn connect(&self, py: Python<'_>, until: i64) -> bool {
        py.detach(|| self.core.lock().connect(until)).is_ok()
    }

    /// Let go of the connection.
    fn close(&self, py: Python<'_>) {
        py.detach(|| self.core.lock().close());
    }
}

impl Channel {
    /// Messages have their tensors anywhere; arrays want them at a multiple of their size.
    fn aligned(&self, data: &Bytes) -> Buffer {
        let mut buffer = self.pool.take(data.len());
        buffer.as_mut_slice().copy_from_slice(data);
        Buffer::of(buffer)
    }
}

fn failed(failure: Failure) -> PyErr {
    CallError::new_err(match failure {
        Failure::Unsent(words) => ("unsent", 0, words),
        Failure::Lost(words) => ("lost", 0, words),
        Failure::Late => ("late", 0, String::new()),
        Failure::Answered { code, message } => ("answered", code, message),
    })
}
