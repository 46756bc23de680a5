//! The steps of scenarios that are still to come. Nothing waits for them: whoever is about to look
//! at the emulated Azure first lets happen what is due, so that a test's own clock is all it takes.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{Directive, Scenario};
use crate::{error::EmulatorError, world::World};

/// Steps to come, the earliest first; among equals the one written first.
#[derive(Debug, Default)]
pub(crate) struct Script(Mutex<Vec<Pending>>);

#[derive(Clone, Debug)]
struct Pending {
    due: u64,
    directive: Directive,
    text: String,
}

impl Script {
    /// Adds a scenario that starts now.
    pub(crate) fn add(&self, scenario: &Scenario, now: u64) -> Result<(), EmulatorError> {
        scenario.check()?;
        let mut pending = self.pending();
        pending.extend(scenario.steps.iter().map(|step| Pending {
            due: now.saturating_add(step.after.as_secs()),
            directive: step.directive.clone(),
            text: step.text.clone(),
        }));
        pending.sort_by_key(|step| step.due);
        Ok(())
    }

    /// Lets happen what is due. A step that moves the clock makes others due.
    pub(crate) fn play(&self, world: &World) {
        let mut pending = self.pending();
        while pending
            .first()
            .is_some_and(|step| step.due <= world.clock.epoch())
        {
            let step = pending.remove(0);
            tracing::info!(step = step.text, "scenario");
            if let Err(error) = step.directive.apply(world, step.due) {
                tracing::warn!(step = step.text, %error, "a step of the scenario failed");
            }
        }
    }

    /// The steps to come and how many seconds they are away.
    pub(crate) fn list(&self, now: u64) -> Vec<(u64, String)> {
        self.pending()
            .iter()
            .map(|step| (step.due.saturating_sub(now), step.text.clone()))
            .collect()
    }

    /// Forgets the steps to come.
    pub(crate) fn clear(&self) {
        self.pending().clear();
    }

    fn pending(&self) -> MutexGuard<'_, Vec<Pending>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
