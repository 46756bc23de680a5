//! What the three servers share.

use std::{
    collections::HashMap,
    sync::{
        Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use aws_lc_rs::rand::{self, SystemRandom};

use crate::{
    attestation::{AttestationRule, CurrentRule},
    builder::Settings,
    clock::Clock,
    counters::Counting,
    error::EmulatorError,
    fabric::Fabric,
    fault::FaultBoard,
    jwt::TokenSigner,
    scenario::{Scenario, Script},
    state::{Secret, Secrets, State},
    x509::Authority,
};

/// The emulated Azure behind the servers.
pub(crate) struct World {
    pub(crate) settings: Settings,
    pub(crate) clock: Clock,
    pub(crate) authority: Authority,
    pub(crate) signer: TokenSigner,
    pub(crate) faults: FaultBoard,
    pub(crate) counting: Counting,
    pub(crate) script: Script,
    pub(crate) state: State,
    pub(crate) fabric: Fabric,
    pub(crate) addresses: OnceLock<Addresses>,
    /// Seconds.
    certificate_lifetime: AtomicU64,
    /// Seconds.
    token_lifetime: AtomicU64,
    /// For how many seconds a new certificate gets tokens; `u64::MAX`: as long as it is valid.
    token_window: AtomicU64,
    /// Whether the token service asks for the client's certificate under TLS 1.3.
    ask_under_tls13: AtomicBool,
    secrets: Mutex<Secrets>,
    register: Mutex<Register>,
    attestation: CurrentRule,
}

/// Where the servers are reached, without a slash at the end.
#[derive(Clone, Debug)]
pub(crate) struct Addresses {
    pub(crate) imds: String,
    pub(crate) sts: String,
    pub(crate) vault: String,
    pub(crate) renegotiating_vault: String,
    pub(crate) honeypot: Honeypot,
}

/// The trap's two doors: one port that speaks HTTP and HTTPS.
#[derive(Clone, Debug, Default)]
pub(crate) struct Honeypot {
    pub(crate) http: String,
    pub(crate) https: String,
}

/// Certificates issued and revoked, by `x5t#S256`.
#[derive(Default)]
struct Register {
    issued: Vec<String>,
    /// Until when a certificate gets tokens, in seconds since 1970.
    token_not_after: HashMap<String, u64>,
    revoked: HashMap<String, u32>,
    revocation: Option<Revocation>,
}

/// A revocation of the certificates that the metadata service keeps.
struct Revocation {
    code: u32,
    /// How many requests around what is kept an identity needs until it gets a good certificate;
    /// `None`: there is none.
    reissues: Option<u32>,
    /// How many there were, by client id.
    asked: HashMap<String, u32>,
}

impl World {
    pub(crate) fn new(
        settings: Settings,
        clock: Clock,
        authority: Authority,
        signer: TokenSigner,
        state: State,
        fabric: Fabric,
    ) -> Result<Self, EmulatorError> {
        let now = clock.epoch();
        let mut secrets = state.read_secrets()?.unwrap_or_default();
        for (name, value) in &settings.secrets {
            if !secrets.contains_key(name) {
                secrets.insert(
                    name.clone(),
                    Secret {
                        value: value.clone(),
                        version: random_hex(16)?,
                        created: now,
                        updated: now,
                    },
                );
            }
        }
        state.write_secrets(&secrets)?;
        Ok(Self {
            certificate_lifetime: AtomicU64::new(settings.certificate_lifetime.as_secs()),
            token_lifetime: AtomicU64::new(settings.token_lifetime.as_secs()),
            token_window: AtomicU64::new(u64::MAX),
            ask_under_tls13: AtomicBool::new(true),
            attestation: CurrentRule::new(settings.attestation),
            settings,
            clock,
            authority,
            signer,
            faults: FaultBoard::default(),
            counting: Counting::default(),
            script: Script::default(),
            state,
            fabric,
            addresses: OnceLock::new(),
            secrets: Mutex::new(secrets),
            register: Mutex::default(),
        })
    }

    /// Where the servers are reached; they are bound before any of them answers.
    pub(crate) fn addresses(&self) -> Addresses {
        self.addresses.get().cloned().unwrap_or(Addresses {
            imds: String::new(),
            sts: String::new(),
            vault: String::new(),
            renegotiating_vault: String::new(),
            honeypot: Honeypot::default(),
        })
    }

    pub(crate) fn certificate_lifetime(&self) -> Duration {
        Duration::from_secs(self.certificate_lifetime.load(Ordering::Relaxed))
    }

    pub(crate) fn set_certificate_lifetime(&self, lifetime: Duration) -> Result<(), EmulatorError> {
        let seconds = lifetime_seconds("certificate_lifetime", lifetime)?;
        self.certificate_lifetime.store(seconds, Ordering::Relaxed);
        Ok(())
    }

    /// Seconds.
    pub(crate) fn token_lifetime(&self) -> u64 {
        self.token_lifetime.load(Ordering::Relaxed)
    }

    pub(crate) fn set_token_lifetime(&self, lifetime: Duration) -> Result<(), EmulatorError> {
        let seconds = lifetime_seconds("token_lifetime", lifetime)?;
        self.token_lifetime.store(seconds, Ordering::Relaxed);
        Ok(())
    }

    /// Says for how long certificates issued from now on get tokens.
    pub(crate) fn set_token_window(&self, window: Duration) -> Result<(), EmulatorError> {
        let seconds = lifetime_seconds("token_not_after", window)?;
        self.token_window.store(seconds, Ordering::Relaxed);
        Ok(())
    }

    pub(crate) fn asks_under_tls13(&self) -> bool {
        self.ask_under_tls13.load(Ordering::Relaxed)
    }

    pub(crate) fn set_ask_under_tls13(&self, ask: bool) {
        self.ask_under_tls13.store(ask, Ordering::Relaxed);
    }

    pub(crate) fn secret(&self, name: &str) -> Option<Secret> {
        lock(&self.secrets).get(name).cloned()
    }

    /// Sets a secret and gives it a new version.
    pub(crate) fn set_secret(&self, name: &str, value: &str) -> Result<Secret, EmulatorError> {
        let now = self.clock.epoch();
        let version = random_hex(16)?;
        let mut secrets = lock(&self.secrets);
        let secret = Secret {
            value: value.to_owned(),
            version,
            created: now,
            updated: now,
        };
        secrets.insert(name.to_owned(), secret.clone());
        self.state.write_secrets(&secrets)?;
        Ok(secret)
    }

    pub(crate) fn attestation(&self) -> AttestationRule {
        self.attestation.get()
    }

    pub(crate) fn set_attestation(&self, rule: AttestationRule) {
        self.attestation.set(rule);
    }

    /// Plays a scenario from now on; what is due at once has happened when this returns.
    pub(crate) fn play(&self, scenario: &Scenario) -> Result<(), EmulatorError> {
        self.script.add(scenario, self.clock.epoch())?;
        self.script.play(self);
        Ok(())
    }

    /// Lets happen what scenarios have made due by now.
    pub(crate) fn catch_up(&self) {
        self.script.play(self);
    }

    /// Enters a new certificate; `fresh` if the metadata service was told not to use what it keeps.
    /// While a revocation lasts the certificate may be revoked from the start.
    pub(crate) fn note_issued(&self, thumbprint: String, client_id: &str, fresh: bool) {
        let window = self.token_window.load(Ordering::Relaxed);
        let until = self.clock.epoch().saturating_add(window);
        let mut register = lock(&self.register);
        register.token_not_after.insert(thumbprint.clone(), until);
        if let Some(revocation) = &mut register.revocation {
            let code = revocation.code;
            let asked = revocation.asked.entry(client_id.to_owned()).or_default();
            *asked = asked.saturating_add(u32::from(fresh));
            if revocation.reissues.is_none_or(|needed| *asked < needed) {
                register.revoked.insert(thumbprint.clone(), code);
            }
        }
        register.issued.push(thumbprint);
    }

    pub(crate) fn revoke(&self, thumbprint: &str, code: u32) {
        lock(&self.register)
            .revoked
            .insert(thumbprint.to_owned(), code);
    }

    /// Revokes every certificate issued since the start; how many that were.
    pub(crate) fn revoke_issued(&self, code: u32) -> usize {
        let mut register = lock(&self.register);
        let issued = std::mem::take(&mut register.issued);
        let count = issued.len();
        register
            .revoked
            .extend(issued.into_iter().map(|thumbprint| (thumbprint, code)));
        count
    }

    /// Revokes what was issued and what the metadata service keeps, until an identity has asked so
    /// often around it.
    pub(crate) fn revoke_kept(&self, code: u32, reissues: Option<u32>) {
        self.revoke_issued(code);
        lock(&self.register).revocation = Some(Revocation {
            code,
            reissues,
            asked: HashMap::new(),
        });
    }

    /// Whether the time in which a certificate gets tokens is over.
    pub(crate) fn token_time_is_over(&self, thumbprint: &str) -> bool {
        let until = lock(&self.register)
            .token_not_after
            .get(thumbprint)
            .copied();
        until.is_some_and(|until| self.clock.epoch() > until)
    }

    /// The AADSTS code with which a revoked certificate is refused.
    pub(crate) fn revoked(&self, thumbprint: &str) -> Option<u32> {
        lock(&self.register).revoked.get(thumbprint).copied()
    }
}

/// The `iss` of every token: a name that no verifier of Azure's tokens accepts.
pub(crate) fn issuer(tenant_id: &str) -> String {
    format!("https://keybond.invalid/emulator/{tenant_id}/v2.0")
}

/// Hexadecimal digits of this many random bytes.
pub(crate) fn random_hex(bytes: usize) -> Result<String, EmulatorError> {
    let mut buffer = vec![0; bytes];
    rand::SecureRandom::fill(&SystemRandom::new(), &mut buffer)
        .map_err(|_| EmulatorError::crypto("drawing random bytes"))?;
    Ok(buffer.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// A random GUID (RFC 9562, version 4).
pub(crate) fn random_guid() -> Result<String, EmulatorError> {
    let hex = random_hex(16)?;
    Ok(format!(
        "{}-{}-4{}-8{}-{}",
        &hex[..8],
        &hex[8..12],
        &hex[13..16],
        &hex[17..20],
        &hex[20..]
    ))
}

pub(crate) fn lifetime_seconds(
    field: &'static str,
    lifetime: Duration,
) -> Result<u64, EmulatorError> {
    const TEN_YEARS: u64 = 10 * 365 * 86_400;
    match lifetime.as_secs() {
        seconds @ 1..=TEN_YEARS => Ok(seconds),
        _ => Err(EmulatorError::invalid(
            field,
            "1 second to 10 years",
            format!("{lifetime:?}"),
        )),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
