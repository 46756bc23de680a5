//! `keybond call`.

use std::{fs, io::Read as _, process::ExitCode, sync::Arc};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method};
use keybond::LegReport;
use serde_json::json;

use super::{print_json, write_out};
use crate::{
    args::CallArgs,
    failure::{Failure, Kind},
    session,
};

pub(crate) async fn run(args: CallArgs, json: bool) -> Result<ExitCode, Failure> {
    let body = args.data.as_deref().map(read_body).transpose()?;
    let method = match &args.method {
        Some(name) => Method::from_bytes(name.as_bytes())
            .map_err(|_| Failure::usage(format!("-X `{name}` is no HTTP method")))?,
        None if body.is_some() => Method::POST,
        None => Method::GET,
    };
    let mut builder = session::managed_identity(&args.identity, &args.key, &args.trust).await?;
    if args.verbose {
        builder = builder.on_leg(Arc::new(|report: &LegReport| {
            eprintln!("* {}", describe(report))
        }));
    }
    let client = builder.build()?;
    let mut request = client.request(method, &args.url);
    for header in &args.headers {
        let (name, value) = read_header(header)?;
        request = request.header(name, value);
    }
    if let Some(resource) = &args.resource {
        request = request.resource(resource);
    }
    if let Some(body) = body {
        request = request.body(body);
    }
    let response = request.send().await?;
    let status = response.status();
    let headers: Vec<(String, String)> = response
        .headers()
        .iter()
        .map(|(name, value)| {
            (
                name.to_string(),
                String::from_utf8_lossy(value.as_bytes()).into_owned(),
            )
        })
        .collect();
    if args.verbose {
        eprintln!("< {status}");
        headers
            .iter()
            .for_each(|(name, value)| eprintln!("< {name}: {value}"));
    }
    let content = response.bytes().await?;
    if args.fail && status.as_u16() >= 400 {
        let message = format!(
            "the resource answered {status}: {}",
            String::from_utf8_lossy(&content)
        );
        return Err(Failure::new(
            Kind::Failed,
            "http_status",
            message,
            "See the resource's answer.",
        ));
    }
    if let Some(file) = &args.output {
        fs::write(file, &content)
            .map_err(|error| Failure::io(&file.display().to_string(), &error))?;
    }
    if json {
        let text = args
            .output
            .is_none()
            .then(|| String::from_utf8_lossy(&content).into_owned());
        print_json(&json!({ "status": status.as_u16(), "headers": headers, "body": text }))?;
    } else if args.output.is_none() {
        write_out(&content)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// One leg in a line: `token 12.3 ms  200  TLS 1.3, PS256`.
pub(crate) fn describe(report: &LegReport) -> String {
    let mut line = format!(
        "{:<10} {:>8.1} ms  {}",
        report.leg.to_string(),
        report.elapsed.as_secs_f64() * 1e3,
        report.outcome
    );
    if let Some(tls) = &report.tls {
        line.push_str(&format!("  {} {}", tls.version, tls.cipher_suite));
        if let Some(scheme) = tls.client_signature {
            line.push_str(&format!(", client signed {scheme}"));
        }
        if tls.renegotiations > 0 {
            line.push_str(", renegotiated");
        }
    }
    line
}

fn read_body(data: &str) -> Result<Bytes, Failure> {
    let content = match data.strip_prefix('@') {
        None => data.as_bytes().to_vec(),
        Some("-") => {
            let mut content = Vec::new();
            std::io::stdin()
                .read_to_end(&mut content)
                .map_err(|error| Failure::io("standard input", &error))?;
            content
        }
        Some(file) => fs::read(file).map_err(|error| Failure::io(file, &error))?,
    };
    Ok(content.into())
}

fn read_header(header: &str) -> Result<(HeaderName, HeaderValue), Failure> {
    let wrong = || {
        Failure::usage(format!(
            "-H `{header}` is no header: expected `Name: value`"
        ))
    };
    let (name, value) = header.split_once(':').ok_or_else(wrong)?;
    let name = name.trim().parse().map_err(|_| wrong())?;
    let value = HeaderValue::from_str(value.trim()).map_err(|_| wrong())?;
    Ok((name, value))
}
