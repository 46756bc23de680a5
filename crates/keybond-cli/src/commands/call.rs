//! `keybond call`.

mod body;
mod progress;
mod show;

use std::{
    fs::File,
    io::{self, Write as _},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use http::{HeaderName, HeaderValue, Method};
use keybond::{
    ClientCertificate, LegReport, ManagedIdentityBuilder, RequestBuilder, ResourceRule, Response,
    Timeouts,
};
use keybond_tls::{TlsInfo, TlsVersion};
use serde_json::json;
use url::Url;

pub(crate) use self::show::describe;
use self::{body::Data, progress::Progress};
use super::print_json;
use crate::{
    args::{AskedWhen, CallArgs},
    failure::{Failure, Kind},
    session,
};

/// What a refusal shows of the resource's words.
const SHOWN_OF_A_REFUSAL: usize = 16 * 1024;

/// The exit code when whoever read standard output is gone: what a shell says of a program that SIGPIPE (13) ended.
const READER_GONE: u8 = 128 + 13;

pub(crate) async fn run(args: CallArgs, json: bool) -> Result<ExitCode, Failure> {
    let method = match &args.method {
        Some(name) => Method::from_bytes(name.as_bytes())
            .map_err(|_| Failure::usage(format!("-X `{name}` is no HTTP method")))?,
        None if args.data.is_some() => Method::POST,
        None => Method::GET,
    };
    let headers = args
        .headers
        .iter()
        .map(|header| read_header(header))
        .collect::<Result<Vec<_>, _>>()?;
    let data = args.data.as_deref().map(Data::open).transpose()?;
    let progress = Progress::new(!args.verbose && !args.silent, args.output.is_none());

    let mut builder = session::managed_identity(&args.client).await?;
    builder = with_rule(builder, &args)?;
    if args.verbose {
        builder = builder.on_leg(Arc::new(|report: &LegReport| {
            eprintln!("* {}", describe(report));
        }));
    }
    let client = builder.build()?;
    let mut request = client
        .request(method.clone(), &args.url)
        .timeouts(timeouts(&args));
    for (name, value) in headers {
        request = request.header(name, value);
    }
    if let Some(resource) = &args.resource {
        request = request.resource(resource);
    }
    if let Some(data) = data {
        request = send_data(request, data, &progress);
    }
    let response = request.send().await?;
    progress.clear();
    if args.verbose {
        show::exchange(&method, &args.url, &response);
    }
    let tls = response.tls_info();
    if args.fail && response.status().as_u16() >= 400 {
        return Err(refused(response, tls).await);
    }
    receive(response, &args, json, &progress).await
}

fn send_data(request: RequestBuilder, data: Data, progress: &Progress) -> RequestBuilder {
    match data {
        Data::Whole(bytes) => request.body(bytes),
        Data::Stream(reader) => request.body_stream(reader.counted_by(progress.sending())),
    }
}

/// What the options say about the host, if they say anything.
fn with_rule(
    builder: ManagedIdentityBuilder,
    args: &CallArgs,
) -> Result<ManagedIdentityBuilder, Failure> {
    if args.certificate.is_none() && args.max_tls.is_none() && !args.token_bound_header {
        return Ok(builder);
    }
    // What is wrong with the URL, the request itself says.
    let host = Url::parse(&args.url)
        .ok()
        .and_then(|url| url.host_str().map(str::to_owned))
        .unwrap_or_default();
    let mut rule = ResourceRule::new(&host);
    if let Some(resource) = &args.resource {
        rule = rule.resource(resource);
    }
    if let Some(when) = args.certificate {
        rule = rule.client_certificate(match when {
            AskedWhen::FirstHandshake => ClientCertificate::FirstHandshake,
            AskedWhen::OnDemand => ClientCertificate::OnDemand,
            AskedWhen::PostHandshake => ClientCertificate::PostHandshake,
        });
    }
    if let Some(version) = &args.max_tls {
        rule = rule.newest_tls(match version.as_str() {
            "1.2" => TlsVersion::Tls12,
            _ => TlsVersion::Tls13,
        });
    }
    if args.token_bound_header {
        rule = rule.token_bound_header();
    }
    Ok(builder.resource_rule(rule))
}

fn timeouts(args: &CallArgs) -> Timeouts {
    let mut timeouts = Timeouts::default();
    if let Some(seconds) = args.connect_timeout {
        timeouts = timeouts.connect(Duration::from_secs_f64(seconds));
    }
    if let Some(seconds) = args.max_time {
        timeouts = timeouts.total(Duration::from_secs_f64(seconds));
    }
    timeouts
}

/// Hands the answer's body on as it comes, as long as there is somebody to read it.
async fn receive(
    mut response: Response,
    args: &CallArgs,
    json: bool,
    progress: &Progress,
) -> Result<ExitCode, Failure> {
    let status = response.status().as_u16();
    let headers = show::headers(&response);
    let failed = |file: &std::path::Path, error| Failure::io(&file.display().to_string(), &error);
    let mut counter = progress.receiving(&response);
    if let Some(path) = &args.output {
        let mut file = File::create(path).map_err(|error| failed(path, error))?;
        while let Some(part) = response.chunk().await? {
            counter.count(part.len());
            file.write_all(&part).map_err(|error| failed(path, error))?;
        }
    } else if json {
        let content = response.bytes().await?;
        let text = String::from_utf8_lossy(&content);
        print_json(&json!({ "status": status, "headers": headers, "body": text }))?;
        return Ok(ExitCode::SUCCESS);
    } else {
        while let Some(part) = response.chunk().await? {
            counter.count(part.len());
            if !is_read(&part)? {
                return Ok(ExitCode::from(READER_GONE));
            }
        }
    }
    progress.clear();
    if json {
        print_json(&json!({ "status": status, "headers": headers, "body": null }))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Writes bytes to standard output as they are. `false`: nobody reads them any more.
fn is_read(bytes: &[u8]) -> Result<bool, Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(Failure::io("standard output", &error)),
    }
}

/// A status of 400 or above, where that is to be a failure.
async fn refused(mut response: Response, tls: Option<TlsInfo>) -> Failure {
    let status = response.status();
    let mut said = Vec::new();
    while let Ok(Some(part)) = response.chunk().await {
        said.extend_from_slice(&part);
        if said.len() >= SHOWN_OF_A_REFUSAL {
            said.truncate(SHOWN_OF_A_REFUSAL);
            break;
        }
    }
    let message = format!(
        "the resource answered {status}: {}",
        String::from_utf8_lossy(&said)
    );
    let not_asked =
        matches!(status.as_u16(), 401 | 403) && tls.is_some_and(|tls| !tls.certificate_requested);
    let remedy = if not_asked {
        "The server did not ask for the certificate, neither at first nor later: reach it past what ends TLS, or see --certificate."
    } else {
        "See the resource's answer."
    };
    Failure::new(Kind::Failed, "http_status", message, remedy)
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
