//! Every metric, once: recorders are told of them from here, and the page of metrics is written from here.

use std::fmt::{self, Write as _};

use metrics::Unit;

pub(super) const MSI_COUNTER: &str = "MsalMsiCounter";
pub(super) const WAY_SECONDS: &str = "keybond_acquisition_seconds";
pub(super) const LEG_SECONDS: &str = "keybond_leg_seconds";
pub(super) const CERTIFICATE_REMAINING: &str = "keybond_certificate_remaining_seconds";
pub(super) const CERTIFICATE_EXPIRES: &str = "keybond_certificate_expires_seconds";
pub(super) const TOKEN_REMAINING: &str = "keybond_token_remaining_seconds";
pub(super) const TOKEN_EXPIRES: &str = "keybond_token_expires_seconds";
pub(super) const NEW_CERTIFICATES: &str = "keybond_new_certificates_total";
pub(super) const REMEDIES: &str = "keybond_remedies_total";
pub(super) const SHARED_TOKENS: &str = "keybond_shared_tokens_total";
pub(super) const DOWNGRADES: &str = "keybond_downgrades_total";

/// What kind of metric it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum MetricKind {
    /// It only grows.
    Counter,
    /// It goes up and down.
    Gauge,
    /// A distribution.
    Histogram,
}

impl fmt::Display for MetricKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        })
    }
}

/// One metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Metric {
    /// Its name.
    pub name: &'static str,
    /// Its kind.
    pub kind: MetricKind,
    /// Its labels.
    pub labels: &'static [&'static str],
    /// What it says, and its unit.
    pub meaning: &'static str,
}

/// Every metric of keybond, the key layer's among them.
pub const fn metrics_catalogue() -> &'static [Metric] {
    &TABLE
}

/// Tells the installed recorder the kind and meaning of every metric, as exporters show them.
pub fn describe_metrics() {
    for metric in metrics_catalogue() {
        match metric.kind {
            MetricKind::Counter => metrics::describe_counter!(metric.name, metric.meaning),
            MetricKind::Gauge if metric.name.ends_with("_seconds") => {
                metrics::describe_gauge!(metric.name, Unit::Seconds, metric.meaning);
            }
            MetricKind::Gauge => metrics::describe_gauge!(metric.name, metric.meaning),
            MetricKind::Histogram => {
                metrics::describe_histogram!(metric.name, Unit::Seconds, metric.meaning);
            }
        }
    }
}

/// The table of metrics in Markdown, as it stands in `docs/telemetry.md`.
pub fn markdown() -> String {
    let mut table = String::from("| metric | kind | labels | meaning |\n|---|---|---|---|\n");
    for metric in metrics_catalogue() {
        let labels: Vec<_> = metric
            .labels
            .iter()
            .map(|label| format!("`{label}`"))
            .collect();
        // Writing to a string cannot fail.
        let _ = writeln!(
            table,
            "| `{}` | {} | {} | {} |",
            metric.name,
            metric.kind,
            labels.join(", "),
            metric.meaning
        );
    }
    table
}

const fn metric(
    name: &'static str,
    kind: MetricKind,
    labels: &'static [&'static str],
    meaning: &'static str,
) -> Metric {
    Metric {
        name,
        kind,
        labels,
        meaning,
    }
}

const TABLE: [Metric; 17] = {
    use MetricKind::{Counter, Gauge, Histogram};
    [
        metric(
            MSI_COUNTER,
            Counter,
            &[
                "MsiSource",
                "TokenType",
                "bypassCache",
                "KeyType",
                "CredentialOutcome",
                "ErrorCode",
                "MsalVersion",
                "Platform",
            ],
            "Ways to a token that went beyond the cache, by how they ended. One way may serve many callers.",
        ),
        metric(
            WAY_SECONDS,
            Histogram,
            &["token_type", "outcome"],
            "How long such a way took, retries included, in seconds.",
        ),
        metric(
            LEG_SECONDS,
            Histogram,
            &["leg", "outcome"],
            "How long a leg took, retries included, in seconds; `outcome` is `ok` or the code of the error.",
        ),
        metric(
            CERTIFICATE_REMAINING,
            Gauge,
            &["client_id"],
            "How long the newest certificate still lives, in seconds; negative once it is over.",
        ),
        metric(
            CERTIFICATE_EXPIRES,
            Gauge,
            &["client_id"],
            "When it ends, in seconds since 1970.",
        ),
        metric(
            TOKEN_REMAINING,
            Gauge,
            &["identity", "resource", "token_type"],
            "How long the newest token still lives, in seconds; negative once it is over.",
        ),
        metric(
            TOKEN_EXPIRES,
            Gauge,
            &["identity", "resource", "token_type"],
            "When it ends, in seconds since 1970.",
        ),
        metric(
            NEW_CERTIFICATES,
            Counter,
            &["cause", "outcome"],
            "Certificates asked for because one was refused (`rejected`), its key was dead (`key_replaced`) or a resource demanded claims (`claims`); `outcome` is `issued` or `not_issued`.",
        ),
        metric(
            REMEDIES,
            Counter,
            &["remedy", "outcome"],
            "What was done about refusals of the token service: `new_certificate` (`cured`, `failed`) and `prove_key` (`alive`, `replaced`, `unproven`).",
        ),
        metric(
            SHARED_TOKENS,
            Counter,
            &["outcome"],
            "Bound tokens in files, by what was done: `adopted` from another process without asking, `kept` for others, `set_aside` because the file made no sense, `trouble` where the files could not be used.",
        ),
        metric(
            DOWNGRADES,
            Counter,
            &["reason"],
            "Tokens bound to nothing that were given because a caller's policy allows them, by the code of the reason.",
        ),
        metric(
            "keybond_key_events_total",
            Counter,
            &["event", "store"],
            "What happened to keys: created, opened, provisional, upgraded, rotated, replaced, refused.",
        ),
        metric(
            "keybond_key_refusals_total",
            Counter,
            &["store", "reason"],
            "Stores that gave no key, by their reason.",
        ),
        metric(
            "keybond_key_decision_seconds",
            Histogram,
            &["store"],
            "How long the choice of a key took, by the store that gave it, in seconds.",
        ),
        metric(
            "keybond_key_strength",
            Gauge,
            &[],
            "What the key in use was shown to be: 1 software, 2 hardware, 3 KeyGuard.",
        ),
        metric(
            "keybond_key_provisional",
            Gauge,
            &[],
            "1 while a weaker key stands in for a store that refused for a reason that may pass.",
        ),
        metric(
            "keybond_tpm_queue_depth",
            Gauge,
            &[],
            "How many calls wait for the TPM.",
        ),
    ]
};
