//! Queues.

use std::cell::{Cell, RefCell};
use std::sync::Arc;

use bytes::Bytes;
use headrace_core::codec::Input;
use headrace_core::entry::Sink;
use headrace_core::error::Code;
use headrace_core::ledger::Outcome;
use headrace_core::queue;
use pyo3::buffer::PyBuffer;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};

use crate::arguments::{GivenLimits, GivenRequest};
use crate::batch::{Batch, Parked, slice_of};
use crate::{outside, raised};

thread_local! {
    /// The answers of the thread's last batch, until its next turn or until the next batch is away: see `Batch::reply`.
    static PARKED: RefCell<Option<Parked>> = const { RefCell::new(None) };
    /// When answers that were kept at this thread's last turn were sent, in ns; 0 where there were none.
    static SENT_LATE: Cell<i64> = const { Cell::new(0) };
}

/// Put answers aside. Those of the batch before go first.
pub fn park(py: Python<'_>, parked: Parked) {
    send_parked(py);
    PARKED.set(Some(parked));
}

/// Send what this thread has put aside.
pub fn send_parked(py: Python<'_>) {
    if let Some(parked) = PARKED.take() {
        SENT_LATE.set(outside(py, || parked.send()));
    }
}

/// See `Queue::turn`.
type GivenTurn<'py> = (Bound<'py, PyBytes>, bool, i64, i64, i64);
/// Name, datatype, shape, bytes.
type GivenInput = (String, String, Vec<i64>, PyBuffer<u8>);

#[pyclass(frozen, module = "headrace_kernels")]
pub struct Queue {
    pub core: Arc<queue::Queue>,
}

#[pymethods]
impl Queue {
    #[getter]
    fn id(&self) -> u64 {
        self.core.id
    }

    /// Admit a request of this process; its number. Whoever could answer it needs the interpreter to find its entry in
    /// `registry`, and we hold the interpreter until it is there.
    fn push(
        &self,
        request: GivenRequest,
        inputs: Vec<GivenInput>,
        registry: &Bound<'_, PyDict>,
        entry: Bound<'_, PyAny>,
    ) -> PyResult<u64> {
        let mut request: Box<headrace_core::codec::Request> = Box::new(request.into());
        for (name, datatype, shape, data) in inputs {
            let data = Bytes::copy_from_slice(slice_of(&data)?);
            request.inputs.push(Input { name: name.into(), datatype: datatype.into(), shape, data });
        }
        let ticket = self.core.push(request, Sink::Local).map_err(|rejected| raised(&rejected.error))?;
        registry.set_item(ticket.number, entry)?;
        Ok(ticket.number)
    }

    /// Let an idle instance look at what was pushed.
    fn wake(&self) {
        self.core.wake();
    }

    /// Nobody wants the answer of this local entry any more.
    fn cancel(&self, py: Python<'_>, number: u64) {
        py.detach(|| self.core.cancel_local(number));
    }

    /// Settle a local entry whose answer was handed over; False if it is settled. It takes less than letting go of the interpreter,
    /// which another thread would then have.
    fn settle(&self, number: u64, outcome: u8, code: u8, scattered: i64, sent: i64, bytes_out: u64) -> bool {
        let Some(mut settlement) = self.core.take_handed(number) else {
            return false;
        };
        settlement.scattered(scattered);
        settlement.end(Outcome::from_number(outcome), Code::from_number(code), sent, bytes_out);
        true
    }

    /// Wait for something to plan: the view, whether nobody else will come, when the first instance that runs is idle, when what this
    /// thread had parked was sent (0: there was nothing, or it is parked still), and when what it had kept at its last turn was.
    /// None: the queue is closed and empty.
    ///
    /// With `keeps`, it stays parked where there is something to plan already: see `Batch::away`. Who has waited for company, and may
    /// again, keeps nobody waiting for it.
    fn turn<'py>(&self, py: Python<'py>, until: Option<i64>, keeps: bool) -> Option<GivenTurn<'py>> {
        let parked = PARKED.take();
        let (turn, sent, parked) = outside(py, || {
            let mut sent = 0;
            if let Some(parked) = parked {
                let (instance, number) = parked.batch();
                if keeps
                    && until.is_none()
                    && let Some(turn) = self.core.turn_at_once(instance, number)
                {
                    return Some((turn, 0, Some(parked)));
                }
                sent = parked.send();
            }
            self.core.turn(until).map(|turn| (turn, sent, None))
        })?;
        PARKED.set(parked);
        Some((PyBytes::new(py, &turn.view), turn.is_last_call, turn.busy_until, sent, SENT_LATE.take()))
    }

    /// Carry out a plan and end the turn.
    #[allow(clippy::needless_pass_by_value)]
    fn take(&self, py: Python<'_>, take: Vec<u64>, drop: Vec<u64>, instance: u16, reason: u16, predicted: i64) -> Option<Batch> {
        let carry_out = || self.core.take(&take, &drop, instance, reason, predicted);
        // Whoever is dropped is answered, which may wait for a reader of the ledger, who needs the interpreter.
        let batch = if drop.is_empty() { carry_out() } else { outside(py, carry_out) };
        batch.map(Batch::new)
    }

    fn abandon_turn(&self) {
        self.core.abandon_turn();
    }

    fn set_limits(&self, limits: GivenLimits) {
        self.core.set_limits(limits.into());
    }

    fn depth(&self) -> (u64, u64, u64) {
        let depth = self.core.depth();
        (depth.requests, depth.rows, depth.nbytes)
    }

    /// How many wait, how many are not settled, how many batches run, whether it is closed.
    fn counts(&self) -> (u64, usize, usize, bool) {
        self.core.counts()
    }

    fn wait_settled(&self, py: Python<'_>, until: i64) -> bool {
        py.detach(|| self.core.wait_settled(until))
    }

    fn close(&self) {
        self.core.close();
    }

    fn abandon(&self, py: Python<'_>) {
        py.detach(|| self.core.abandon());
    }

    fn expire(&self, py: Python<'_>, now: i64) -> Option<i64> {
        py.detach(|| self.core.expire(now))
    }
}
