//! What can be had here, before anybody asks for it: which source, how strong a key, and whether bound tokens
//! will work. Nothing is made to find out, unless the caller wants the key.

use std::{fmt, sync::Arc};

use keybond_keys::{Decision, KeyError, Outcome, Strength};

use crate::{
    client::{ManagedIdentity, Shared},
    error::{At, Error, SourceProblem},
    leg::Leg,
    source::{self, Source, SourceReport},
};

/// What this machine offers to one identity.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Capabilities {
    /// Where tokens come from, and how that is known.
    pub source: SourceReport,
    /// The strongest key that can be had: what the key in use was shown to be, else what the strongest store
    /// that says it could hold one stands for. `None` if there is none.
    pub strength: Option<Strength>,
    /// Whether [`Capabilities::strength`] was shown by a key, as opposed to promised by a store.
    pub strength_shown: bool,
    /// The floor below which no key is used.
    pub floor: Strength,
    /// What each key store said.
    pub stores: Arc<Decision>,
    why_not: Option<Error>,
}

impl Capabilities {
    /// Whether a bound token can be had here as far as can be told without asking for one.
    ///
    /// What cannot be told: whether the issuer demands attestation, whether the tenant is admitted to bound
    /// tokens and whether the resource takes them. Unless [`Capabilities::strength_shown`], neither can whether
    /// the key store keeps its promise.
    ///
    /// # Errors
    /// Why not, as the request itself would say it: administratively disabled before anything else, then what
    /// the source, then what the key store lacks. One that is [retryable](Error::retryable) was not certain.
    pub fn bound_tokens(&self) -> Result<(), &Error> {
        self.why_not.as_ref().map_or(Ok(()), Err)
    }

    /// Whether a bearer token can be had here: an identity source answers.
    pub fn bearer_tokens(&self) -> bool {
        self.source.source != Source::None
    }
}

impl fmt::Display for Capabilities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let strength = self.strength.map_or("none", Strength::name);
        let how = if self.strength_shown {
            "shown by the key"
        } else {
            "promised by its store; no key was made"
        };
        writeln!(f, "source         {}", self.source.source)?;
        match self.strength {
            Some(_) => writeln!(f, "key            {strength}, {how}")?,
            None => writeln!(f, "key            none")?,
        }
        writeln!(f, "floor          {}", self.floor)?;
        match self.bound_tokens() {
            Ok(()) => writeln!(f, "bound tokens   yes")?,
            Err(error) => {
                let verdict = if error.retryable() { "uncertain" } else { "no" };
                writeln!(f, "bound tokens   {verdict}: {error}")?;
                writeln!(f, "               {} ({})", error.remedy(), error.code())?;
            }
        }
        let bearer = if self.bearer_tokens() { "yes" } else { "no" };
        write!(f, "bearer tokens  {bearer}")
    }
}

impl ManagedIdentity {
    /// What can be had here, without making a key. What a probe of the metadata service found is believed for
    /// an hour, that there is none for half a minute, and what was uncertain not at all.
    ///
    /// # Errors
    /// [`Error::Configuration`] if no request id can be made; everything else is in the answer.
    pub async fn capabilities(&self) -> Result<Capabilities, Error> {
        let shared = &self.shared;
        let source = source::cache::known(shared).await?;
        let floor = shared.effective_floor();
        let shown = shared
            .keys
            .cached()
            .map(|key| (key.strength(), key.decision().clone()));
        let (strength, strength_shown, stores) = match shown {
            Some((strength, decision)) => (Some(strength), true, decision),
            None => {
                let decision = Arc::new(shared.keys.probe().await);
                (promised(&decision), false, decision)
            }
        };
        let key_trouble = match strength {
            None => Some(KeyError::NoStore {
                decision: Arc::clone(&stores),
            }),
            Some(have) if have < floor => Some(KeyError::MinStrengthNotMet {
                have: Some(have),
                need: floor,
                decision: Arc::clone(&stores),
            }),
            Some(_) => None,
        };
        let why_not = match (shared.source_trouble(&source)?, key_trouble) {
            (Some(trouble), _) => Some(trouble),
            (None, Some(cause)) => Some(shared.key_error(cause)?),
            (None, None) => None,
        };
        Ok(Capabilities {
            source,
            strength,
            strength_shown,
            floor,
            stores,
            why_not,
        })
    }

    /// [`ManagedIdentity::capabilities`] with the key made, if there is none, so that its strength is shown and
    /// not only promised.
    ///
    /// # Errors
    /// As [`ManagedIdentity::capabilities`]; that no key can be had is in the answer, too.
    pub async fn capabilities_with_key(&self) -> Result<Capabilities, Error> {
        let made = self
            .shared
            .keys
            .get_key_of_strength(self.shared.effective_floor())
            .await;
        let mut capabilities = self.capabilities().await?;
        if let Err(cause) = made {
            let error = self.shared.key_error(cause)?;
            capabilities.why_not.get_or_insert(error);
        }
        Ok(capabilities)
    }
}

impl Shared {
    /// The floor in force: the client's, or the key provider's if that is higher.
    pub(crate) fn effective_floor(&self) -> Strength {
        let provider = self.keys.minimum_strength();
        self.floor.map_or(provider, |floor| floor.max(provider))
    }

    fn key_error(&self, cause: KeyError) -> Result<Error, Error> {
        Ok(Error::Key {
            cause,
            correlation_id: self.acquisition()?.id,
        })
    }

    /// Why the source gives no bound tokens, if it does not.
    fn source_trouble(&self, report: &SourceReport) -> Result<Option<Error>, Error> {
        let leg = Leg::Probe;
        // That an operator switched it off is the first thing to know, whatever the machine could do.
        if let Some(switch) = self.surroundings.switch.thrown(&*self.environment) {
            return Ok(Some(Error::Disabled { leg, switch }));
        }
        Ok(match report.source {
            Source::ImdsV2 => None,
            Source::ImdsV1 if report.certain => {
                let id = self.acquisition()?.id;
                let at = At::new(leg, &id);
                Some(Error::V1Only { at })
            }
            Source::ImdsV1 | Source::None => Some(Error::Source {
                leg,
                place: report.source,
                problem: SourceProblem::Unavailable {
                    findings: report.in_one_line(),
                    certain: report.certain,
                },
            }),
            place => Some(Error::Source {
                leg,
                place,
                problem: SourceProblem::PopNotSupported,
            }),
        })
    }
}

/// What the strongest store that could hold a key stands for.
fn promised(stores: &Decision) -> Option<Strength> {
    stores
        .considered
        .iter()
        .filter(|store| matches!(store.outcome, Outcome::Available))
        .map(|store| store.tier.required_strength())
        .max()
}
