//! The challenge of Azure Arc: the agent names a file that only its group may read, and wants its content.
//! Whoever answers in its place must not be able to make us read, let alone send, any other file.

use std::{
    fs::File,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use ::http::{HeaderMap, header};

use crate::{
    environment::{Environment, non_empty},
    error::{At, Error},
    http::{Ask, header_value},
};

/// Bytes that a key file has at most.
const LONGEST: u64 = 4096;

/// Where the agent's key files are on Linux.
const LINUX: &str = "/var/opt/azcmagent/tokens";

/// The request again, with the content of the file that the challenge names.
///
/// # Errors
/// [`Error::Refused`] if there is no challenge, or it names a file that must not or cannot be read.
pub(super) async fn answer(
    mut ask: Ask,
    headers: &HeaderMap,
    root: &Path,
    environment: &dyn Environment,
    at: &At,
) -> Result<Ask, Error> {
    let refuse = |problem: String| Error::Refused {
        at: at.clone().with_status(401),
        error: "challenge".into(),
        description: problem,
        error_codes: Vec::new(),
        new_certificates: 0,
        retry_after: None,
    };
    let challenge = headers
        .get(header::WWW_AUTHENTICATE)
        .and_then(|value| value.to_str().ok())
        .ok_or_else(|| refuse("the agent sent no WWW-Authenticate header".into()))?;
    let file = file(challenge, root, environment).map_err(|problem| refuse(problem.into()))?;
    let key = tokio::task::spawn_blocking(move || read(&file))
        .await
        .map_err(|_| refuse("the key file's reader died".into()))?
        .map_err(refuse)?;
    let mut value = header_value("authorization", &format!("Basic {key}"))?;
    value.set_sensitive(true);
    ask.headers.insert(header::AUTHORIZATION, value);
    Ok(ask)
}

/// The file that a challenge names, if it is one of the agent's.
fn file(
    challenge: &str,
    root: &Path,
    environment: &dyn Environment,
) -> Result<PathBuf, &'static str> {
    const PREFIX: &str = "Basic realm=";
    let named = challenge
        .get(..PREFIX.len())
        .filter(|prefix| prefix.eq_ignore_ascii_case(PREFIX))
        .map(|_| challenge[PREFIX.len()..].trim().trim_matches('"'))
        .ok_or("the challenge is not `Basic realm=` with a file")?;
    let (directory, name) = named
        .rsplit_once(['/', '\\'])
        .ok_or("the challenge names no absolute path")?;
    let stem = name
        .strip_suffix(".key")
        .ok_or("the challenge names a file that is no .key file")?;
    // What is left of the name holds no separator; dots and colons lead elsewhere, too.
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    if stem.is_empty() || !stem.chars().all(plain) {
        return Err("the challenge names a file with a name that no key file has");
    }
    if directory == LINUX {
        return Ok(root.join(&LINUX[1..]).join(name));
    }
    if cfg!(windows)
        && let Some(data) = non_empty(environment, "ProgramData")
    {
        let own = format!(r"{data}\AzureConnectedMachineAgent\Tokens");
        if directory.eq_ignore_ascii_case(&own) {
            return Ok(Path::new(&own).join(name));
        }
    }
    Err("the challenge names a file outside of the agent's directory")
}

/// The content of a key file without surrounding space. Links are not followed.
fn read(path: &Path) -> Result<String, String> {
    let failed = |error: io::Error| {
        let group = match error.kind() {
            io::ErrorKind::PermissionDenied => "; the user must be in the group `himds`",
            _ => "",
        };
        format!("the key file cannot be read: {error}{group}")
    };
    if !path.symlink_metadata().map_err(failed)?.is_file() {
        return Err("the key file is a link or no file".into());
    }
    let mut content = Vec::new();
    File::open(path)
        .and_then(|file| file.take(LONGEST + 1).read_to_end(&mut content))
        .map_err(failed)?;
    if content.len() as u64 > LONGEST {
        return Err(format!("the key file is longer than {LONGEST} bytes"));
    }
    let key = String::from_utf8(content).map_err(|_| "the key file is not UTF-8".to_owned())?;
    match key.trim() {
        "" => Err("the key file is empty".into()),
        key => Ok(key.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ProcessEnvironment;

    #[test]
    fn only_key_files_of_the_agent_are_named() {
        let root = Path::new("/tmp/root");
        let named = |challenge: &str| file(challenge, root, &ProcessEnvironment);
        assert_eq!(
            named("Basic realm=/var/opt/azcmagent/tokens/0a-B_1.key").unwrap(),
            root.join("var/opt/azcmagent/tokens/0a-B_1.key")
        );
        assert!(named("basic realm=\"/var/opt/azcmagent/tokens/x.key\"").is_ok());
        for refused in [
            "",
            "Bearer realm=/var/opt/azcmagent/tokens/x.key",
            "Basic realm=x.key",
            "Basic realm=/etc/x.key",
            "Basic realm=/var/opt/azcmagent/tokens/x.pem",
            "Basic realm=/var/opt/azcmagent/tokens/.key",
            "Basic realm=/var/opt/azcmagent/tokens/../../../../etc/x.key",
            "Basic realm=/var/opt/azcmagent/tokens/sub/x.key",
            r"Basic realm=/var/opt/azcmagent/tokens/..\x.key",
            "Basic realm=/var/opt/azcmagent/tokens/a.b.key",
            "Basic realm=/var/opt/azcmagent/tokens2/x.key",
            "Basic realm=/var/opt/azcmagent/tokens/x\u{e9}.key",
            "Basic réalm=/var/opt/azcmagent/tokens/x.key",
        ] {
            assert!(named(refused).is_err(), "{refused}");
        }
    }
}
