//! An exchange with retries, within the deadline.

use tokio::time::Instant;

use super::{Answer, Ask, Deadline, Net};
use crate::{
    error::{At, Error},
    imds::retry::{Family, Outcome, Retries},
};

impl Net {
    /// Asks until the answer is definite, the retries are used up or the deadline leaves no room for another.
    /// Returns the last answer, whatever its status, and how often was asked.
    pub(crate) async fn persist(
        &self,
        ask: &Ask,
        at: &At,
        deadline: Deadline,
        family: Family,
    ) -> Result<(Answer, u32), Error> {
        let mut retries = Retries::new(family, &at.correlation_id);
        let mut attempts = 0;
        loop {
            attempts += 1;
            let result = self.exchange(ask, at, deadline).await;
            let outcome = match &result {
                Ok(answer) => Some(Outcome::of(answer.status, &answer.headers)),
                Err(error) => Outcome::of_error(error),
            };
            let wait = outcome
                .and_then(|outcome| retries.after(outcome))
                .filter(|wait| Instant::now() + *wait < deadline.at);
            let Some(wait) = wait else {
                return result.map(|answer| (answer, attempts));
            };
            tracing::debug!(target: "keybond", leg = %at.leg, attempts, ?wait, ?outcome, "asking again");
            tokio::time::sleep(wait).await;
        }
    }
}
