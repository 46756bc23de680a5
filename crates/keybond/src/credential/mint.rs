//! The way to a certificate, and why it is gone: what was kept, if it serves; else key → metadata → CSR →
//! attestation → certificate → checks.

use std::sync::Arc;

use keybond_keys::{HeldKey, KeyError, Verdict};
use keybond_tls::ClientIdentity;

use super::{
    Binding,
    certificate::{self, Owner},
    keeping::{Keeping, Turn},
};
use crate::{
    acquisition::Acquisition,
    attestation::{self, Attesting},
    client::Shared,
    csr::{CsrError, CsrSubject, build_csr},
    error::{At, Error, Malformation},
    imds::{
        issue::{Allowed, Request},
        metadata::Metadata,
    },
    leg::{Done, Leg},
    lifecycle, random, telemetry,
};

/// Why a certificate is asked for.
#[derive(Clone, Debug)]
pub(crate) enum Mint {
    /// None is usable: any that passes the checks will do.
    Missing,
    /// This one is coming to its end: one that ends later will do.
    Due(Arc<Binding>),
    /// The caller wants a new one.
    Demanded,
    /// The token service refused this one: neither it nor an older one will do, wherever it was kept.
    Refused(Arc<Binding>),
    /// A resource's challenge may mean that this one was revoked: none that a cache has will do, but it serves until
    /// the next is there.
    Challenged(Arc<Binding>),
}

impl Mint {
    /// Whether a binding that somebody else got serves the purpose.
    pub(crate) fn is_served_by(&self, binding: &Binding) -> bool {
        match self {
            Self::Missing => true,
            Self::Due(old) => {
                let other_key = binding.key().id() != old.key().id();
                binding.x5t_s256() != old.x5t_s256()
                    && (other_key || binding.not_after() > old.not_after())
            }
            Self::Refused(old) | Self::Challenged(old) => {
                binding.x5t_s256() != old.x5t_s256() && binding.not_before() >= old.not_before()
            }
            Self::Demanded => false,
        }
    }

    /// Whether a cache on the way may not answer.
    fn passes_caches(&self) -> bool {
        matches!(self, Self::Refused(_) | Self::Challenged(_))
    }
}

/// One run. The key comes first, so that nothing leaves the machine if none reaches the floor.
pub(crate) async fn mint(
    shared: &Shared,
    way: &Acquisition,
    why: &Mint,
) -> Result<Arc<Binding>, Error> {
    tracing::debug!(target: "keybond", ?why, "a certificate is asked for");
    if why.passes_caches() {
        way.tally.bypass_cache();
    }
    shared.check_switch(Leg::Metadata)?;
    let key = way.leg(Leg::Key, hold_key(shared, way)).await?;
    let minted = mint_for(shared, way, why, Arc::clone(&key)).await;
    let Err(failure) = minted else {
        return minted;
    };
    // Where no certificate is in use no connection shows that the key is dead. Once, for a new key that does
    // not sign either is no accident.
    if !was_replaced(shared, way, &key, &failure).await? {
        return Err(failure);
    }
    let key = way.leg(Leg::Key, hold_key(shared, way)).await?;
    mint_for(shared, way, why, key).await
}

/// Whether the key failed, and its device showed that it is dead and another took its place.
async fn was_replaced(
    shared: &Shared,
    way: &Acquisition,
    key: &HeldKey,
    failure: &Error,
) -> Result<bool, Error> {
    let Error::Csr {
        cause: CsrError::Sign(_),
        ..
    } = failure
    else {
        return Ok(false);
    };
    let cause = failure.to_string();
    let proving = shared.keys.report_failure(key, &cause);
    // If there is no time to look, what the key said first is what the caller should hear of.
    let Ok(verdict) = way.deadline.bound(Leg::Key, &way.id, proving).await else {
        return Ok(false);
    };
    let outcome = match verdict.map_err(|cause| key_error(way, cause))? {
        Verdict::Replaced(_) => "replaced",
        Verdict::Alive => "alive",
        Verdict::Unproven(error) => {
            tracing::warn!(target: "keybond", %error, "the key's device does not say whether it is alive");
            "unproven"
        }
    };
    telemetry::remedy("prove_key", outcome);
    Ok(outcome == "replaced")
}

async fn mint_for(
    shared: &Shared,
    way: &Acquisition,
    why: &Mint,
    key: Arc<HeldKey>,
) -> Result<Arc<Binding>, Error> {
    let Some(keeping) = Keeping::of(shared, way, why, &key) else {
        let metadata = metadata(shared, way).await?;
        return certify(shared, way, why, key, &metadata).await;
    };
    // Whoever has the turn asks; the others find what was kept.
    let _turn = match keeping.turn().await {
        Turn::Served(binding) => return Ok(binding),
        Turn::Mine(lock) => lock,
    };
    let metadata = metadata(shared, way).await?;
    // The same identity, named in another way, has another turn but the same certificate.
    let _canonical = match keeping.turn_of(&metadata.client_id).await {
        Turn::Served(binding) => return Ok(binding),
        Turn::Mine(lock) => lock,
    };
    let binding = certify(shared, way, why, Arc::clone(&key), &metadata).await?;
    keeping.keep(&binding).await;
    Ok(binding)
}

async fn hold_key(shared: &Shared, way: &Acquisition) -> Result<Done<Arc<HeldKey>>, Error> {
    let held = async {
        match shared.floor {
            Some(floor) => shared.keys.get_key_of_strength(floor).await,
            None => shared.keys.get_or_create_key().await,
        }
    };
    let key = way
        .deadline
        .bound(Leg::Key, &way.id, held)
        .await?
        .map_err(|cause| key_error(way, cause))?;
    let outcome = format!(
        "an RSA-{} key in {}, strength {}",
        key.public_key().bits(),
        key.store(),
        key.strength()
    );
    Ok(Done::new(key, outcome))
}

fn key_error(way: &Acquisition, cause: KeyError) -> Error {
    Error::Key {
        cause,
        correlation_id: Arc::clone(&way.id),
    }
}

async fn metadata(shared: &Shared, way: &Acquisition) -> Result<Arc<Metadata>, Error> {
    match shared.bindings.metadata(shared.clock.now()) {
        Some(metadata) => Ok(metadata),
        None => ask_metadata(shared, way).await,
    }
}

/// What the metadata service says now, whatever it said before.
pub(super) async fn ask_metadata(
    shared: &Shared,
    way: &Acquisition,
) -> Result<Arc<Metadata>, Error> {
    let asked = shared.imds.metadata(&way.id, way.deadline);
    let metadata = Arc::new(way.leg(Leg::Metadata, asked).await?);
    shared
        .bindings
        .keep_metadata(Arc::clone(&metadata), shared.clock.now());
    Ok(metadata)
}

async fn certify(
    shared: &Shared,
    way: &Acquisition,
    why: &Mint,
    key: Arc<HeldKey>,
    metadata: &Metadata,
) -> Result<Arc<Binding>, Error> {
    let certified = certify_once(shared, way, why, key, metadata).await;
    if certified.is_err() {
        // Whatever was wrong, the next attempt starts from what the services say then.
        shared.bindings.forget_metadata();
        shared.remedies.attestations.forget();
    }
    certified
}

async fn certify_once(
    shared: &Shared,
    way: &Acquisition,
    why: &Mint,
    key: Arc<HeldKey>,
    metadata: &Metadata,
) -> Result<Arc<Binding>, Error> {
    // What was refused must not come back from a cache on the way.
    let anew = why.passes_caches();
    let subject = CsrSubject {
        client_id: metadata.client_id.clone(),
        tenant_id: metadata.tenant_id.clone(),
        cu_id: metadata.cu_id.clone(),
    };
    let built = async {
        let csr = way
            .deadline
            .bound(Leg::Csr, &way.id, build_csr(&key, &subject))
            .await?
            .map_err(|cause| Error::Csr {
                cause,
                correlation_id: Arc::clone(&way.id),
            })?;
        let outcome = format!("a request of {} bytes, signed", csr.der().len());
        Ok(Done::new(csr, outcome))
    };
    let csr = way.leg(Leg::Csr, built).await?;

    let attested = match &shared.attestation {
        None => None,
        Some(provider) => {
            shared.check_switch(Leg::Attestation)?;
            let attesting = Attesting {
                provider: &**provider,
                kept: &shared.remedies.attestations,
                endpoint: &metadata.attestation_endpoint,
                key: &key,
                client_id: &subject.client_id,
                fresh: anew,
                now: shared.clock.now(),
            };
            let attesting = attestation::attest(attesting, &way.id);
            let bounded = async {
                way.deadline
                    .bound(Leg::Attestation, &way.id, attesting)
                    .await?
            };
            Some(way.leg(Leg::Attestation, bounded).await?)
        }
    };
    let attested = attested.as_ref().map(|token| token.as_str());

    shared.check_switch(Leg::Issue)?;
    let allowed = Allowed {
        hosts: &shared.sts_hosts,
        environment: &*shared.environment,
    };
    let issued = async {
        let done = shared
            .imds
            .issue(
                metadata,
                Request {
                    csr: &csr,
                    attestation_token: attested,
                    bypass_cache: anew,
                },
                allowed,
                &way.id,
                way.deadline,
            )
            .await?;
        let issued = done.value;
        let now = shared.clock.now();
        let owner = Owner {
            key: &key,
            client_id: &metadata.client_id,
            tenant_id: &metadata.tenant_id,
        };
        let facts = certificate::check(&issued.certificate, owner, now, &issued.at)?;
        let identity = client_identity(vec![issued.certificate], key, &issued.at)?;
        let jitter = random::jitter(&*shared.random);
        let life = lifecycle::certificate::life(now, facts.not_before, facts.not_after, jitter);
        let binding = Binding {
            version: shared.bindings.next_version(),
            facts,
            client_id: metadata.client_id.clone(),
            tenant_id: metadata.tenant_id.clone(),
            token_endpoint: issued.token_endpoint,
            attested: attested.is_some(),
            life,
            identity,
        };
        telemetry::certified(shared, &binding);
        Ok(Done::new(Arc::new(binding), done.outcome))
    };
    way.leg(Leg::Issue, issued).await
}

/// The TLS layer's own check; ours has been stricter.
pub(super) fn client_identity(
    chain: Vec<Vec<u8>>,
    key: Arc<HeldKey>,
    at: &At,
) -> Result<Arc<ClientIdentity>, Error> {
    ClientIdentity::new(chain, key)
        .map(Arc::new)
        .map_err(|cause| {
            let expected = "a client certificate";
            tracing::debug!(target: "keybond", %cause, "the TLS layer refused the certificate");
            at.malformed("certificate", Malformation::Unexpected { expected })
        })
}
