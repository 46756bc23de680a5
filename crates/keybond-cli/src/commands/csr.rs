//! `keybond csr`.

use std::process::ExitCode;

use keybond::{CsrSubject, CuId, build_csr};
use serde_json::json;

use super::{print_json, write_out};
use crate::{args::CsrArgs, failure::Failure, session};

pub(crate) async fn run(args: &CsrArgs, json: bool) -> Result<ExitCode, Failure> {
    let key = session::key_provider(&args.key)?
        .get_or_create_key()
        .await?;
    let subject = CsrSubject {
        client_id: args.client_id.clone(),
        tenant_id: args.tenant_id.clone(),
        cu_id: CuId {
            vm_id: args.vm_id.clone(),
            vmss_id: args.vmss_id.clone(),
        },
    };
    let csr = build_csr(&key, &subject).await?;
    if json {
        print_json(&json!({
            "csr": csr.to_base64(),
            "key_id": key.id(),
            "store": key.store(),
            "strength": key.strength(),
        }))?;
    } else if args.der {
        write_out(csr.der())?;
    } else if args.base64 {
        write_out(format!("{}\n", csr.to_base64()).as_bytes())?;
    } else {
        write_out(csr.to_pem().as_bytes())?;
    }
    Ok(ExitCode::SUCCESS)
}
