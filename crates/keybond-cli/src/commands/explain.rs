//! `keybond explain`.

use std::process::ExitCode;

use keybond::{Entry, catalogue, explain};
use serde_json::{Value, json};

use super::{print_json, write_out};
use crate::failure::{Failure, Kind};

pub(crate) fn run(code: Option<&str>, json: bool) -> Result<ExitCode, Failure> {
    let Some(code) = code else {
        let entries = catalogue();
        if json {
            print_json(&entries.iter().map(as_json).collect())?;
        } else {
            let list: String = entries
                .iter()
                .map(|entry| format!("{}\n", entry.code))
                .collect();
            write_out(list.as_bytes())?;
        }
        return Ok(ExitCode::SUCCESS);
    };
    let entry = explain(code).ok_or_else(|| {
        let message = format!("`{code}` is no error code that is known here");
        Failure::new(
            Kind::Failed,
            "unknown_code",
            message,
            "`keybond explain` lists them all.",
        )
    })?;
    if json {
        print_json(&as_json(entry))?;
    } else {
        write_out(format!("{entry}\n").as_bytes())?;
    }
    Ok(ExitCode::SUCCESS)
}

fn as_json(entry: &Entry) -> Value {
    json!({
        "code": entry.code,
        "legs": entry.legs.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "retry": entry.retry.to_string(),
        "meaning": entry.meaning,
        "causes": entry.causes,
        "actions": entry.actions,
    })
}
