//! `keybond token`.

use std::process::ExitCode;

use keybond::{BindingPolicy, GrantedToken};
use serde_json::json;

use super::{print_json, rfc3339, write_out};
use crate::{args::TokenArgs, failure::Failure, session};

pub(crate) async fn run(args: &TokenArgs, json: bool) -> Result<ExitCode, Failure> {
    let client = session::managed_identity(&args.client).await?.build()?;
    let policy = if args.allow_bearer {
        BindingPolicy::AllowBearer
    } else {
        BindingPolicy::Required
    };
    let token = client.token_with_policy(&args.resource, policy).await?;
    if json {
        let binding = match &token {
            GrantedToken::Bound(token) => token.binding(),
            GrantedToken::Downgraded { .. } => None,
        };
        print_json(&json!({
            "access_token": token.secret(),
            "token_type": token.token_type().to_string(),
            "expires_on": rfc3339(token.expires_on()),
            "resource": token.resource(),
            "client_id": binding.map(|binding| binding.client_id()),
            "tenant_id": binding.map(|binding| binding.tenant_id()),
            "x5t#S256": binding.map(|binding| binding.x5t_s256()),
            "strength": token.strength(),
            "downgraded": token.downgraded().map(|reason| json!({
                "code": reason.code(),
                "message": reason.to_string(),
            })),
        }))?;
    } else {
        write_out(format!("{}\n", token.secret()).as_bytes())?;
    }
    Ok(ExitCode::SUCCESS)
}
