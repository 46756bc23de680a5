//! The metrics that operators alert on: names, labels and values, and that the page tells them all.
#![allow(clippy::unwrap_used)]

mod support;

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, UNIX_EPOCH},
};

use keybond::{MetricKind, metrics_catalogue, metrics_markdown, refresh_life};
use metrics::{
    Counter, CounterFn, Gauge, GaugeFn, Histogram, HistogramFn, Key, KeyName, Metadata, Recorder,
    SharedString, Unit,
};
use support::{Bench, CLIENT, NOW, RESOURCE, azure::Service, machine::Machine, server::Reply};

/// The last value of each series; counters and histograms count.
static SEEN: Mutex<BTreeMap<String, f64>> = Mutex::new(BTreeMap::new());
static DESCRIBED: Mutex<BTreeMap<String, MetricKind>> = Mutex::new(BTreeMap::new());

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

fn describe(name: KeyName, kind: MetricKind) {
    DESCRIBED.lock().unwrap().insert(name.as_str().into(), kind);
}

impl Recorder for Seen {
    fn describe_counter(&self, name: KeyName, _: Option<Unit>, _: SharedString) {
        describe(name, MetricKind::Counter);
    }

    fn describe_gauge(&self, name: KeyName, _: Option<Unit>, _: SharedString) {
        describe(name, MetricKind::Gauge);
    }

    fn describe_histogram(&self, name: KeyName, _: Option<Unit>, _: SharedString) {
        describe(name, MetricKind::Histogram);
    }

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

fn value(series: &str) -> f64 {
    SEEN.lock()
        .unwrap()
        .get(series)
        .copied()
        .unwrap_or(f64::NAN)
}

/// The published counter with what does not change here.
fn ways(token_type: &str, source: &str, key: &str, outcome: &str, code: &str) -> String {
    ways_bypassing(false, token_type, source, key, outcome, code)
}

fn ways_bypassing(
    bypass: bool,
    token_type: &str,
    source: &str,
    key: &str,
    outcome: &str,
    code: &str,
) -> String {
    format!(
        "MsalMsiCounter{{CredentialOutcome={outcome},ErrorCode={code},KeyType={key},MsalVersion=keybond-{},\
         MsiSource={source},Platform={},TokenType={token_type},bypassCache={bypass}}}",
        env!("CARGO_PKG_VERSION"),
        std::env::consts::OS
    )
}

/// One test, for the recorder is the process's.
#[tokio::test]
async fn a_way_and_its_failures_show_in_the_metrics() {
    metrics::set_global_recorder(Seen).unwrap();
    keybond::describe_metrics();
    for metric in metrics_catalogue() {
        assert_eq!(
            DESCRIBED.lock().unwrap().get(metric.name),
            Some(&metric.kind),
            "{}",
            metric.name
        );
    }

    let bench = Bench::new().await;
    let client = bench.client();
    client.token(RESOURCE).await.unwrap();
    client.token(RESOURCE).await.unwrap();
    assert_eq!(
        value(&ways("mtls_pop", "ImdsV2", "InMemory", "Success", "none")),
        1.0,
        "one way for two calls"
    );
    for leg in ["key", "metadata", "csr", "issue", "token"] {
        assert_eq!(
            value(&format!("keybond_leg_seconds{{leg={leg},outcome=ok}}")),
            1.0,
            "{leg}"
        );
    }
    assert_eq!(
        value("keybond_acquisition_seconds{outcome=ok,token_type=mtls_pop}"),
        1.0
    );

    let token = format!("{{identity=system-assigned,resource={RESOURCE},token_type=mtls_pop}}");
    let now = NOW.as_secs_f64();
    assert_eq!(
        value(&format!("keybond_token_remaining_seconds{token}")),
        86_399.0
    );
    assert_eq!(
        value(&format!("keybond_token_expires_seconds{token}")),
        now + 86_399.0
    );
    let certificate = format!("keybond_certificate_remaining_seconds{{client_id={CLIENT}}}");
    assert_eq!(value(&certificate), 10.0 * 86_400.0);
    refresh_life(UNIX_EPOCH + NOW + Duration::from_secs(11 * 86_400));
    assert_eq!(value(&certificate), -86_400.0);
    assert_eq!(
        value(&format!("keybond_token_remaining_seconds{token}")),
        86_399.0 - 11.0 * 86_400.0
    );

    // The identity is not assigned; then the token service refuses.
    bench
        .azure
        .twist_one(Service::Metadata, |_| Reply::status(400, "{}"));
    bench.client().token(RESOURCE).await.unwrap_err();
    let code = "managed_identity_request_failed";
    assert_eq!(
        value(&ways("mtls_pop", "ImdsV2", "InMemory", "Not found", code)),
        1.0
    );
    assert_eq!(
        value(&format!(
            "keybond_leg_seconds{{leg=metadata,outcome={code}}}"
        )),
        1.0
    );
    bench.azure.twist_one(Service::Token, |_| {
        Reply::status(400, r#"{"error":"invalid_request"}"#)
    });
    bench.client().token(RESOURCE).await.unwrap_err();
    let code = "token_request_refused";
    assert_eq!(
        value(&ways("mtls_pop", "ImdsV2", "InMemory", "Failed", code)),
        1.0
    );

    // The certificate was revoked once: a new one cures it, and that shows.
    let revoked = AtomicBool::new(false);
    bench.azure.twist_one(Service::Token, move |honest| {
        if revoked.swap(true, Ordering::SeqCst) {
            return honest;
        }
        let refusal = r#"{"error":"invalid_client","error_codes":[1000610]}"#;
        Reply::status(401, refusal)
    });
    bench.client().token(RESOURCE).await.unwrap();
    let cured = ways_bypassing(
        true,
        "mtls_pop",
        "ImdsV2",
        "InMemory",
        "Retry Succeeded",
        "none",
    );
    assert_eq!(value(&cured), 1.0);

    // Switched off: nothing was sent, and it is counted all the same.
    bench.azure.untwist();
    bench.env.set("MSAL_MI_DISABLE_IMDS_V2", "1");
    bench.client().token(RESOURCE).await.unwrap_err();
    let code = "mtls_pop_administratively_disabled";
    assert_eq!(
        value(&ways("mtls_pop", "ImdsV2", "InMemory", "Failed", code)),
        1.0
    );
    bench
        .env
        .set("IDENTITY_ENDPOINT", &format!("{}/msi", bench.azure.imds()));
    bench.env.set("IDENTITY_HEADER", "a secret");
    bench.azure.twist(|_, _, _| {
        Reply::json(
            &serde_json::json!({"access_token": "t", "expires_in": 3600, "token_type": "Bearer"}),
        )
    });
    bench
        .placeless()
        .build()
        .unwrap()
        .bearer_token(RESOURCE)
        .await
        .unwrap();
    assert_eq!(
        value(&ways("Bearer", "AppService", "none", "Success", "none")),
        1.0
    );

    // Two processes: one asks and keeps, the other finds.
    let machine = Machine::new().await;
    machine.token().await;
    machine.token().await;
    for outcome in ["kept", "adopted"] {
        let series = format!("keybond_shared_tokens_total{{outcome={outcome}}}");
        assert_eq!(value(&series), 1.0, "{outcome}");
    }
}

/// Every metric that any crate tells by a literal is in the table.
#[test]
fn the_table_knows_every_metric_of_the_sources() {
    let mut told = Vec::new();
    collect(
        Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap(),
        &mut told,
    );
    assert!(
        told.iter().any(|name| name == "keybond_key_strength"),
        "the search misses some"
    );
    for name in &told {
        let known = metrics_catalogue().iter().any(|metric| metric.name == name);
        assert!(known, "{name} is not in the table of metrics");
    }
}

/// The names that are written as literals in `counter!`, `gauge!` and `histogram!`.
fn collect(folder: &Path, told: &mut Vec<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            if path
                .file_name()
                .is_some_and(|name| name != "tests" && name != "target")
            {
                collect(&path, told);
            }
        } else if path.extension().is_some_and(|kind| kind == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            for kind in ["counter!(", "gauge!(", "histogram!("] {
                for call in text.split(kind).skip(1) {
                    if let Some((name, _)) = call
                        .trim_start()
                        .strip_prefix('"')
                        .and_then(|call| call.split_once('"'))
                    {
                        told.push(name.to_owned());
                    }
                }
            }
        }
    }
}

/// `KEYBOND_BLESS=1` writes the table into the page.
#[test]
fn the_page_holds_the_table() {
    const BEGIN: &str = "<!-- metrics: begin -->\n";
    const END: &str = "<!-- metrics: end -->\n";
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/telemetry.md");
    let found = fs::read_to_string(&page).unwrap();
    let (before, rest) = found.split_once(BEGIN).unwrap();
    let (_, after) = rest.split_once(END).unwrap();
    let expected = format!("{before}{BEGIN}{}{END}{after}", metrics_markdown());
    if std::env::var_os("KEYBOND_BLESS").is_some_and(|value| value == "1") {
        fs::write(&page, &expected).unwrap();
        return;
    }
    assert!(
        found == expected,
        "docs/telemetry.md is out of date; renew it with\n    \
         KEYBOND_BLESS=1 cargo test -p keybond --test metrics"
    );
}
