//! Who said that bound tokens cannot be had, so that the same is not asked before every bearer token.

use std::{collections::HashMap, sync::Arc};

use arc_swap::ArcSwap;
use tokio::time::Instant;

use crate::error::Error;

/// Resources beyond which what is over is swept out.
const SWEEP: usize = 64;

/// Refusals that stand for a while, by resource. Reading takes no lock.
#[derive(Debug, Default)]
pub(crate) struct Refusals {
    standing: ArcSwap<HashMap<Box<str>, Arc<Standing>>>,
}

#[derive(Debug)]
struct Standing {
    until: Instant,
    refusal: Error,
}

impl Refusals {
    /// The refusal that stands for this resource, if its time is not over.
    pub(crate) fn of(&self, resource: &str, now: Instant) -> Option<Error> {
        let standing = self.standing.load();
        let found = standing.get(resource).filter(|wait| now < wait.until)?;
        Some(found.refusal.clone())
    }

    /// Remembers a refusal until then.
    pub(crate) fn remember(&self, resource: &str, refusal: &Error, until: Instant, now: Instant) {
        let refused = Arc::new(Standing {
            until,
            refusal: refusal.clone(),
        });
        self.standing.rcu(|standing| {
            let mut standing = HashMap::clone(standing);
            if standing.len() >= SWEEP {
                standing.retain(|_, wait| now < wait.until);
            }
            standing.insert(resource.into(), Arc::clone(&refused));
            standing
        });
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{error::At, leg::Leg};

    #[test]
    fn a_refusal_is_one_resources_own_and_ends() {
        let refusals = Refusals::default();
        let now = Instant::now();
        let later = |seconds| now + Duration::from_secs(seconds);
        let refusal = Error::V1Only {
            at: At::new(Leg::Token, &"id".into()),
        };
        refusals.remember("a", &refusal, later(10), now);
        assert!(refusals.of("a", later(9)).is_some());
        assert!(refusals.of("a", later(10)).is_none());
        assert!(refusals.of("b", now).is_none());
        for resource in 0..200 {
            refusals.remember(&resource.to_string(), &refusal, later(1), later(resource));
        }
        assert!(refusals.standing.load().len() <= SWEEP);
    }
}
