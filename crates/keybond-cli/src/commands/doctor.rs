//! `keybond doctor`.

use std::{process::ExitCode, time::Duration};

use keybond::{ManagedIdentity, Source};
use keybond_keys::Outcome;
use serde_json::json;

use super::{print_json, write_out};
use crate::{args::DoctorArgs, failure::Failure, session};

/// How long the metadata service is waited for: the whole answer is promised within a second.
const PROBE_BUDGET: Duration = Duration::from_millis(600);

pub(crate) async fn run(args: &DoctorArgs, json: bool) -> Result<ExitCode, Failure> {
    let provider = session::key_provider(&args.key)?;
    let stores = provider.probe().await;
    let floor = provider.minimum_strength();
    let best = stores
        .considered
        .iter()
        .filter(|entry| matches!(entry.outcome, Outcome::Available))
        .map(|entry| entry.tier.required_strength())
        .max();
    let reaches_floor = best.is_some_and(|best| best >= floor);

    let builder = ManagedIdentity::builder()
        .key_provider(provider)
        .tls(session::connector(&args.trust).await?)
        .probe_budget(PROBE_BUDGET);
    let client = session::with_switch(builder, &args.key).build()?;
    let source = client.source_probe().await?;

    if json {
        print_json(&json!({
            "version": env!("CARGO_PKG_VERSION"),
            "platform": format!("{}-{}", std::env::consts::OS, std::env::consts::ARCH),
            "floor": floor,
            "reaches_floor": reaches_floor,
            "stores": stores.considered,
            "source": source,
        }))?;
    } else {
        let mut text = format!(
            "keybond {} on {}-{}\n\nkey stores (floor: {floor})\n",
            env!("CARGO_PKG_VERSION"),
            std::env::consts::OS,
            std::env::consts::ARCH
        );
        stores
            .considered
            .iter()
            .for_each(|entry| text.push_str(&format!("  {entry}\n")));
        if !reaches_floor {
            text.push_str("  no store reaches the floor\n");
        }
        text.push_str(&format!("\nidentity source\n  {source}\n"));
        write_out(text.as_bytes())?;
    }
    Ok(if !reaches_floor {
        ExitCode::from(3)
    } else if source.source == Source::None {
        ExitCode::from(4)
    } else {
        ExitCode::SUCCESS
    })
}
