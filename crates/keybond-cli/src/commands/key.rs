//! `keybond key`.

use std::{
    io::{IsTerminal as _, Read as _},
    process::ExitCode,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use jiff::Timestamp;
use keybond_keys::{ExportAttempt, HeldKey, Outcome, SignatureScheme, StoreId};
use serde_json::json;

use super::{print_json, write_out};
use crate::{
    args::{KeyArgs, KeyPlaceArgs},
    failure::{Failure, Kind},
    session,
};

pub(crate) async fn show(args: &KeyArgs, json: bool) -> Result<ExitCode, Failure> {
    let key = session::key_provider(args)?.get_or_create_key().await?;
    if json {
        print_json(&json!({
            "key_id": key.id(),
            "store": key.store(),
            "strength": key.strength(),
            "held": what_held_means(key.store()),
            "created": created(&key).map(|at| at.to_string()),
            "evidence": key.evidence(),
            "decision": **key.decision(),
        }))?;
    } else {
        write_out(describe(&key).as_bytes())?;
    }
    Ok(ExitCode::SUCCESS)
}

pub(crate) async fn sign(scheme: SignatureScheme, args: &KeyArgs) -> Result<ExitCode, Failure> {
    let key = session::key_provider(args)?.get_or_create_key().await?;
    let mut message = Vec::new();
    std::io::stdin()
        .read_to_end(&mut message)
        .map_err(|error| Failure::io("standard input", &error))?;
    let signature = key.sign(scheme, &message).await?;
    // Whoever reads slowly does not prolong the key's life.
    drop(key);
    write_out(&signature)?;
    Ok(ExitCode::SUCCESS)
}

pub(crate) async fn public(args: &KeyArgs, json: bool) -> Result<ExitCode, Failure> {
    let key = session::key_provider(args)?.get_or_create_key().await?;
    let base64 = STANDARD.encode(key.public_key().spki_der());
    if json {
        print_json(&json!({ "key_id": key.id(), "spki": base64 }))?;
    } else {
        let lines: Vec<&str> = (0..base64.len())
            .step_by(64)
            .map(|at| &base64[at..base64.len().min(at + 64)])
            .collect();
        let pem = format!(
            "-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n",
            lines.join("\n")
        );
        write_out(pem.as_bytes())?;
    }
    Ok(ExitCode::SUCCESS)
}

pub(crate) async fn rotate(args: &KeyArgs, json: bool) -> Result<ExitCode, Failure> {
    let provider = session::key_provider(args)?;
    let old = provider.get_or_create_key().await?;
    if old.store() == StoreId::Memory {
        return Err(Failure::new(
            Kind::Failed,
            "key_not_kept",
            "the key lives in process memory: every process makes its own, and this one is about to end",
            "Restart the process whose key is to be new.",
        ));
    }
    let new = provider.rotate_key().await?;
    if json {
        print_json(
            &json!({ "from": old.id(), "to": new.id(), "store": new.store(), "strength": new.strength() }),
        )?;
    } else {
        let text = format!(
            "old  sha256:{}\nnew  sha256:{} in {}, strength {}\n",
            old.id(),
            new.id(),
            new.store(),
            new.strength()
        );
        write_out(text.as_bytes())?;
    }
    Ok(ExitCode::SUCCESS)
}

pub(crate) async fn delete(
    yes: bool,
    place: &KeyPlaceArgs,
    json: bool,
) -> Result<ExitCode, Failure> {
    if !yes {
        if !std::io::stdin().is_terminal() {
            return Err(Failure::usage(
                "nobody is there to be asked: delete the key with --yes",
            ));
        }
        eprint!(
            "Delete the key `{}`? Its certificates are worthless then. [y/N] ",
            place.key_name
        );
        let mut answer = String::new();
        std::io::stdin()
            .read_line(&mut answer)
            .map_err(|error| Failure::io("standard input", &error))?;
        if !matches!(answer.trim(), "y" | "Y" | "yes") {
            eprintln!("nothing was deleted");
            return Ok(ExitCode::FAILURE);
        }
    }
    // No key is used: there is no strength to ask for.
    let deleted = session::provider_without_floor(place)?.delete_key().await?;
    if json {
        print_json(&json!({ "deleted": deleted }))?;
    } else if !deleted {
        eprintln!("there was no key `{}`", place.key_name);
    }
    Ok(ExitCode::SUCCESS)
}

/// What it means that a store "holds" a key, in one sentence.
pub(crate) fn what_held_means(store: StoreId) -> &'static str {
    match store {
        StoreId::KeyGuard => {
            "The key lives in the enclave of virtualization-based security and dies with this boot; \
             not even the kernel can read it."
        }
        StoreId::Platform | StoreId::Tpm2 => {
            "The TPM made the key and alone can use it; the file holds it encrypted by the TPM."
        }
        StoreId::Pkcs11 => "The token made the key and does not release it.",
        _ => {
            "The key lives in the memory of this process and dies with it; whoever can read that memory \
             can copy the key."
        }
    }
}

/// When the key was made: now, or when its store says.
fn created(key: &HeldKey) -> Option<Timestamp> {
    let made_now = key
        .decision()
        .considered
        .iter()
        .any(|entry| matches!(entry.outcome, Outcome::Chosen { created: true, .. }));
    if made_now {
        return key.decision().at.try_into().ok();
    }
    let details = &key.evidence().properties.details;
    let (_, seconds) = details.iter().find(|(name, _)| name == "created")?;
    Timestamp::from_second(seconds.parse().ok()?).ok()
}

fn age(created: Option<Timestamp>, now: Timestamp) -> String {
    let Some(created) = created else {
        return "not known: the store does not say when the key was made".into();
    };
    let seconds = now.duration_since(created).as_secs();
    let (count, unit) = match seconds {
        ..0 => return format!("made at {created}, in the future of this machine's clock"),
        0..60 => (seconds, "second"),
        60..3600 => (seconds / 60, "minute"),
        3600..86_400 => (seconds / 3600, "hour"),
        _ => (seconds / 86_400, "day"),
    };
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {unit}{plural}, made at {created}")
}

fn describe(key: &HeldKey) -> String {
    let evidence = key.evidence();
    let mut lines = vec![
        format!("key       sha256:{}", key.id()),
        format!("store     {} (tier {})", key.store(), key.store().tier()),
        format!("strength  {}", key.strength()),
        format!("held      {}", what_held_means(key.store())),
        format!("age       {}", age(created(key), Timestamp::now())),
        format!(
            "evidence  RSA-{}, isolation {:?}, origin {:?}, export {}",
            evidence.bits,
            evidence.properties.isolation,
            evidence.properties.origin,
            match &evidence.export {
                ExportAttempt::NoSuchCall => "has no call".to_owned(),
                ExportAttempt::Refused(answer) => format!("refused ({answer})"),
                ExportAttempt::Exported => "SUCCEEDED".to_owned(),
            }
        ),
        format!("signs     {}", join(&evidence.verified)),
    ];
    for rejected in &evidence.rejected {
        lines.push(format!(
            "          not {}: {}",
            rejected.scheme, rejected.cause
        ));
    }
    if let Some(file) = &evidence.properties.file {
        lines.push(format!("file      {}", file.display()));
    }
    for (name, value) in &evidence.properties.details {
        lines.push(format!("          {name}: {value}"));
    }
    lines.push("decision".into());
    lines.extend(
        key.decision()
            .considered
            .iter()
            .map(|entry| format!("  {entry}")),
    );
    lines.join("\n") + "\n"
}

fn join(items: &[impl ToString]) -> String {
    items
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn age_is_told_in_the_largest_unit_that_fits() {
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        let told = |seconds: i64| age(Timestamp::from_second(1_800_000_000 - seconds).ok(), now);
        for (seconds, expected) in [
            (0, "0 seconds,"),
            (1, "1 second,"),
            (59, "59 seconds,"),
            (60, "1 minute,"),
            (3_599, "59 minutes,"),
            (3_600, "1 hour,"),
            (86_399, "23 hours,"),
            (86_400, "1 day,"),
            (10 * 86_400, "10 days, made at 2027-01-05T08:00:00Z"),
            (-1, "made at 2027-01-15T08:00:01Z, in the future"),
        ] {
            assert!(told(seconds).starts_with(expected), "{}", told(seconds));
        }
        assert!(age(None, now).starts_with("not known"));
    }
}
