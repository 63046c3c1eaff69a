//! The server, and the control calls that it has for Python.

use std::sync::Arc;

use headrace_core::error::Error;
use headrace_core::grpc;
use parking_lot::Mutex;
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

#[pyclass(frozen, module = "headrace_kernels")]
pub struct Server {
    core: grpc::Server,
    calls: Arc<grpc::Calls>,
}

impl Server {
    pub fn new(core: grpc::Server) -> Server {
        Server { calls: core.calls(), core }
    }
}

#[pymethods]
impl Server {
    /// Wait for a control call; None once the server has ended.
    fn next_call(&self, py: Python<'_>) -> Option<Call> {
        let calls = Arc::clone(&self.calls);
        let call = py.detach(move || calls.next())?;
        Some(Call { method: call.method.clone(), call: Mutex::new(Some(call)) })
    }

    fn stop_accepting(&self) {
        self.core.stop_accepting();
    }

    fn close(&self, py: Python<'_>, deadline: i64) {
        py.detach(|| self.core.close(deadline));
    }
}

#[pyclass(frozen, module = "headrace_kernels")]
pub struct Call {
    #[pyo3(get)]
    method: String,
    call: Mutex<Option<grpc::Call>>,
}

#[pymethods]
impl Call {
    #[getter]
    fn payload<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        match &*self.call.lock() {
            Some(call) => Ok(PyBytes::new(py, &call.payload)),
            None => Err(PyRuntimeError::new_err("the call is answered")),
        }
    }

    fn answer(&self, payload: &[u8]) {
        if let Some(call) = self.call.lock().take() {
            call.answer(payload);
        }
    }

    fn fail(&self, code: u8, message: String) {
        if let Some(call) = self.call.lock().take() {
            call.fail(Error::foreign(code, message, 1));
        }
    }
}
