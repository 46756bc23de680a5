//! The binding: a held key and its certificate, with everything that is used together with them.

pub(crate) mod cache;
pub(crate) mod certificate;

use std::{fmt, sync::Arc, time::SystemTime};

use keybond_keys::{HeldKey, Strength};
use keybond_tls::ClientIdentity;
use url::Url;

use self::certificate::Facts;
use crate::{
    acquisition::Acquisition,
    attestation,
    client::Shared,
    csr::{CsrSubject, build_csr},
    error::{At, Error, Malformation},
    imds::{issue::Allowed, metadata::Metadata},
    leg::{Done, Leg},
};

/// One version of an identity's credential: key, certificate and where tokens are for it.
///
/// A token, the connection it is used on and the certificate shown there all come from one binding. A renewal
/// makes another binding with a higher version and leaves this one as it is.
pub struct Binding {
    version: u64,
    facts: Facts,
    client_id: String,
    tenant_id: String,
    token_endpoint: Url,
    identity: Arc<ClientIdentity>,
}

impl Binding {
    /// The version: higher for every certificate that this client gets, from 1 on.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// The certificate, DER.
    pub fn certificate_der(&self) -> &[u8] {
        self.identity.chain().first().map_or(&[], Vec::as_slice)
    }

    /// The certificate and those that were issued with it (DER), the client's own first.
    pub fn certificate_chain(&self) -> &[Vec<u8>] {
        self.identity.chain()
    }

    /// The certificate's hash as tokens state it (RFC 8705 §3.1): SHA-256 of the DER, in base64url without
    /// padding.
    pub fn x5t_s256(&self) -> &str {
        &self.facts.x5t_s256
    }

    /// When the certificate's time begins.
    pub fn not_before(&self) -> SystemTime {
        self.facts.not_before
    }

    /// When it ends.
    pub fn not_after(&self) -> SystemTime {
        self.facts.not_after
    }

    /// When the next certificate is asked for: a day before this one ends, or halfway if it lives less than
    /// two days.
    pub fn renew_on(&self) -> SystemTime {
        self.facts.renew_on()
    }

    /// The identity's client id.
    pub fn client_id(&self) -> &str {
        &self.client_id
    }

    /// The identity's tenant.
    pub fn tenant_id(&self) -> &str {
        &self.tenant_id
    }

    /// Where tokens are asked for over mutual TLS with this certificate.
    pub fn token_endpoint(&self) -> &str {
        self.token_endpoint.as_str()
    }

    /// The key.
    pub fn key(&self) -> &Arc<HeldKey> {
        self.identity.key()
    }

    /// What the key was shown to be.
    pub fn strength(&self) -> Strength {
        self.key().strength()
    }

    /// Key and certificate as the TLS layer takes them.
    pub fn client_identity(&self) -> &Arc<ClientIdentity> {
        &self.identity
    }

    pub(crate) fn token_url(&self) -> &Url {
        &self.token_endpoint
    }
}

impl fmt::Debug for Binding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Binding")
            .field("version", &self.version)
            .field("client_id", &self.client_id)
            .field("tenant_id", &self.tenant_id)
            .field("x5t_s256", &self.facts.x5t_s256)
            .field("key", self.key())
            .finish_non_exhaustive()
    }
}

/// The way from a key to a certificate: key → metadata → CSR → attestation → certificate → checks. The key
/// comes first, so that nothing leaves the machine if none reaches the floor.
pub(crate) async fn mint(shared: &Shared, way: &Acquisition) -> Result<Arc<Binding>, Error> {
    shared.check_switch(Leg::Metadata)?;
    let key = way.leg(Leg::Key, hold_key(shared, way)).await?;
    let metadata = match shared.bindings.metadata(shared.clock.now()) {
        Some(metadata) => metadata,
        None => {
            let asked = shared.imds.metadata(&way.id, way.deadline);
            let metadata = Arc::new(way.leg(Leg::Metadata, asked).await?);
            shared
                .bindings
                .keep_metadata(Arc::clone(&metadata), shared.clock.now());
            metadata
        }
    };
    let minted = certify(shared, way, key, &metadata).await;
    if minted.is_err() {
        // Whatever was wrong, the next attempt starts from what the service says then.
        shared.bindings.forget_metadata();
    }
    minted
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
        .map_err(Error::Key)?;
    let outcome = format!(
        "an RSA-{} key in {}, strength {}",
        key.public_key().bits(),
        key.store(),
        key.strength()
    );
    Ok(Done::new(key, outcome))
}

async fn certify(
    shared: &Shared,
    way: &Acquisition,
    key: Arc<HeldKey>,
    metadata: &Metadata,
) -> Result<Arc<Binding>, Error> {
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
            .map_err(Error::Csr)?;
        let outcome = format!("a request of {} bytes, signed", csr.der().len());
        Ok(Done::new(csr, outcome))
    };
    let csr = way.leg(Leg::Csr, built).await?;

    let attested = match &shared.attestation {
        None => None,
        Some(provider) => {
            let endpoint = &metadata.attestation_endpoint;
            let attesting =
                attestation::attest(&**provider, endpoint, &key, &subject.client_id, &way.id);
            let bounded = async {
                way.deadline
                    .bound(Leg::Attestation, &way.id, attesting)
                    .await?
            };
            Some(way.leg(Leg::Attestation, bounded).await?)
        }
    };
    let attested = attested.as_ref().map(attestation::AttestationToken::as_str);

    let allowed = Allowed {
        hosts: &shared.sts_hosts,
        environment: &*shared.environment,
    };
    let issued = async {
        let done = shared
            .imds
            .issue(metadata, &csr, attested, allowed, &way.id, way.deadline)
            .await?;
        let issued = done.value;
        let facts = certificate::check(&issued, &key, metadata, shared.clock.now())?;
        // The TLS layer's own check; ours has been stricter.
        let identity = ClientIdentity::new(vec![issued.certificate], key).map_err(|cause| {
            let expected = "a client certificate";
            tracing::debug!(target: "keybond", %cause, "the TLS layer refused the certificate");
            At::malformed(
                &issued.at,
                "certificate",
                Malformation::Unexpected { expected },
            )
        })?;
        let binding = Binding {
            version: shared.bindings.next_version(),
            facts,
            client_id: metadata.client_id.clone(),
            tenant_id: metadata.tenant_id.clone(),
            token_endpoint: issued.token_endpoint,
            identity: Arc::new(identity),
        };
        Ok(Done::new(Arc::new(binding), done.outcome))
    };
    way.leg(Leg::Issue, issued).await
}
