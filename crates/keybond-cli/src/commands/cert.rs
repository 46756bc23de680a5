//! `keybond cert`.

use std::process::ExitCode;

use keybond::{Binding, ManagedIdentity};
use serde_json::json;

use super::{print_json, rfc3339, write_out};
use crate::{args::ClientArgs, failure::Failure, session};

pub(crate) async fn show(args: &ClientArgs, json: bool) -> Result<ExitCode, Failure> {
    let client = client(args).await?;
    let binding = client.credential().await?;
    print(&client, &binding, json)
}

pub(crate) async fn renew(args: &ClientArgs, json: bool) -> Result<ExitCode, Failure> {
    let client = client(args).await?;
    let binding = client.renew().await?;
    print(&client, &binding, json)
}

async fn client(args: &ClientArgs) -> Result<ManagedIdentity, Failure> {
    let builder = session::managed_identity(args).await?;
    Ok(builder.build()?)
}

fn print(client: &ManagedIdentity, binding: &Binding, json: bool) -> Result<ExitCode, Failure> {
    let file = client
        .certificate_file(binding)
        .filter(|file| file.exists());
    let key = binding.key();
    if json {
        print_json(&json!({
            "subject": binding.subject(),
            "client_id": binding.client_id(),
            "tenant_id": binding.tenant_id(),
            "token_endpoint": binding.token_endpoint(),
            "not_before": rfc3339(binding.not_before()),
            "not_after": rfc3339(binding.not_after()),
            "renew_on": rfc3339(binding.renew_on()),
            "attested": binding.is_attested(),
            "x5t#S256": binding.x5t_s256(),
            "key_id": key.id(),
            "store": key.store(),
            "strength": key.strength(),
            "file": file,
        }))?;
        return Ok(ExitCode::SUCCESS);
    }
    let place = match file {
        Some(file) => file.display().to_string(),
        None => {
            "in this process alone: the key does not outlive it, or files are turned off".into()
        }
    };
    let text = [
        format!("subject   {}", binding.subject()),
        format!(
            "valid     {} to {}",
            rfc3339(binding.not_before()),
            rfc3339(binding.not_after())
        ),
        format!("renewed   from {} on", rfc3339(binding.renew_on())),
        format!(
            "attested  {}",
            if binding.is_attested() { "yes" } else { "no" }
        ),
        format!("x5t#S256  {}", binding.x5t_s256()),
        format!(
            "key       sha256:{} in {}, strength {}",
            key.id(),
            key.store(),
            key.strength()
        ),
        format!("tokens    {}", binding.token_endpoint()),
        format!("file      {place}"),
    ];
    write_out((text.join("\n") + "\n").as_bytes())?;
    Ok(ExitCode::SUCCESS)
}
