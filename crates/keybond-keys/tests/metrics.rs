//! The metrics that operators alert on: names, labels and values.
#![allow(clippy::unwrap_used, missing_docs)]
#![forbid(unsafe_code)]

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, OnceLock},
    time::Duration,
};

use keybond_keys::{KeyProvider, Reason, StoreId};
use keybond_testkit::stores::{Op, ScriptedStore};
use metrics::{
    Counter, CounterFn, Gauge, GaugeFn, Histogram, HistogramFn, Key, KeyName, Metadata, Recorder,
    SharedString, Unit,
};

/// The last value of each series; counters and histograms count.
static SEEN: Mutex<BTreeMap<String, f64>> = Mutex::new(BTreeMap::new());

struct Seen;

struct Series(String);

impl Series {
    fn new(key: &Key) -> Arc<Self> {
        let mut labels: Vec<_> = key
            .labels()
            .map(|label| format!("{}={}", label.key(), label.value()))
            .collect();
        labels.sort();
        Arc::new(Self(format!("{}{{{}}}", key.name(), labels.join(","))))
    }

    fn change(&self, change: impl FnOnce(&mut f64)) {
        change(SEEN.lock().unwrap().entry(self.0.clone()).or_default());
    }
}

impl CounterFn for Series {
    fn increment(&self, by: u64) {
        self.change(|value| *value += by as f64);
    }

    fn absolute(&self, to: u64) {
        self.change(|value| *value = to as f64);
    }
}

impl GaugeFn for Series {
    fn increment(&self, by: f64) {
        self.change(|value| *value += by);
    }

    fn decrement(&self, by: f64) {
        self.change(|value| *value -= by);
    }

    fn set(&self, to: f64) {
        self.change(|value| *value = to);
    }
}

impl HistogramFn for Series {
    fn record(&self, _: f64) {
        self.change(|value| *value += 1.0);
    }
}

impl Recorder for Seen {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        Counter::from_arc(Series::new(key))
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::from_arc(Series::new(key))
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::from_arc(Series::new(key))
    }
}

#[tokio::test]
async fn a_fallback_and_its_upgrade_show_in_the_metrics() {
    static INSTALLED: OnceLock<()> = OnceLock::new();
    INSTALLED.get_or_init(|| metrics::set_global_recorder(Seen).unwrap());
    let tpm = ScriptedStore::new(StoreId::Tpm2);
    let memory = ScriptedStore::new(StoreId::Memory);
    tpm.refuse(Reason::Busy);
    let provider = KeyProvider::builder()
        .store(tpm.clone())
        .store(memory)
        .retry_budget(Duration::ZERO)
        .reconsider_after(Duration::ZERO)
        .build();
    provider.get_or_create_key().await.unwrap();
    let value = |series: &str| SEEN.lock().unwrap().get(series).copied().unwrap_or(0.0);
    for (series, expected) in [
        ("keybond_key_events_total{event=created,store=memory}", 1.0),
        (
            "keybond_key_events_total{event=provisional,store=memory}",
            1.0,
        ),
        ("keybond_key_events_total{event=refused,store=tpm2}", 1.0),
        ("keybond_key_refusals_total{reason=busy,store=tpm2}", 1.0),
        ("keybond_key_decision_seconds{store=memory}", 1.0),
        ("keybond_key_strength{}", 1.0),
        ("keybond_key_provisional{}", 1.0),
    ] {
        assert_eq!(
            value(series),
            expected,
            "{series} in {:?}",
            SEEN.lock().unwrap()
        );
    }

    // Asked again, it is still busy: when it is asked once more, that answer was dealt with.
    let asked = tpm.calls(Op::Open);
    while tpm.calls(Op::Open) < asked + 2 {
        provider.cached().unwrap();
        tokio::task::yield_now().await;
    }
    assert_eq!(value("keybond_key_provisional{}"), 1.0);

    tpm.heal_all();
    provider
        .get_key_of_strength(keybond_keys::Strength::Hardware)
        .await
        .unwrap();
    for (series, expected) in [
        ("keybond_key_events_total{event=upgraded,store=tpm2}", 1.0),
        ("keybond_key_strength{}", 2.0),
        ("keybond_key_provisional{}", 0.0),
    ] {
        assert_eq!(
            value(series),
            expected,
            "{series} in {:?}",
            SEEN.lock().unwrap()
        );
    }

    // Another process' provider, whose stronger store turns out to be gone for good.
    tpm.refuse(Reason::Busy);
    let provider = KeyProvider::builder()
        .store(tpm.clone())
        .store(ScriptedStore::new(StoreId::Memory))
        .retry_budget(Duration::ZERO)
        .reconsider_after(Duration::ZERO)
        .build();
    provider.get_or_create_key().await.unwrap();
    assert_eq!(value("keybond_key_provisional{}"), 1.0);
    tpm.refuse(Reason::NotPresent);
    let settled = async {
        while value("keybond_key_provisional{}") != 0.0 {
            provider.cached().unwrap();
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), settled)
        .await
        .unwrap();
    assert_eq!(value("keybond_key_strength{}"), 1.0);
}
