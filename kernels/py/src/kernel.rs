//! The kernel: what all queues and servers of one engine share.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::thread::JoinHandle;

use headrace_core::clock::Clock;
use headrace_core::error::Kind;
use headrace_core::expiry::Expiry;
use headrace_core::grpc;
use headrace_core::ledger::{Ledger, RECORD_BYTES};
use headrace_core::news::{Level, News};
use headrace_core::queue::House;
use headrace_core::regions::{Region, Regions};
use headrace_core::ring::Ring;
use headrace_core::routes::Routes;
use parking_lot::Mutex;
use pyo3::exceptions::{PyOSError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::arguments::{GivenLimits, GivenSpec};
use crate::queue::Queue;
use crate::server::Server;

/// (answers to local entries: queue, number, kind, message), (parts whose clients have gone: queue, number), (log lines: level,
/// text), lines not said, whether the ledger fills.
type GivenNews = (Vec<(u64, u64, &'static str, String)>, Vec<(u64, u64)>, Vec<(&'static str, String)>, usize, bool);

#[pyclass(frozen, module = "headrace_kernels")]
pub struct Kernel {
    house: Arc<House>,
    routes: Arc<Routes>,
    regions: Arc<Regions>,
    manual: Option<Arc<AtomicI64>>,
    queues: AtomicU64,
    expiring: Mutex<Option<JoinHandle<()>>>,
}

#[pymethods]
impl Kernel {
    #[new]
    #[pyo3(signature = (now=None))]
    fn new(now: Option<i64>) -> PyResult<Kernel> {
        let manual = now.map(|now| Arc::new(AtomicI64::new(now)));
        let clock = manual.clone().map_or(Clock::Monotonic, Clock::Manual);
        let news = Arc::new(News::default());
        let ledger = Arc::new(Ledger::new(Arc::clone(&news)));
        let expiry = Arc::new(Expiry::default());
        let house = Arc::new(House { clock: clock.clone(), ledger, news, expiry: Arc::clone(&expiry) });
        let expiring = if manual.is_some() {
            None // nobody would wake it: tests expire by hand
        } else {
            let thread = std::thread::Builder::new().name("headrace-expiry".to_owned());
            Some(thread.spawn(move || expiry.run(&clock)).map_err(PyOSError::new_err)?)
        };
        Ok(Kernel {
            house,
            routes: Arc::default(),
            regions: Arc::default(),
            manual,
            queues: AtomicU64::new(0),
            expiring: Mutex::new(expiring),
        })
    }

    fn open_queue(&self, spec: GivenSpec, model_number: u32, above: u64, limits: GivenLimits) -> PyResult<Queue> {
        let id = self.queues.fetch_add(1, Ordering::Relaxed) + 1;
        let house = Arc::clone(&self.house);
        Ok(Queue { core: headrace_core::queue::Queue::new(house, id, (model_number, above), spec.read()?, limits.into()) })
    }

    fn publish(&self, model: String, versions: Option<BTreeMap<i64, Option<Py<Queue>>>>) {
        let versions = versions.map(|versions| {
            versions.into_iter().map(|(version, queue)| (version, queue.map(|queue| Arc::clone(&queue.get().core)))).collect()
        });
        self.routes.publish(model, versions);
    }

    fn close_routes(&self) {
        self.routes.close();
    }

    fn map_region(&self, name: String, key: String, offset: u64, byte_size: u64, descriptor: i32) -> PyResult<()> {
        if descriptor < 0 {
            return Err(PyValueError::new_err("a descriptor is not below 0"));
        }
        // SAFETY: the caller keeps it open during the call.
        let descriptor = unsafe { BorrowedFd::borrow_raw(descriptor) }.try_clone_to_owned()?;
        self.regions.map_region(Region { name, key, offset, byte_size, segment: File::from(descriptor) });
        Ok(())
    }

    fn unmap_region(&self, name: &str) {
        self.regions.unmap_region(name);
    }

    /// Wait for what native code has to tell; None when the kernel is closed.
    #[pyo3(signature = (*, wait=true))]
    fn next_news(&self, py: Python<'_>, wait: bool) -> Option<GivenNews> {
        let news = Arc::clone(&self.house.news);
        let items = crate::outside(py, move || news.wait(wait))?;
        let answers = items.answers.into_iter().map(|answer| {
            let kind = answer.error.kind.map_or("Broken", Kind::name);
            (answer.queue, answer.number, kind, answer.error.message)
        });
        let lines = items.lines.into_iter().map(|(level, line)| {
            let level = match level {
                Level::Debug => "debug",
                Level::Warning => "warning",
                Level::Error => "error",
            };
            (level, line)
        });
        Some((answers.collect(), items.gone, lines.collect(), items.unsaid, items.is_filling))
    }

    fn take_records<'py>(&self, py: Python<'py>) -> (Bound<'py, PyBytes>, Bound<'py, PyBytes>) {
        let (requests, batches) = self.house.ledger.take();
        (PyBytes::new(py, &requests), PyBytes::new(py, &batches))
    }

    /// Write records into the rings of these files from now on, which others may map; the descriptors stay the caller's.
    fn share_records(&self, requests: i32, batches: i32) -> PyResult<()> {
        let map = |descriptor: i32, record_bytes: usize| {
            if descriptor < 0 {
                return Err(PyValueError::new_err("a descriptor is not below 0"));
            }
            // SAFETY: the caller keeps it open during the call.
            Ok(Ring::map(unsafe { BorrowedFd::borrow_raw(descriptor) }, record_bytes)?)
        };
        self.house.ledger.write_to(map(requests, RECORD_BYTES.0)?, map(batches, RECORD_BYTES.1)?);
        Ok(())
    }

    fn written(&self) -> (u64, u64) {
        self.house.ledger.written()
    }

    fn set_now(&self, now: i64) -> PyResult<()> {
        let manual = self.manual.as_ref().ok_or_else(|| PyValueError::new_err("this kernel goes by the real clock"))?;
        manual.store(now, Ordering::Release);
        Ok(())
    }

    #[pyo3(signature = (descriptor, *, is_unix, methods, dialogues, header_pattern, window))]
    fn start_server(
        &self,
        descriptor: i32,
        is_unix: bool,
        methods: Vec<String>,
        dialogues: Vec<String>,
        header_pattern: &str,
        window: (usize, usize, usize),
    ) -> PyResult<Server> {
        // First, so that it is closed whatever happens. SAFETY: the caller gives it away.
        let listener = unsafe { grpc::Listener::from_descriptor(descriptor, is_unix) };
        let options = grpc::Options {
            methods: methods.into_iter().collect(),
            dialogues: dialogues.into_iter().collect(),
            forwarding: grpc::Forwarding::new(header_pattern).map_err(PyValueError::new_err)?,
            window: grpc::StreamWindow { requests: window.0, unsent: window.1, flood: window.2 },
        };
        let (house, routes, regions) = (Arc::clone(&self.house), Arc::clone(&self.routes), Arc::clone(&self.regions));
        Ok(Server::new(grpc::Server::start(listener, house, routes, regions, options)?))
    }

    /// End the threads. Whoever waits for news is told that there will be none.
    fn close(&self, py: Python<'_>) {
        let expiring = self.expiring.lock().take();
        py.detach(|| {
            self.house.expiry.close();
            if let Some(thread) = expiring {
                let _ = thread.join();
            }
            self.house.ledger.close();
            self.house.news.close();
        });
    }
}

/// Whether the native transport understands a pattern for headers; the reason if it does not.
#[pyfunction]
pub fn check_pattern(pattern: &str) -> Option<String> {
    grpc::Forwarding::new(pattern).err()
}
