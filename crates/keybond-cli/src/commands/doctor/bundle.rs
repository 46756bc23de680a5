//! The support bundle: one document that an operator can attach to a ticket, with nothing in it to steal.

use std::{
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::SystemTime,
};

use keybond::{AccessToken, DiskCertificates, KeptCertificate, LegReport, ManagedIdentity};
use keybond_keys::KeyProvider;
use serde_json::{Value, json};
use tempfile::NamedTempFile;

use super::redact::Variables;
use crate::{
    args::DoctorArgs,
    commands::{capabilities, rfc3339, write_out},
    failure::Failure,
    log, session,
};

/// The document's form; it changes when a program that reads it would have to.
const FORM: u32 = 1;

/// The error that says that an operator switched bound tokens off.
const SWITCHED_OFF: &str = "mtls_pop_administratively_disabled";

/// Where a bundle goes.
pub(super) enum Target {
    StandardOutput,
    /// A file that is not there yet. It gets this name when all of it is written, so that nothing is left of a run
    /// that fails or is interrupted.
    NewFile(PathBuf),
}

impl Target {
    /// Standard output for `-`, else a new file that this user alone may read. That it can be made is known then.
    pub(super) fn choose(path: &Path) -> Result<Self, Failure> {
        if path == Path::new("-") {
            return Ok(Self::StandardOutput);
        }
        if path.symlink_metadata().is_ok() {
            return Err(failed(path, &io::ErrorKind::AlreadyExists.into()));
        }
        temporary_beside(path)?;
        Ok(Self::NewFile(path.to_owned()))
    }

    pub(super) fn is_standard_output(&self) -> bool {
        matches!(self, Self::StandardOutput)
    }

    pub(super) fn write(self, document: &Value) -> Result<(), Failure> {
        let text = format!("{document:#}\n");
        let path = match self {
            Self::StandardOutput => return write_out(text.as_bytes()),
            Self::NewFile(path) => path,
        };
        let mut file = temporary_beside(&path)?;
        file.write_all(text.as_bytes())
            .map_err(|error| failed(&path, &error))?;
        // Another program may have made a file of that name meanwhile.
        file.persist_noclobber(&path)
            .map_err(|error| failed(&path, &error.error))?;
        Ok(())
    }
}

/// A file in the same directory, which on Unix its owner alone may read, and which goes when it is dropped.
fn temporary_beside(path: &Path) -> Result<NamedTempFile, Failure> {
    let parent = path.parent().unwrap_or(Path::new(""));
    let directory = if parent.as_os_str().is_empty() {
        Path::new(".")
    } else {
        parent
    };
    tempfile::Builder::new()
        .prefix(".keybond-bundle-")
        .tempfile_in(directory)
        .map_err(|error| failed(path, &error))
}

fn failed(path: &Path, error: &io::Error) -> Failure {
    Failure::io(&path.display().to_string(), error)
}

/// What was told of legs, in the order of their ends.
#[derive(Clone, Default)]
pub(super) struct Legs(Arc<Mutex<Vec<Value>>>);

impl Legs {
    pub(super) fn listener(&self) -> Arc<dyn Fn(&LegReport) + Send + Sync> {
        let legs = Arc::clone(&self.0);
        Arc::new(move |report| {
            let told = describe(report);
            legs.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(told);
        })
    }

    fn told(&self) -> Vec<Value> {
        let legs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        legs.clone()
    }
}

/// Everything, and a way to a token if one is to be tried. What cannot be found out is in it as an error.
pub(super) async fn gather(
    args: &DoctorArgs,
    provider: &KeyProvider,
    report: &Value,
    client: Result<&ManagedIdentity, &Failure>,
    probes: &Legs,
) -> Result<Value, Failure> {
    let capabilities = match client {
        Ok(client) => capabilities::describe(&client.capabilities().await?),
        Err(failure) => json!({ "error": failure.to_json() }),
    };
    let way = match (&args.try_resource, client) {
        (None, _) => json!({ "tried": false }),
        (Some(resource), _) => go(args, provider, resource).await,
    };
    let key = provider.cached().map(|key| {
        json!({
            "key_id": key.id(),
            "store": key.store(),
            "strength": key.strength(),
            "decision": **key.decision(),
        })
    });
    let (lines, dropped) = log::kept();
    let variables = Variables::of_process();
    let mut document = json!({
        "bundle": FORM,
        "made_at": rfc3339(SystemTime::now()),
        "system": system(),
        "doctor": report,
        "probes": probes.told(),
        "capabilities": capabilities,
        "kill_switch": kill_switch(&capabilities),
        "key": key,
        "certificates": session::state_dir(&args.client.key.place).map(certificates),
        "way": way,
        "log": { "lines": lines, "older_lines_dropped": dropped },
    });
    variables.hide_values(&mut document);
    // After the values, lest one of them is the name of another.
    document["variables_set"] = json!(variables.names());
    Ok(document)
}

/// The whole way with a client that knows nothing yet, as long as a client of its kind waits.
async fn go(args: &DoctorArgs, provider: &KeyProvider, resource: &str) -> Value {
    let legs = Legs::default();
    let ended = async {
        let builder = session::builder(&args.client, provider.clone());
        let builder = builder.await?.on_leg(legs.listener());
        // The token service is to be asked, whatever another process got of it.
        let client = builder.share_tokens(false).build()?;
        Ok::<_, Failure>(client.token(resource).await?)
    };
    let ended = ended.await;
    json!({
        "tried": true,
        "resource": resource,
        "legs": legs.told(),
        "token": ended.as_ref().ok().map(|token| facts(token)),
        "error": ended.as_ref().err().map(Failure::to_json),
    })
}

/// What may be told of a token: whose, until when, and what it is bound to.
fn facts(token: &AccessToken) -> Value {
    let binding = token.binding();
    json!({
        "token_type": token.token_type().to_string(),
        "expires_on": rfc3339(token.expires_on()),
        "strength": token.strength(),
        "client_id": binding.map(|binding| binding.client_id()),
        "tenant_id": binding.map(|binding| binding.tenant_id()),
        "x5t#S256": binding.map(|binding| binding.x5t_s256()),
        "certificate_not_before": binding.map(|binding| rfc3339(binding.not_before())),
        "certificate_not_after": binding.map(|binding| rfc3339(binding.not_after())),
        "attested": binding.map(|binding| binding.is_attested()),
    })
}

fn describe(report: &LegReport) -> Value {
    json!({
        "leg": report.leg.name(),
        "stage": report.leg.stage(),
        "succeeded": report.succeeded,
        "outcome": report.outcome,
        "code": report.code,
        "status": report.status,
        "elapsed_ms": report.elapsed.as_secs_f64() * 1e3,
        "correlation_id": *report.correlation_id,
        "trace_id": report.trace_id,
        "tls": report.tls.as_ref().map(|tls| json!({
            "version": tls.version.to_string(),
            "cipher_suite": tls.cipher_suite,
            "certificate_requested": tls.certificate_requested,
            "client_signature": tls.client_signature.map(|scheme| scheme.to_string()),
            "renegotiations": tls.renegotiations,
        })),
    })
}

/// On, and by what; off; or not known, where there was no client to ask.
fn kill_switch(capabilities: &Value) -> Value {
    if capabilities.get("error").is_some() {
        return json!("unknown");
    }
    let why_not = &capabilities["why_not"];
    if why_not["code"] == SWITCHED_OFF {
        json!({ "on": true, "because": why_not["message"] })
    } else {
        json!({ "on": false })
    }
}

/// The kept certificates, without the certificates.
fn certificates(state: PathBuf) -> Value {
    match DiskCertificates::new(state).kept() {
        Ok(kept) => kept
            .into_iter()
            .map(|file| {
                file.map_or_else(|cause| json!({ "error": cause }), |kept| certificate(&kept))
            })
            .collect(),
        Err(error) => json!({ "error": error.to_string() }),
    }
}

fn certificate(kept: &KeptCertificate) -> Value {
    json!({
        "x5t#S256": kept.x5t_s256,
        "key_id": kept.key_id,
        "client_id": kept.client_id,
        "tenant_id": kept.tenant_id,
        "source": kept.source,
        "attested": kept.attested,
        "not_before": rfc3339(kept.not_before),
        "not_after": rfc3339(kept.not_after),
    })
}

fn system() -> Value {
    let first_line = |file: &str, key: &str| {
        let text = std::fs::read_to_string(file).ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix(key))?;
        Some(line.trim_matches('"').to_owned())
    };
    json!({
        "keybond": env!("CARGO_PKG_VERSION"),
        "pkcs11": cfg!(feature = "pkcs11"),
        "os": std::env::consts::OS,
        "architecture": std::env::consts::ARCH,
        // os-release(5), proc_sys_kernel(5); nothing elsewhere.
        "distribution": first_line("/etc/os-release", "PRETTY_NAME="),
        "kernel": first_line("/proc/sys/kernel/osrelease", ""),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bundle_takes_its_name_when_it_is_whole_and_nobody_elses() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ticket.json");
        let there = || std::fs::read_dir(dir.path()).unwrap().count();
        drop(Target::choose(&path).unwrap());
        let (first, second) = (Target::choose(&path), Target::choose(&path));
        assert_eq!(there(), 0);
        first.unwrap().write(&json!({ "form": FORM })).unwrap();
        assert!(second.unwrap().write(&json!({})).is_err());
        assert!(Target::choose(&path).is_err());
        assert!(std::fs::read_to_string(&path).unwrap().contains("form"));
        assert_eq!(there(), 1);
        assert!(Target::choose(&dir.path().join("none/ticket.json")).is_err());
    }
}
