//! The matrix: every leg × every fault × every phase of a client's life. In each cell
//!
//! 1. nobody waits beyond the deadline,
//! 2. the caller gets the error that this fault on this leg makes, or nothing at all where something usable is
//!    cached,
//! 3. no bearer token is asked for,
//! 4. and when the fault is over, everything is as it should be: no state is lost, none is bad.
//!
//! `cargo test -p keybond --test failure matrix -- --nocapture` prints it.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use keybond::{
    AttestationError, AttestationProvider, AttestationRequest, AttestationToken, ManagedIdentity,
    RemedyPolicy, tls::BoxFuture,
};
use serde_json::json;
use tokio::{sync::Semaphore, time::Instant};

use crate::support::{
    Bench, OTHER, RESOURCE,
    azure::Service,
    server::{Asked, Reply},
};

/// What one way may take; the default.
const DEADLINE: Duration = Duration::from_secs(100);

/// The longest pause after failures: then the next run in the background is due.
const LATER: Duration = Duration::from_secs(11 * 60);

const HOUR: Duration = Duration::from_secs(60 * 60);

const V1: &str = "/metadata/identity/oauth2/token";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leg {
    Metadata,
    Attestation,
    Issue,
    Token,
    Bearer,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    NotFound,
    Gone,
    Throttled,
    Trouble,
    Forbidden,
    Reset,
    Silence,
    Garbage,
    Redirect,
    Flood,
    Lie,
    /// The certificate is refused.
    Rejected,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Nothing is there.
    Cold,
    /// Token and certificate are fresh.
    Cached,
    /// The token is due.
    Refreshing,
    /// The certificate is due, and the token's time is over.
    Rotating,
}

const LEGS: [Leg; 5] = [
    Leg::Metadata,
    Leg::Attestation,
    Leg::Issue,
    Leg::Token,
    Leg::Bearer,
];

const FAULTS: [Fault; 12] = [
    Fault::NotFound,
    Fault::Gone,
    Fault::Throttled,
    Fault::Trouble,
    Fault::Forbidden,
    Fault::Reset,
    Fault::Silence,
    Fault::Garbage,
    Fault::Redirect,
    Fault::Flood,
    Fault::Lie,
    Fault::Rejected,
];

const PHASES: [Phase; 4] = [
    Phase::Cold,
    Phase::Cached,
    Phase::Refreshing,
    Phase::Rotating,
];

/// The error of a fault on a leg, for a caller who has nothing else; `None` if the leg cannot fail like that.
fn code(leg: Leg, fault: Fault) -> Option<&'static str> {
    use Fault as F;
    use Leg as L;
    Some(match (leg, fault) {
        // Attestation is somebody else's protocol: it answers, refuses, or does not answer.
        (L::Attestation, F::Forbidden | F::Trouble | F::Lie) => "attestation_failed",
        (L::Attestation, F::Silence) => "deadline_exceeded",
        (L::Attestation, _) => return None,
        (L::Token, F::Rejected) => "invalid_client",
        (_, F::Rejected) => return None,
        (L::Metadata, F::NotFound) => "mtls_pop_token_not_supported_in_imds_v1",
        (L::Token, F::Reset) => "service_unreachable",
        (L::Token, F::Silence) => "request_timeout",
        (_, F::Reset | F::Silence) => "managed_identity_unreachable_network",
        (L::Token, F::NotFound | F::Gone | F::Throttled | F::Trouble | F::Forbidden) => {
            "token_request_refused"
        }
        (_, F::NotFound | F::Gone | F::Throttled | F::Trouble | F::Forbidden) => {
            "managed_identity_request_failed"
        }
        (_, F::Garbage) => "managed_identity_response_parse_failure",
        (_, F::Redirect) => "redirect_refused",
        (_, F::Flood) => "response_too_large",
        (L::Metadata, F::Lie) => "server_header_invalid",
        (L::Issue, F::Lie) => "identity_mismatch",
        (L::Token | L::Bearer, F::Lie) => "token_type_mismatch",
    })
}

/// What a caller sees: nothing of it, or the error.
fn expected(leg: Leg, fault: Fault, phase: Phase) -> Option<Option<&'static str>> {
    let code = code(leg, fault)?;
    match (leg, phase) {
        // A bearer token has no certificate.
        (Leg::Bearer, Phase::Rotating) => None,
        (_, Phase::Cold) => Some(Some(code)),
        (_, Phase::Cached | Phase::Refreshing) => Some(None),
        // The certificate in use serves while the next cannot be had; without a token there is nothing to use.
        (Leg::Token, Phase::Rotating) => Some(Some(code)),
        (_, Phase::Rotating) => Some(None),
    }
}

/// Whether anybody asks on this leg in this phase.
fn is_asked(leg: Leg, phase: Phase) -> bool {
    match phase {
        Phase::Cold => true,
        Phase::Cached => false,
        Phase::Refreshing => matches!(leg, Leg::Token | Leg::Bearer),
        Phase::Rotating => leg != Leg::Bearer,
    }
}

/// Attests, or fails as the fault says while it lasts.
struct Attester {
    fault: Fault,
    failing: Arc<AtomicBool>,
    hits: Arc<AtomicUsize>,
}

impl AttestationProvider for Attester {
    fn attest<'a>(
        &'a self,
        _: AttestationRequest<'a>,
    ) -> BoxFuture<'a, Result<AttestationToken, AttestationError>> {
        Box::pin(async {
            let failed = |retryable| {
                Err(AttestationError {
                    detail: "the attestation service failed".into(),
                    retryable,
                })
            };
            if !self.failing.load(Ordering::SeqCst) {
                return Ok(AttestationToken::new("good"));
            }
            self.hits.fetch_add(1, Ordering::SeqCst);
            match self.fault {
                Fault::Trouble => failed(true),
                Fault::Silence => std::future::pending().await,
                Fault::Lie => Ok(AttestationToken::new(" ")),
                _ => failed(false),
            }
        })
    }
}

fn reply(leg: Leg, fault: Fault, honest: Reply) -> Reply {
    match fault {
        Fault::NotFound => Reply::status(404, "{}"),
        Fault::Gone => Reply::status(410, "{}"),
        Fault::Throttled => Reply::status(429, "{}").with_header("retry-after", "20"),
        Fault::Trouble => Reply::status(500, "{}"),
        Fault::Forbidden => Reply::status(403, "{}"),
        Fault::Reset => Reply::HangUp,
        Fault::Silence => Reply::Gated(Arc::new(Semaphore::new(0)), Box::new(honest)),
        Fault::Garbage => Reply::status(200, "<html>"),
        Fault::Redirect => {
            Reply::status(307, "").with_header("location", "http://127.0.0.1:1/elsewhere")
        }
        Fault::Flood => Reply::Endless,
        Fault::Rejected => Reply::status(401, r#"{"error":"invalid_client"}"#),
        Fault::Lie => match leg {
            Leg::Metadata => honest.without_header("server"),
            Leg::Issue => honest.with_member("client_id", json!(OTHER)),
            _ => honest.with_member("token_type", json!("other")),
        },
    }
}

fn is_hit(leg: Leg, service: Service, asked: &Asked) -> bool {
    match leg {
        Leg::Metadata => service == Service::Metadata,
        Leg::Issue => service == Service::Issue,
        Leg::Token => service == Service::Token,
        Leg::Bearer => asked.path() == V1,
        Leg::Attestation => false,
    }
}

/// One cell's world.
struct Cell {
    bench: Bench,
    client: ManagedIdentity,
    leg: Leg,
    failing: Arc<AtomicBool>,
    /// How often the fault was met.
    hits: Arc<AtomicUsize>,
}

impl Cell {
    async fn new(leg: Leg, fault: Fault) -> Self {
        let bench = Bench::new().await;
        bench.keys.get_or_create_key().await.unwrap();
        let failing = Arc::new(AtomicBool::new(false));
        let hits = Arc::new(AtomicUsize::new(0));
        let (fails, hit) = (Arc::clone(&failing), Arc::clone(&hits));
        bench.azure.twist(move |service, asked, honest| {
            let honest = if asked.path() == V1 {
                Reply::json(
                    &json!({"access_token": "b", "token_type": "Bearer", "expires_in": 86_399}),
                )
            } else {
                honest
            };
            if fails.load(Ordering::SeqCst) && is_hit(leg, service, asked) {
                hit.fetch_add(1, Ordering::SeqCst);
                reply(leg, fault, honest)
            } else {
                honest
            }
        });
        let mut builder = bench.builder().remedy_policy(RemedyPolicy::default());
        if leg == Leg::Attestation {
            builder = builder.attestation(Arc::new(Attester {
                fault,
                failing: Arc::clone(&failing),
                hits: Arc::clone(&hits),
            }));
        }
        Self {
            client: builder.build().unwrap(),
            bench,
            leg,
            failing,
            hits,
        }
    }

    /// Asks for the token that this leg is about: its secret, or the code of the error.
    async fn ask(&self) -> Result<String, &'static str> {
        if self.leg == Leg::Bearer {
            let token = self.client.bearer_token(RESOURCE).await;
            return token
                .map(|token| token.secret().to_owned())
                .map_err(|error| error.code());
        }
        let token = self.client.token(RESOURCE).await.map_err(|e| e.code())?;
        // No token with another certificate than its own, whatever happened.
        assert!(token.is_confirmed());
        Ok(token.secret().to_owned())
    }

    async fn enter(&self, phase: Phase) {
        if phase == Phase::Cold {
            return;
        }
        self.ask().await.unwrap();
        match phase {
            Phase::Cold | Phase::Cached => {}
            // Tokens live a day.
            Phase::Refreshing => self.bench.clock.advance(13 * HOUR),
            // Certificates live until the 25th, and now is the 15th.
            Phase::Rotating => self.bench.clock.advance((9 * 24 + 12) * HOUR),
        }
    }

    /// Lets what was started in the background come to its end.
    async fn settle(&self) {
        // In paused time this passes when nothing else can happen.
        tokio::time::sleep(2 * DEADLINE).await;
    }

    fn bearer_requests(&self) -> usize {
        let asked = self.bench.azure.asked(Service::Resource);
        asked.iter().filter(|asked| asked.path() == V1).count()
    }
}

/// Plays one cell and says what was seen, in a word; panics if it is not as it should be.
async fn play(leg: Leg, fault: Fault, phase: Phase) -> Option<String> {
    let expected = expected(leg, fault, phase)?;
    let name = format!("{leg:?} × {fault:?} × {phase:?}");
    let cell = Cell::new(leg, fault).await;
    cell.enter(phase).await;
    // A broken token leg has the key prove itself, which takes real time.
    let paused = (leg, fault) != (Leg::Token, Fault::Reset);
    if paused {
        tokio::time::pause();
    }

    cell.failing.store(true, Ordering::SeqCst);
    let started = Instant::now();
    let seen = cell.ask().await;
    let waited = started.elapsed();
    assert!(
        waited <= DEADLINE + Duration::from_secs(1),
        "{name}: {waited:?}"
    );
    assert_eq!(seen.clone().err(), expected, "{name}");
    if paused {
        cell.settle().await;
        // While it lasts, the same again: a usable token is not lost by a failure in the background.
        assert_eq!(cell.ask().await.err(), expected, "{name}, again");
        cell.settle().await;
    }

    if paused {
        let met = cell.hits.load(Ordering::SeqCst) > 0;
        assert_eq!(met, is_asked(leg, phase), "{name}: was the fault met?");
    }
    cell.failing.store(false, Ordering::SeqCst);
    if paused {
        tokio::time::advance(LATER).await;
    }
    cell.bench.clock.advance(LATER);
    if let Err(code) = cell.ask().await {
        panic!("{name}: still {code} when it is over");
    }
    if leg == Leg::Bearer {
        cell.settle().await;
        assert!(cell.bearer_requests() >= 1, "{name}");
    } else {
        // Whoever asks for the certificate sees to it that it is replaced, if it is due.
        cell.client.credential().await.unwrap();
        if paused {
            cell.settle().await;
            let version = cell.client.credential().await.unwrap().version();
            let replaced =
                phase == Phase::Rotating || fault == Fault::Rejected && is_asked(leg, phase);
            assert_eq!(version > 1, replaced, "{name}: {version}");
        }
        cell.ask().await.unwrap();
        assert_eq!(cell.bearer_requests(), 0, "{name}: a downgrade");
    }
    if paused {
        tokio::time::resume();
    }
    Some(match expected {
        None => "served".into(),
        Some(code) => format!("{code} ({:.0} s)", waited.as_secs_f64()),
    })
}

#[tokio::test]
async fn matrix_of_legs_faults_and_phases() {
    let mut table = String::from("| leg | fault | cold | cached | refreshing | rotating |\n");
    table.push_str("|---|---|---|---|---|---|\n");
    let mut cells = 0;
    let mut codes = BTreeMap::new();
    for leg in LEGS {
        for fault in FAULTS {
            let Some(code) = code(leg, fault) else {
                continue;
            };
            write!(table, "| {leg:?} | {fault:?} |").unwrap();
            for phase in PHASES {
                let seen = play(leg, fault, phase).await;
                cells += usize::from(seen.is_some());
                write!(table, " {} |", seen.as_deref().unwrap_or("-")).unwrap();
            }
            table.push('\n');
            *codes.entry(code).or_insert(0) += 1;
        }
    }
    println!("{table}{cells} cells; errors: {codes:#?}");
    assert_eq!(cells, 34 * 4 + 4 * 4 + 11 * 3);
}
