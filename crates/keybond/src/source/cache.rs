//! What is known about the metadata service from earlier probes.
//!
//! 1. That a version is there is believed for long: services do not go away. That none is there is believed
//!    briefly, for networks come up late. What was not certain is not remembered at all.
//! 2. Probes with the kill switch on and off see different things and are remembered apart, so that neither has
//!    to be forgotten when the switch is moved.
//! 3. Concurrent callers share one probe.

use std::{sync::Arc, time::Duration};

use arc_swap::ArcSwapOption;
use tokio::time::Instant;

use super::{Source, SourceReport, find};
use crate::{client::Shared, error::Error, http::Deadline, single_flight::SingleFlight};

/// How long it is believed that a metadata service is there.
const PRESENT: Duration = Duration::from_secs(60 * 60);

/// How long it is believed that none is.
const ABSENT: Duration = Duration::from_secs(30);

/// Earlier probes, with the kill switch off and on.
#[derive(Default)]
pub(crate) struct SourceCache {
    slots: [Slot; 2],
}

struct Slot {
    known: ArcSwapOption<(SourceReport, Instant)>,
    flight: SingleFlight<SourceReport>,
}

impl Default for Slot {
    fn default() -> Self {
        Self {
            known: ArcSwapOption::empty(),
            flight: SingleFlight::new(),
        }
    }
}

impl Slot {
    fn usable(&self, now: Instant) -> Option<SourceReport> {
        let known = self.known.load();
        let (report, until) = &**known.as_ref()?;
        (now < *until).then(|| report.clone())
    }

    fn put(&self, report: &SourceReport, now: Instant) {
        if let Some(life) = life(report) {
            self.known
                .store(Some(Arc::new((report.clone(), now + life))));
        }
    }
}

/// How long a report is believed; `None` if it is not certain.
fn life(report: &SourceReport) -> Option<Duration> {
    match (report.certain, report.source) {
        (false, _) => None,
        (true, Source::None) => Some(ABSENT),
        (true, _) => Some(PRESENT),
    }
}

/// The source that is here, from an earlier probe if there is one.
pub(crate) async fn known(shared: &Arc<Shared>) -> Result<SourceReport, Error> {
    let around = &shared.surroundings;
    let switched = around.switch.thrown(&*shared.environment).is_some();
    let slot = &around.sources.slots[usize::from(switched)];
    // A source that the environment names is found without asking anybody.
    if shared.detected().is_none()
        && let Some(report) = slot.usable(Instant::now())
    {
        return Ok(report);
    }
    let start = || {
        let shared = Arc::clone(shared);
        async move {
            let mut way = shared.acquisition()?;
            way.deadline = Deadline::after(shared.probe_budget);
            let report = find(&shared, &way).await?;
            if shared.detected().is_none() {
                let slot = &shared.surroundings.sources.slots[usize::from(switched)];
                slot.put(&report, Instant::now());
            }
            Ok(report)
        }
    };
    slot.flight.join(start).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn presence_is_believed_for_long_absence_briefly_doubt_never() {
        let report = |source, certain| SourceReport {
            source,
            certain,
            endpoint: String::new(),
            findings: Vec::new(),
        };
        assert_eq!(life(&report(Source::ImdsV2, true)), Some(PRESENT));
        assert_eq!(life(&report(Source::ImdsV1, true)), Some(PRESENT));
        assert_eq!(life(&report(Source::None, true)), Some(ABSENT));
        assert_eq!(life(&report(Source::None, false)), None);
        assert_eq!(life(&report(Source::ImdsV1, false)), None);

        let slot = Slot::default();
        let now = Instant::now();
        slot.put(&report(Source::None, true), now);
        assert!(
            slot.usable(now + ABSENT - Duration::from_millis(1))
                .is_some()
        );
        assert!(slot.usable(now + ABSENT).is_none());
        slot.put(&report(Source::None, false), now + ABSENT);
        assert!(slot.usable(now + ABSENT).is_none());
    }
}
