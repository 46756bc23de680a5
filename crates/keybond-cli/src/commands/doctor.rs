//! `keybond doctor`.

mod bundle;
mod redact;

use std::{process::ExitCode, time::Duration};

use keybond::{ManagedIdentity, Source, SourceReport};
use keybond_keys::{Decision, KeyProvider, Outcome, Strength};
use serde_json::{Value, json};

use self::bundle::{Legs, Target};
use super::{print_json, write_out};
use crate::{args::DoctorArgs, failure::Failure, session};

/// How long the metadata service is waited for: the whole answer is promised within a second.
const PROBE_BUDGET: Duration = Duration::from_millis(600);

pub(crate) async fn run(args: &DoctorArgs, json: bool) -> Result<ExitCode, Failure> {
    let provider = session::key_provider(&args.client.key)?;
    // Whether the file can be had is known before anybody waits for what goes into it.
    let target = args.bundle.as_deref().map(Target::choose).transpose()?;
    let legs = Legs::default();
    let stores = Stores::examine(&provider).await;
    // Settings that cannot be used are what a ticket may be about.
    let client = client(args, &provider, &legs).await;
    let source = match &client {
        Ok(client) => Some(client.source_probe().await?),
        Err(_) => None,
    };
    let report = stores.to_json(source.as_ref());
    let printed = !target.as_ref().is_some_and(Target::is_standard_output);
    if let Some(target) = target {
        let document = bundle::gather(args, &provider, &report, client.as_ref(), &legs).await?;
        target.write(&document)?;
    }
    client?;
    if printed && json {
        print_json(&report)?;
    } else if printed {
        write_out(stores.to_text(source.as_ref()).as_bytes())?;
    }
    Ok(if !stores.reach_floor() {
        ExitCode::from(3)
    } else if source.is_none_or(|source| source.source == Source::None) {
        ExitCode::from(4)
    } else {
        ExitCode::SUCCESS
    })
}

async fn client(
    args: &DoctorArgs,
    provider: &KeyProvider,
    legs: &Legs,
) -> Result<ManagedIdentity, Failure> {
    let builder = session::builder(&args.client, provider.clone());
    let builder = builder.await?.probe_budget(PROBE_BUDGET);
    Ok(builder.on_leg(legs.listener()).build()?)
}

/// What the key stores said, and what they are held against.
struct Stores {
    said: Decision,
    floor: Strength,
}

impl Stores {
    async fn examine(provider: &KeyProvider) -> Self {
        Self {
            said: provider.probe().await,
            floor: provider.minimum_strength(),
        }
    }

    fn reach_floor(&self) -> bool {
        self.said
            .considered
            .iter()
            .filter(|entry| matches!(entry.outcome, Outcome::Available))
            .any(|entry| entry.tier.required_strength() >= self.floor)
    }

    fn to_json(&self, source: Option<&SourceReport>) -> Value {
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "platform": platform(),
            "floor": self.floor,
            "reaches_floor": self.reach_floor(),
            "stores": self.said.considered,
            "source": source,
        })
    }

    fn to_text(&self, source: Option<&SourceReport>) -> String {
        let mut text = format!(
            "keybond {} on {}\n\nkey stores (floor: {})\n",
            env!("CARGO_PKG_VERSION"),
            platform(),
            self.floor
        );
        for entry in &self.said.considered {
            text.push_str(&format!("  {entry}\n"));
        }
        if !self.reach_floor() {
            text.push_str("  no store reaches the floor\n");
        }
        if let Some(source) = source {
            text.push_str(&format!("\nidentity source\n  {source}\n"));
        }
        text
    }
}

fn platform() -> String {
    format!("{}-{}", std::env::consts::OS, std::env::consts::ARCH)
}
