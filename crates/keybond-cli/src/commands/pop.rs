//! `keybond pop`.

use std::{io::Read as _, process::ExitCode, time::SystemTime};

use keybond::pop::{DpopProof, PopError, SignedHttpRequest};
use serde_json::json;

use super::{print_json, write_out};
use crate::{
    args::PopCommand,
    failure::{Failure, Kind},
    session,
};

pub(crate) async fn run(command: PopCommand, json: bool) -> Result<ExitCode, Failure> {
    let now = SystemTime::now();
    let proof = match command {
        PopCommand::Shr(args) => {
            let token = read_token()?;
            let mut request = SignedHttpRequest::new(&token)
                .request(&args.method, &args.url)?
                .scheme(args.scheme);
            if let Some(nonce) = &args.nonce {
                request = request.nonce(nonce);
            }
            let key = session::key_provider(&args.key)?
                .get_or_create_key()
                .await?;
            request.sign(&key, now).await?
        }
        PopCommand::Dpop { with_token, args } => {
            let mut proof = DpopProof::new(&args.method, &args.url)?.scheme(args.scheme);
            if with_token {
                proof = proof.access_token(&read_token()?);
            }
            if let Some(nonce) = &args.nonce {
                proof = proof.nonce(nonce);
            }
            let key = session::key_provider(&args.key)?
                .get_or_create_key()
                .await?;
            proof.sign(&key, now).await?
        }
    };
    if json {
        print_json(&json!({ "proof": proof }))?;
    } else {
        write_out(format!("{proof}\n").as_bytes())?;
    }
    Ok(ExitCode::SUCCESS)
}

fn read_token() -> Result<String, Failure> {
    let mut token = String::new();
    std::io::stdin()
        .read_to_string(&mut token)
        .map_err(|error| Failure::io("access token on standard input", &error))?;
    let token = token.trim();
    if token.is_empty() {
        return Err(Failure::usage(
            "standard input is empty: expected the access token there",
        ));
    }
    Ok(token.to_owned())
}

impl From<PopError> for Failure {
    fn from(error: PopError) -> Self {
        match error {
            PopError::Key(error) => error.into(),
            PopError::Url { .. } | PopError::Argument { .. } => Self::usage(error.to_string()),
            _ => Self::new(
                Kind::Failed,
                error.code(),
                error.to_string(),
                error.remedy(),
            ),
        }
    }
}
