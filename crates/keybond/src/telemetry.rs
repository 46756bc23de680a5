//! Metrics, told to whichever recorder the program installs for the `metrics` facade; to nobody if it
//! installs none. Labels hold names, codes, ids of identities and resources: no secret, nothing of a request.

mod life;
mod table;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use keybond_keys::Strength;

pub use self::{
    life::refresh_life,
    table::{
        Metric, MetricKind, describe_metrics, markdown as metrics_markdown, metrics_catalogue,
    },
};
use crate::{
    bearer::BearerToken,
    client::Shared,
    credential::Binding,
    error::Error,
    source::Source,
    token::{AccessToken, TokenType},
};

/// What happened on one way, as far as the metrics want to know.
#[derive(Debug)]
pub(crate) struct Tally {
    started: Instant,
    failed_legs: AtomicU32,
    bypassed: AtomicBool,
}

impl Tally {
    pub(crate) fn new(started: Instant) -> Self {
        Self {
            started,
            failed_legs: AtomicU32::new(0),
            bypassed: AtomicBool::new(false),
        }
    }

    /// The metadata service is asked for a certificate that it does not keep already.
    pub(crate) fn bypass_cache(&self) {
        self.bypassed.store(true, Ordering::Relaxed);
    }

    pub(crate) fn leg(&self, succeeded: bool) {
        if !succeeded {
            self.failed_legs.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// How a way to a token ended. All but `Failed` are the published values.
fn outcome(tally: &Tally, error: Option<&Error>) -> &'static str {
    let failed = tally.failed_legs.load(Ordering::Relaxed);
    match error {
        None if failed == 0 => "Success",
        None => "Retry Succeeded",
        Some(_) if failed > 1 => "Retry Failed",
        Some(error) if is_not_found(error) => "Not found",
        Some(_) => "Failed",
    }
}

/// Whether there is no such credential here: no source, or none for this identity.
fn is_not_found(error: &Error) -> bool {
    match error.code() {
        "managed_identity_all_sources_unavailable" | "mtls_pop_token_not_supported_in_imds_v1" => {
            true
        }
        "managed_identity_unreachable_network" => !error.retryable(),
        "managed_identity_request_failed" => matches!(error.http_status(), Some(400 | 404)),
        _ => false,
    }
}

/// A leg ended, with the code of its error.
pub(crate) fn leg_ended(leg: crate::leg::Leg, elapsed: Duration, code: Option<&'static str>) {
    let labels = [("leg", leg.name()), ("outcome", code.unwrap_or("ok"))];
    metrics::histogram!(table::LEG_SECONDS, &labels).record(elapsed);
}

/// A certificate was issued and found good.
pub(crate) fn certified(shared: &Shared, binding: &Binding) {
    life::certificate(binding.client_id(), binding.not_after(), shared.clock.now());
}

/// A way to a bound token ended.
pub(crate) fn bound_ended(shared: &Shared, tally: &Tally, ended: &Result<Arc<AccessToken>, Error>) {
    // The key of the token, else the one that would have been used.
    let strength = match ended {
        Ok(token) => token.strength(),
        Err(_) => shared.keys.cached().map(|key| key.strength()),
    };
    let key_type = match strength {
        None => "none",
        Some(Strength::KeyGuard) => "KeyGuard",
        Some(Strength::Hardware) => "Hardware",
        Some(_) => "InMemory",
    };
    let source = match ended {
        Ok(_) => Source::ImdsV2,
        Err(_) => shared
            .detected()
            .map_or(Source::ImdsV2, |(source, _)| source),
    };
    count(
        tally,
        source,
        TokenType::MtlsPop,
        key_type,
        ended.as_ref().err(),
    );
    if let Ok(token) = ended {
        life::token(
            &shared.imds.identity,
            TokenType::MtlsPop,
            token.resource(),
            token.expires_on(),
            shared.clock.now(),
        );
    }
}

/// A certificate was asked for past every cache.
pub(crate) fn new_certificate(cause: &'static str, issued: bool) {
    let outcome = if issued { "issued" } else { "not_issued" };
    metrics::counter!(table::NEW_CERTIFICATES, "cause" => cause, "outcome" => outcome).increment(1);
}

/// Something was done about a refusal of the token service.
pub(crate) fn remedy(remedy: &'static str, outcome: &'static str) {
    metrics::counter!(table::REMEDIES, "remedy" => remedy, "outcome" => outcome).increment(1);
}

/// What became of a token in files, or of the files.
pub(crate) fn shared_token(outcome: &'static str) {
    metrics::counter!(table::SHARED_TOKENS, "outcome" => outcome).increment(1);
}

/// A token that is bound to nothing was given in the place of a bound one.
pub(crate) fn downgraded(reason: &Error) {
    metrics::counter!(table::DOWNGRADES, "reason" => reason.code()).increment(1);
}

/// A way to a bearer token ended.
pub(crate) fn bearer_ended(
    shared: &Shared,
    tally: &Tally,
    ended: &Result<Arc<BearerToken>, Error>,
) {
    let source = match ended {
        Ok(token) => token.source(),
        Err(_) => shared
            .detected()
            .map_or(Source::ImdsV1, |(source, _)| source),
    };
    count(
        tally,
        source,
        TokenType::Bearer,
        "none",
        ended.as_ref().err(),
    );
    if let Ok(token) = ended {
        life::token(
            &shared.imds.identity,
            TokenType::Bearer,
            token.resource(),
            token.expires_on(),
            shared.clock.now(),
        );
    }
}

fn count(
    tally: &Tally,
    source: Source,
    token_type: TokenType,
    key_type: &'static str,
    error: Option<&Error>,
) {
    let code = error.map_or("none", Error::code);
    let bypassed = tally.bypassed.load(Ordering::Relaxed);
    let labels = [
        ("MsiSource", published(source)),
        ("TokenType", token_type.name()),
        ("bypassCache", if bypassed { "true" } else { "false" }),
        ("KeyType", key_type),
        ("CredentialOutcome", outcome(tally, error)),
        ("ErrorCode", code),
        (
            "MsalVersion",
            concat!("keybond-", env!("CARGO_PKG_VERSION")),
        ),
        ("Platform", std::env::consts::OS),
    ];
    metrics::counter!(table::MSI_COUNTER, &labels).increment(1);
    let labels = [
        ("token_type", token_type.name()),
        ("outcome", if error.is_none() { "ok" } else { code }),
    ];
    metrics::histogram!(table::WAY_SECONDS, &labels).record(tally.started.elapsed());
}

/// The sources as MSAL names them.
fn published(source: Source) -> &'static str {
    match source {
        Source::ImdsV2 => "ImdsV2",
        Source::ImdsV1 => "Imds",
        Source::AzureArc => "AzureArc",
        Source::AppService => "AppService",
        Source::ServiceFabric => "ServiceFabric",
        Source::MachineLearning => "MachineLearning",
        Source::CloudShell => "CloudShell",
        Source::None => "None",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{error::At, leg::Leg};

    fn refused(status: u16) -> Error {
        Error::Refused {
            at: At::new(Leg::Metadata, &"id".into()).with_status(status),
            error: "invalid_request".into(),
            description: String::new(),
            error_codes: Vec::new(),
            new_certificates: 0,
            retry_after: None,
        }
    }

    #[test]
    fn outcomes_are_the_published_ones() {
        let tally = |legs: &[bool]| {
            let tally = Tally::new(Instant::now());
            legs.iter().for_each(|good| tally.leg(*good));
            tally
        };
        let busy = refused(503);
        let absent = refused(400);
        for (legs, error, expected) in [
            (&[true, true][..], None, "Success"),
            (&[true, false, true, true], None, "Retry Succeeded"),
            (&[false, true, false], Some(&busy), "Retry Failed"),
            (&[false], Some(&absent), "Not found"),
            (&[false], Some(&busy), "Failed"),
            (&[], Some(&busy), "Failed"),
        ] {
            assert_eq!(outcome(&tally(legs), error), expected, "{legs:?}");
        }
    }
}
