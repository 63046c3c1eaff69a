//! Headrace's data plane for Python: `headrace_core`, thinly. What each thing does is in `_native.pyi` beside the package.
//!
//! Only plain types and buffers cross this border. The interpreter is let go of wherever there is something to wait for or to
//! copy, and each return to it is counted.

mod arguments;
mod batch;
mod channel;
mod kernel;
mod load;
mod queue;
mod server;

use std::sync::atomic::{AtomicU64, Ordering};

use pyo3::create_exception;
use pyo3::exceptions::PyException;
use pyo3::prelude::*;

create_exception!(_native, KernelError, PyException, "An error of the data plane: (kind, message, retry after ns or None).");

static ENTRIES: AtomicU64 = AtomicU64::new(0);

/// Do something without the interpreter, and come back to it on behalf of requests: one entry.
pub(crate) fn outside<T: Send>(py: Python<'_>, work: impl FnOnce() -> T + Send) -> T {
    let done = py.detach(work);
    ENTRIES.fetch_add(1, Ordering::Relaxed);
    done
}

pub(crate) fn raised(error: &headrace_core::error::Error) -> PyErr {
    let kind = error.kind.map_or("Broken", headrace_core::error::Kind::name);
    KernelError::new_err((kind, error.message.clone(), error.retry_after))
}

/// How often native code has entered Python on behalf of requests since the process started.
#[pyfunction]
fn python_entries() -> u64 {
    ENTRIES.load(Ordering::Relaxed)
}

/// Let the next `count` passes of a point panic, or be delayed.
#[cfg(feature = "faults")]
#[pyfunction]
#[pyo3(signature = (point, count, delay_ns=0))]
fn inject(point: &str, count: usize, delay_ns: u64) -> PyResult<()> {
    let unknown = || pyo3::exceptions::PyValueError::new_err(format!("there is no point '{point}'"));
    let point = headrace_core::faults::Point::named(point).ok_or_else(unknown)?;
    headrace_core::faults::arm(point, count, std::time::Duration::from_nanos(delay_ns));
    Ok(())
}

/// Panics are answers and log lines; the default hook would print them to stderr a second time, between the lines of the log.
fn quieten_panics() {
    let default = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if std::env::var_os("RUST_BACKTRACE").is_some() {
            default(panic);
        }
    }));
}

#[pymodule]
fn _native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    quieten_panics();
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add("PROFILE", if cfg!(debug_assertions) { "checked" } else { "release" })?;
    module.add("KernelError", module.py().get_type::<KernelError>())?;
    module.add_class::<kernel::Kernel>()?;
    module.add_class::<queue::Queue>()?;
    module.add_class::<batch::Batch>()?;
    module.add_class::<batch::Buffer>()?;
    module.add_class::<server::Server>()?;
    module.add_class::<server::Call>()?;
    module.add_class::<load::Load>()?;
    module.add("CallError", module.py().get_type::<channel::CallError>())?;
    module.add_class::<channel::Channel>()?;
    module.add_function(wrap_pyfunction!(python_entries, module)?)?;
    module.add_function(wrap_pyfunction!(kernel::check_pattern, module)?)?;
    #[cfg(feature = "faults")]
    module.add_function(wrap_pyfunction!(inject, module)?)?;
    Ok(())
}
