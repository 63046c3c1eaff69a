//! The load generator.

use bytes::Bytes;
use headrace_core::codec::framed;
use headrace_core::load;
use pyo3::exceptions::{PyConnectionError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::raised;

#[pyclass(frozen, module = "headrace_kernels")]
pub struct Load(load::Load);

#[pymethods]
impl Load {
    #[new]
    #[pyo3(signature = (address, messages, picks, *, due=None, clients=0, lasts=0, channels=1, deadline=0, most, patience))]
    #[expect(clippy::too_many_arguments, reason = "by name in Python")]
    fn new(
        py: Python<'_>,
        address: String,
        messages: Vec<Vec<u8>>,
        picks: &[u8],
        due: Option<&[u8]>,
        clients: usize,
        lasts: i64,
        channels: usize,
        deadline: i64,
        most: usize,
        patience: i64,
    ) -> PyResult<Load> {
        let (picks, tail) = picks.as_chunks::<4>();
        let (due, due_tail) = due.map_or((None, 0), |due| {
            let (due, tail) = due.as_chunks::<8>();
            (Some(due), tail.len())
        });
        if !tail.is_empty() || due_tail > 0 {
            return Err(PyValueError::new_err("picks are packed uint32, due is packed int64"));
        }
        let pace = match due {
            Some(due) => load::Pace::Open { due: due.iter().map(|due| i64::from_le_bytes(*due)).collect() },
            None => load::Pace::Closed { clients, lasts },
        };
        let order = load::Order {
            address,
            channels,
            messages: messages.iter().map(|message| as_sent(message)).collect::<PyResult<_>>()?,
            picks: picks.iter().map(|pick| u32::from_le_bytes(*pick)).collect(),
            pace,
            deadline,
            most,
            patience,
        };
        py.detach(|| load::Load::start(order)).map(Load).map_err(PyConnectionError::new_err)
    }

    fn take<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.0.take())
    }

    #[getter]
    fn cpu(&self) -> i64 {
        self.0.cpu()
    }

    #[getter]
    fn is_over(&self) -> bool {
        self.0.is_over()
    }

    fn stop(&self) {
        self.0.stop();
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        // It waits for answers: not with the interpreter held.
        Python::attach(|py| py.detach(|| self.0.end()));
    }
}

fn as_sent(message: &[u8]) -> PyResult<Bytes> {
    let mut sent = framed(message.len()).map_err(|error| raised(&error))?;
    sent.extend_from_slice(message);
    Ok(sent.into())
}
