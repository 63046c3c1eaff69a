//! Which queue a request goes to: (model, version or default) → queue. Published from Python, read without waiting.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::RwLock;

use crate::error::{Error, Result};
use crate::queue::Queue;

/// The versions of a model; None for one that exists and is not ready.
pub type Versions = BTreeMap<i64, Option<Arc<Queue>>>;

/// The routes of one engine.
#[derive(Default)]
pub struct Routes {
    models: RwLock<HashMap<String, Versions>>,
    is_closed: AtomicBool,
}

impl Routes {
    /// Replace what is known of a model; None forgets it.
    pub fn publish(&self, model: String, versions: Option<Versions>) {
        let mut models = self.models.write();
        match versions {
            Some(versions) => models.insert(model, versions),
            None => models.remove(&model),
        };
    }

    /// Refuse every request from now on.
    pub fn close(&self) {
        self.is_closed.store(true, Ordering::Release);
    }

    /// Whether requests are taken at all.
    pub fn check_open(&self) -> Result<()> {
        if self.is_closed.load(Ordering::Acquire) { Err(Error::draining()) } else { Ok(()) }
    }

    /// The queue of a version; 0 means the highest that is ready.
    pub fn resolve(&self, model: &str, version: i64) -> Result<Arc<Queue>> {
        let models = self.models.read();
        let versions = models.get(model).ok_or_else(|| Error::model_not_found(model, None, false))?;
        if version != 0 {
            let known = versions.get(&version).ok_or_else(|| Error::model_not_found(model, Some(version), true))?;
            return known.clone().ok_or_else(|| Error::model_not_ready(model, version));
        }
        let best = versions.values().rev().find_map(Option::as_ref);
        best.cloned().ok_or_else(|| Error::model_not_found(model, None, true))
    }
}
