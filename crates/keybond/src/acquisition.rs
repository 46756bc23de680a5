//! One way through the legs: its correlation id, its deadline, and who is told about it.

use std::{sync::Arc, time::Instant};

use crate::{
    error::Error,
    http::Deadline,
    leg::{self, Done, Leg, OnLeg},
    telemetry::Tally,
};

/// What all legs of one way share.
#[derive(Clone)]
pub(crate) struct Acquisition {
    /// Sent along with every request, so that the services' logs can be matched.
    pub(crate) id: Arc<str>,
    pub(crate) deadline: Deadline,
    pub(crate) on_leg: Option<OnLeg>,
    pub(crate) tally: Arc<Tally>,
}

impl Acquisition {
    pub(crate) fn new(id: Arc<str>, deadline: Deadline, on_leg: Option<OnLeg>) -> Self {
        Self {
            id,
            deadline,
            on_leg,
            tally: Arc::new(Tally::new(Instant::now())),
        }
    }

    /// Runs a leg and reports how it ended.
    pub(crate) async fn leg<T>(
        &self,
        leg: Leg,
        work: impl Future<Output = Result<Done<T>, Error>>,
    ) -> Result<T, Error> {
        let ended = leg::run(leg, &self.id, self.on_leg.as_ref(), work).await;
        self.tally.leg(ended.is_ok());
        ended
    }
}
