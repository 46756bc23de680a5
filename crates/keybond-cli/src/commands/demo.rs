//! `keybond demo`: the whole way of a bound token on loopback, then three thieves.

mod thief;

use std::{
    process::ExitCode,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use http::Method;
use keybond::{AccessToken, Binding, Environment, Identity, Leg, LegReport, ManagedIdentity};
use keybond_emulator::{Emulator, IdentityKind};
use keybond_keys::{HeldKey, KeyProvider};
use keybond_tls::{TlsConnector, TrustRoots};
use serde_json::{Value, json};

use super::{call, print_json, write_out};
use crate::{
    args::{DemoArgs, KeyArgs, KeyPlaceArgs},
    failure::{Failure, Kind},
    session,
};

const SECRET: &str = "secrets/demo?api-version=7.4";

/// One attempt to read the secret.
struct Attempt {
    who: &'static str,
    expected: u16,
    status: u16,
    answer: String,
}

impl Attempt {
    fn as_expected(&self) -> bool {
        self.status == self.expected
    }
}

pub(crate) async fn run(args: &DemoArgs, json: bool) -> Result<ExitCode, Failure> {
    let started = Instant::now();
    let show = |line: String| {
        if json {
            Ok(())
        } else {
            write_out(format!("{line}\n").as_bytes())
        }
    };

    let emulator = Emulator::builder().start().await?;
    show("Azure on loopback (nothing leaves this machine)".into())?;
    show(format!(
        "  metadata {}   tokens {}   vault {}",
        emulator.imds_url(),
        emulator.sts_url(),
        emulator.vault_url()
    ))?;
    let mut roots = TrustRoots::empty();
    roots.add_pem(emulator.ca_pem().as_bytes())?;
    let connector = keybond_tls::default_connector(&roots)?;
    // The demo's keys are its own: nothing of this user's state is touched.
    let state = tempfile::Builder::new().prefix("keybond-demo-").tempdir();
    let state = state.map_err(|error| Failure::io("temporary directory", &error))?;
    let state_dir = match &args.keep {
        // An earlier demo's certificates are from an authority that is gone.
        Some(kept) if kept.exists() => {
            let error = std::io::Error::from(std::io::ErrorKind::AlreadyExists);
            return Err(Failure::io("--keep: expected a new directory", &error));
        }
        Some(kept) => kept.clone(),
        None => state.path().join("state"),
    };
    let keys = |name: &str| KeyArgs {
        place: KeyPlaceArgs {
            state_dir: Some(state_dir.clone()),
            key_name: name.to_owned(),
            interop: None,
            ..args.key.place.clone()
        },
        ..args.key.clone()
    };

    let legs = Arc::new(Mutex::new(Vec::new()));
    let Made {
        client: honest,
        key,
        making,
        keys: honest_keys,
    } = client(
        &keys("demo-honest"),
        &emulator,
        &connector,
        Identity::SystemAssigned,
        &legs,
    )
    .await?;
    show(format!(
        "\nkey        {making:>8.1?}  RSA key generation and proof: {} in {}, strength {}",
        key.id(),
        key.store(),
        key.strength()
    ))?;
    if let (Some(file), Some(_)) = (&key.evidence().properties.file, &args.keep) {
        show(format!("           its file: {}", file.display()))?;
    }
    let token = honest.token(emulator.vault_resource()).await?;
    let binding = bound_to(&token)?;
    let url = format!("{}/{SECRET}", emulator.vault_url().trim_end_matches('/'));
    let response = honest
        .request(Method::GET, &url)
        .resource(emulator.vault_resource())
        .send()
        .await?;
    let honest_status = response.status().as_u16();
    let secret = String::from_utf8_lossy(&response.bytes().await?).into_owned();
    let way: Vec<LegReport> =
        std::mem::take(&mut *legs.lock().unwrap_or_else(PoisonError::into_inner));
    for leg in way.iter().filter(|leg| leg.leg != Leg::Key) {
        show(call::describe(leg))?;
    }

    show("\ndecision".into())?;
    show(format!(
        "  {}",
        key.decision().to_string().replace('\n', "\n  ")
    ))?;
    let cnf = thief::confirmation(token.secret()).unwrap_or_default();
    show("\nbinding".into())?;
    show(format!("  certificate x5t#S256  {}", binding.x5t_s256()))?;
    show(format!("  token cnf   x5t#S256  {cnf}"))?;

    // Another identity of this machine, with a key of its own.
    let others = Arc::default();
    let user_assigned = emulator
        .identities()
        .iter()
        .find(|identity| identity.kind == IdentityKind::UserAssigned);
    let user_assigned =
        user_assigned.ok_or_else(|| failed("the emulator has no user-assigned identity"))?;
    let user_assigned = Identity::client_id(&user_assigned.client_id)
        .map_err(|error| failed(&error.to_string()))?;
    let Made {
        client: other,
        making: making_other,
        keys: other_keys,
        ..
    } = client(
        &keys("demo-other"),
        &emulator,
        &connector,
        user_assigned,
        &others,
    )
    .await?;
    let foreign = other.credential().await?;
    let renewed = honest.renew().await?;

    let mut attempts = Vec::new();
    let thieves = [
        ("stolen token, no certificate", None),
        (
            "stolen token, another identity's certificate",
            Some(&foreign),
        ),
        (
            "stolen token, same key, renewed certificate",
            Some(&renewed),
        ),
    ];
    for (who, binding) in thieves {
        let certificate = binding.map(|binding| Arc::clone(binding.client_identity()));
        let (status, answer) =
            thief::attempt(&*connector, &url, token.secret(), certificate).await?;
        attempts.push(Attempt {
            who,
            expected: 401,
            status,
            answer,
        });
    }
    attempts.push(Attempt {
        who: "the honest call",
        expected: 200,
        status: honest_status,
        answer: secret,
    });
    show("\nwho reads the secret".into())?;
    for attempt in &attempts {
        let verdict = if attempt.as_expected() {
            "as it must be"
        } else {
            "WRONG"
        };
        show(format!(
            "  {:<46} {}  {verdict}",
            attempt.who, attempt.status
        ))?;
        show(format!("  {:<46}      {}", "", summary(&attempt.answer)))?;
    }

    let generating = making + making_other;
    let rest = started.elapsed().saturating_sub(generating);
    let cnf_matches = cnf == binding.x5t_s256();
    let good = attempts.iter().all(Attempt::as_expected) && cnf_matches;
    show(format!(
        "\n{}: {:.0} ms besides {:.0} ms for making two RSA keys",
        if good { "ok" } else { "FAILED" },
        rest.as_secs_f64() * 1e3,
        generating.as_secs_f64() * 1e3
    ))?;
    if json {
        print_json(&json!({
            "ok": good,
            "key": { "id": key.id(), "store": key.store(), "strength": key.strength() },
            "decision": **key.decision(),
            "legs": way.iter().map(leg_json).collect::<Vec<_>>(),
            "binding": { "certificate": binding.x5t_s256(), "cnf": cnf },
            "attempts": attempts.iter().map(|attempt| json!({
                "who": attempt.who, "expected": attempt.expected, "status": attempt.status,
            })).collect::<Vec<_>>(),
            "key_generation_ms": generating.as_secs_f64() * 1e3,
            "other_ms": rest.as_secs_f64() * 1e3,
        }))?;
    }
    emulator.shutdown().await;
    // A device keeps keys that nobody deletes.
    if args.keep.is_none() {
        for keys in [honest_keys, other_keys] {
            if let Err(error) = keys.delete_key().await {
                tracing::warn!(%error, "a key of the demo may be left behind");
            }
        }
    }
    if good {
        Ok(ExitCode::SUCCESS)
    } else {
        Err(failed("the demo did not end as it must"))
    }
}

/// A client of the emulator, its key, and how long the key took.
struct Made {
    client: ManagedIdentity,
    key: Arc<HeldKey>,
    making: Duration,
    keys: KeyProvider,
}

async fn client(
    keys: &KeyArgs,
    emulator: &Emulator,
    connector: &Arc<dyn TlsConnector>,
    identity: Identity,
    legs: &Arc<Mutex<Vec<LegReport>>>,
) -> Result<Made, Failure> {
    let provider: KeyProvider = session::key_provider(keys)?;
    let started = Instant::now();
    let key = provider.get_or_create_key().await?;
    let making = started.elapsed();
    let legs = Arc::clone(legs);
    let client = ManagedIdentity::builder()
        .identity(identity)
        .key_provider(provider.clone())
        .tls(Arc::clone(connector))
        .environment(Arc::new(EmulatorEnvironment(emulator.env())))
        .on_leg(Arc::new(move |report: &LegReport| {
            legs.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(report.clone());
        }))
        .build()?;
    Ok(Made {
        client,
        key,
        making,
        keys: provider,
    })
}

/// The variables that point a client at the emulator, and no others.
struct EmulatorEnvironment(Vec<(&'static str, String)>);

impl Environment for EmulatorEnvironment {
    fn get(&self, name: &str) -> Option<String> {
        self.0
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(_, value)| value.clone())
    }
}

fn bound_to(token: &AccessToken) -> Result<&Arc<Binding>, Failure> {
    token
        .binding()
        .ok_or_else(|| failed("the token is bound to nothing"))
}

fn leg_json(leg: &LegReport) -> Value {
    json!({
        "leg": leg.leg.to_string(),
        "ms": leg.elapsed.as_secs_f64() * 1e3,
        "outcome": leg.outcome,
        "tls": leg.tls.as_ref().map(|tls| tls.version.to_string()),
        "client_signature": leg.tls.as_ref().and_then(|tls| tls.client_signature),
    })
}

/// What the vault answered: the secret's value or the error's message.
fn summary(answer: &str) -> String {
    let parsed: Value = serde_json::from_str(answer).unwrap_or_default();
    let text = [&parsed["error"]["message"], &parsed["value"]]
        .into_iter()
        .find_map(Value::as_str);
    text.unwrap_or(answer).chars().take(100).collect()
}

fn failed(message: &str) -> Failure {
    Failure::new(
        Kind::Failed,
        "demo_failed",
        message,
        "Run again with --log debug and report what it shows.",
    )
}
