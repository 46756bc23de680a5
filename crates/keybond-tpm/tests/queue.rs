//! How many calls wait for the TPM: the metric that operators alert on.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

mod common;

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
        mpsc::channel,
    },
    thread,
    time::{Duration, Instant},
};

use common::{assert_signs, new_key, open};
use keybond_testkit::{Action, Shim, Swtpm};
use keybond_tpm::{Hash, Scheme};
use metrics::{Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit};

const PKCS1: Scheme = Scheme::Pkcs1(Hash::Sha256);

/// Keeps the one gauge.
struct OneGauge(Arc<AtomicU64>);

impl Recorder for OneGauge {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn register_counter(&self, _: &Key, _: &Metadata<'_>) -> Counter {
        Counter::noop()
    }
    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        assert_eq!(key.name(), "keybond_tpm_queue_depth");
        Gauge::from_arc(Arc::clone(&self.0))
    }
    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::noop()
    }
}

#[test]
fn those_who_wait_are_counted() {
    let gauge = Arc::new(AtomicU64::new(0));
    metrics::set_global_recorder(OneGauge(Arc::clone(&gauge))).unwrap();
    let shown = || f64::from_bits(gauge.load(Ordering::SeqCst));
    let swtpm = Swtpm::start().unwrap();
    // The TPM does not answer before it is let go.
    let (let_go, held) = channel::<()>();
    let held = Mutex::new(held);
    let (came, first) = channel();
    let shim = Shim::start(&swtpm.socket(), move |command| {
        if command[6..10] == [0, 0, 1, 0x5d] {
            let _ = came.send(());
            // Err means that nobody holds it any more.
            let _ = held.lock().unwrap().recv();
        }
        Action::Forward
    })
    .unwrap();
    let key = new_key(&open(&shim.address()));
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| assert_signs(&key, PKCS1));
        }
        // One is with the TPM, so no more than three can ever wait.
        first.recv_timeout(Duration::from_secs(20)).unwrap();
        let end = Instant::now() + Duration::from_secs(20);
        while shown() < 3.0 {
            assert!(Instant::now() < end, "{} wait", shown());
            thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(key.tpm().queue_depth(), 3);
        drop(let_go);
    });
    assert_eq!((shown(), key.tpm().queue_depth()), (0.0, 0));
}
