//! `keybond capabilities`.

use std::process::ExitCode;

use keybond::Capabilities;
use serde_json::{Value, json};

use super::{print_json, write_out};
use crate::{args::CapabilitiesArgs, failure::Failure, session};

pub(crate) async fn run(args: &CapabilitiesArgs, json: bool) -> Result<ExitCode, Failure> {
    let client = session::managed_identity(&args.client).await?.build()?;
    let found = if args.make_key {
        client.capabilities_with_key().await?
    } else {
        client.capabilities().await?
    };
    let why_not = found.bound_tokens().err();
    if json {
        print_json(&describe(&found))?;
    } else {
        write_out(format!("{found}\n").as_bytes())?;
    }
    Ok(match why_not {
        None => ExitCode::SUCCESS,
        Some(_) if !found.bearer_tokens() => ExitCode::from(4),
        Some(_) => ExitCode::from(3),
    })
}

/// What was found, for programs.
pub(crate) fn describe(found: &Capabilities) -> Value {
    let why_not = found.bound_tokens().err();
    json!({
        "source": found.source,
        "strength": found.strength,
        "strength_shown": found.strength_shown,
        "floor": found.floor,
        "stores": found.stores.considered,
        "bearer_tokens": found.bearer_tokens(),
        "bound_tokens": why_not.is_none(),
        "why_not": why_not.map(|error| json!({
            "code": error.code(),
            "message": error.to_string(),
            "remedy": error.remedy(),
            "certain": !error.retryable(),
        })),
    })
}
