//! The command line, as clap reads it.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use keybond_keys::{SignatureScheme, StorePolicy, Strength};

/// An identity for workloads on Azure that cannot be stolen.
///
/// keybond holds the strongest private key this machine offers, has it certified by the Instance Metadata
/// Service, and uses it for tokens and connections that are worthless to anyone without the key.
#[derive(Debug, Parser)]
#[command(
    name = "keybond",
    version,
    after_help = "Exit codes: 0 ok, 1 failed, 2 usage, 3 refused by policy or floor, 4 unreachable.\n\
                  Example: keybond demo"
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What every verb understands.
#[derive(Debug, Args)]
pub(crate) struct Global {
    /// Print JSON for programs instead of text for people.
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// What to log to standard error: a level or a filter, as in `info` or `keybond=debug`.
    #[arg(
        long,
        global = true,
        env = "KEYBOND_LOG",
        hide_env_values = true,
        default_value = "warn,cryptoki=off",
        value_name = "FILTER"
    )]
    pub(crate) log: String,
}

/// How to find or make the key.
#[derive(Clone, Debug, Args)]
pub(crate) struct KeyArgs {
    /// The floor: software, hardware or keyguard. A key that was shown to be weaker is an error.
    #[arg(
        long,
        env = "KEYBOND_MIN_STRENGTH",
        hide_env_values = true,
        default_value = "software",
        value_name = "STRENGTH"
    )]
    pub(crate) min_strength: Strength,
    #[command(flatten)]
    pub(crate) place: KeyPlaceArgs,
}

/// Where the key is, and what it is called.
#[derive(Clone, Debug, Args)]
pub(crate) struct KeyPlaceArgs {
    /// Which key stores may be used: `tpm2,memory` (only these), `-memory` (not this one), `+tpm2` (required).
    #[arg(
        long,
        env = "KEYBOND_STORES",
        hide_env_values = true,
        default_value = "",
        hide_default_value = true,
        allow_hyphen_values = true,
        value_name = "STORES"
    )]
    pub(crate) stores: StorePolicy,
    /// Where keys and certificates are kept (default: $XDG_STATE_HOME/keybond, ~/.local/state/keybond, %LOCALAPPDATA%\keybond).
    #[arg(
        long,
        env = "KEYBOND_STATE_DIR",
        hide_env_values = true,
        value_name = "DIR"
    )]
    pub(crate) state_dir: Option<PathBuf>,
    /// Where the TPM is: `device:/dev/tpmrm0`, `unix:/path`, `tcp:host:port` or `off`.
    #[arg(
        long,
        env = "KEYBOND_TPM",
        hide_env_values = true,
        default_value = "device:/dev/tpmrm0",
        value_name = "ADDRESS"
    )]
    pub(crate) tpm: String,
    /// The PKCS#11 token to use, as a URI (RFC 7512) with `module-path`. The PIN comes from its `pin-source`,
    /// from KEYBOND_PKCS11_PIN, or is asked for on a terminal.
    #[cfg(feature = "pkcs11")]
    #[arg(
        long,
        env = "KEYBOND_PKCS11",
        hide_env_values = true,
        value_name = "URI"
    )]
    pub(crate) pkcs11: Option<keybond_keys::Pkcs11Uri>,
    /// The key's name.
    #[arg(
        long,
        default_value = "default",
        hide_default_value = true,
        value_name = "NAME"
    )]
    pub(crate) key_name: String,
    /// On Windows: use the KeyGuard key of MSAL.NET and MSAL Go, whatever its name here, and keep certificates
    /// where they find them.
    #[arg(
        long,
        env = "KEYBOND_INTEROP",
        hide_env_values = true,
        value_enum,
        value_name = "WHOM"
    )]
    pub(crate) interop: Option<Interop>,
}

/// With whom keys and certificates are shared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Interop {
    /// MSAL.NET and MSAL Go of the same user.
    Msal,
}

/// Which managed identity.
#[derive(Debug, Args)]
#[group(multiple = false)]
pub(crate) struct IdentityArgs {
    /// The client id of a user-assigned identity (default: the system-assigned identity).
    #[arg(long, value_name = "UUID")]
    pub(crate) client_id: Option<String>,
    /// The object id of a user-assigned identity.
    #[arg(long, value_name = "UUID")]
    pub(crate) object_id: Option<String>,
    /// The Azure resource id of a user-assigned identity.
    #[arg(long, value_name = "ID")]
    pub(crate) resource_id: Option<String>,
}

/// Whom to trust.
#[derive(Debug, Args)]
pub(crate) struct TrustArgs {
    /// A PEM file with certification authorities to trust besides the system's.
    #[arg(
        long,
        env = "KEYBOND_CA_FILE",
        hide_env_values = true,
        value_name = "FILE"
    )]
    pub(crate) ca_file: Option<PathBuf>,
}

/// Which identity, with which key, trusting whom: what a client needs.
#[derive(Debug, Args)]
pub(crate) struct ClientArgs {
    #[command(flatten)]
    pub(crate) identity: IdentityArgs,
    #[command(flatten)]
    pub(crate) key: KeyArgs,
    #[command(flatten)]
    pub(crate) trust: TrustArgs,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show what this machine offers: key stores with the cause of each refusal, and the identity source.
    #[command(
        after_help = "Exit codes: 0 if a managed identity can be used here, 3 if no key reaches the floor,\n\
                            4 if no identity source can be reached; with --bundle, too, however the tried way ends.\n\
                            Example: keybond doctor --json\n  \
                      keybond doctor --bundle ticket.json --try https://vault.azure.net"
    )]
    Doctor(DoctorArgs),
    /// Show what can be had here: the source, how strong a key, and whether bound tokens will work.
    #[command(
        after_help = "No key is made to find out, unless --make-key says so.\n\
                            Exit codes: 0 if bound tokens work here, 3 if only bearer tokens do, 4 if there is no\n\
                            identity source.\nExample: keybond capabilities --json"
    )]
    Capabilities(CapabilitiesArgs),
    /// Show the key that this machine would use.
    #[command(subcommand)]
    Key(KeyCommand),
    /// Make a proof of possession for one HTTP request.
    #[command(subcommand)]
    Pop(PopCommand),
    /// Print a certificate request for the held key, as the Instance Metadata Service expects it.
    #[command(
        after_help = "Example: keybond csr --client-id 11111111-1111-1111-1111-111111111111 \\\n  \
                      --tenant-id 22222222-2222-2222-2222-222222222222 --vm-id 33333333-3333-3333-3333-333333333333 \\\n  \
                      --pem | openssl req -verify -noout"
    )]
    Csr(CsrArgs),
    /// Show or renew the certificate of the held key.
    #[command(subcommand)]
    Cert(CertCommand),
    /// Get an access token that is bound to the held key, and print it.
    #[command(after_help = "Example: keybond token https://vault.azure.net --json")]
    Token(TokenArgs),
    /// Call a resource with a bound token, over mutual TLS with the same key.
    #[command(
        after_help = "Example: keybond call https://myvault.vault.azure.net/secrets/hello?api-version=7.4\n  \
                      tar cz . | keybond call -X PUT -d @- https://store.example/backup --resource https://store.example\n\
                      When the reader of standard output goes away (`| head`), the transfer ends with exit code 141."
    )]
    Call(CallArgs),
    /// Explain an error code: what it means, why it comes, what to do.
    #[command(after_help = "Example: keybond explain min_strength_not_met")]
    Explain {
        /// The code, as errors print it; all of them are listed if it is left out.
        code: Option<String>,
    },
    /// Run Azure on loopback: metadata service, token service, a vault.
    #[command(after_help = "Example: keybond emulate --state ~/.azure-on-loopback --print-env sh")]
    Emulate(EmulateArgs),
    /// Show the whole way of a bound token on loopback, and three attempts to use it when stolen.
    #[command(
        after_help = "Exit code 0 only if the honest call is served and all three thieves are refused.\n\
                            Example: keybond demo"
    )]
    Demo(DemoArgs),
}

/// `keybond doctor`.
#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    /// Write what a ticket needs to a new file (`-`: standard output): versions, this report, capabilities, names
    /// of the variables that are set, kept certificates, the log. No token, key or value of a variable is in it.
    #[arg(long, value_name = "NEW-FILE")]
    pub(crate) bundle: Option<PathBuf>,
    /// Go the whole way to a token for this resource, too, and tell every leg in the bundle. It makes a key, if
    /// there is none, and asks the services for a certificate and a token.
    #[arg(long = "try", value_name = "RESOURCE", requires = "bundle")]
    pub(crate) try_resource: Option<String>,
    #[command(flatten)]
    pub(crate) client: ClientArgs,
}

/// `keybond capabilities`.
#[derive(Debug, Args)]
pub(crate) struct CapabilitiesArgs {
    /// Make the key if there is none, so that its strength is shown and not only promised by its store.
    #[arg(long)]
    pub(crate) make_key: bool,
    #[command(flatten)]
    pub(crate) client: ClientArgs,
}

/// `keybond key`.
#[derive(Debug, Subcommand)]
pub(crate) enum KeyCommand {
    /// Find or make the key, prove it, and print what it was shown to be.
    #[command(after_help = "Example: keybond key show --min-strength hardware")]
    Show(KeyArgs),
    /// Sign standard input with the key, for diagnosis; the raw signature goes to standard output.
    #[command(after_help = "Example: echo -n hello | keybond key sign PS256 > signature")]
    Sign {
        /// The scheme: PS256, PS384, PS512, RS256, RS384 or RS512 (RFC 7518).
        #[arg(value_parser = scheme)]
        scheme: SignatureScheme,
        #[command(flatten)]
        key: KeyArgs,
    },
    /// Print the public key.
    #[command(after_help = "Example: keybond key public | openssl pkey -pubin -text -noout")]
    Public(KeyArgs),
    /// Make a new key, prove it, and use it from now on. The old one keeps working until the next rotation.
    #[command(after_help = "Example: keybond key rotate --min-strength hardware")]
    Rotate(KeyArgs),
    /// Delete the key from every store that has it. Its certificates are worthless afterwards.
    #[command(after_help = "Example: keybond key delete --yes")]
    Delete {
        /// Do not ask.
        #[arg(long)]
        yes: bool,
        #[command(flatten)]
        place: KeyPlaceArgs,
    },
}

/// `keybond pop`. Tokens are read from standard input: others can read command lines.
#[derive(Debug, Subcommand)]
pub(crate) enum PopCommand {
    /// Wrap the access token on standard input into a Signed HTTP Request, for `Authorization: PoP …`.
    #[command(after_help = "Example: keybond pop shr GET https://resource.example/items < token")]
    Shr(PopArgs),
    /// Make a DPoP proof (RFC 9449), for the header `DPoP`.
    #[command(after_help = "Example: keybond pop dpop POST https://server.example/token")]
    Dpop {
        /// Tie the proof to the access token on standard input (`ath`).
        #[arg(long)]
        with_token: bool,
        #[command(flatten)]
        args: PopArgs,
    },
}

/// What every proof needs.
#[derive(Debug, Args)]
pub(crate) struct PopArgs {
    /// The request's method.
    pub(crate) method: String,
    /// The request's URL.
    pub(crate) url: String,
    /// The nonce that the server gave.
    #[arg(long, value_name = "NONCE")]
    pub(crate) nonce: Option<String>,
    /// The signature scheme: PS256, PS384, PS512, RS256, RS384 or RS512 (RFC 7518).
    #[arg(long, default_value = "PS256", value_parser = scheme, value_name = "SCHEME")]
    pub(crate) scheme: SignatureScheme,
    #[command(flatten)]
    pub(crate) key: KeyArgs,
}

/// `keybond csr`.
#[derive(Debug, Args)]
pub(crate) struct CsrArgs {
    /// The client id of the identity (the subject's CN).
    #[arg(long, value_name = "UUID")]
    pub(crate) client_id: String,
    /// The tenant id (the subject's DC).
    #[arg(long, value_name = "UUID")]
    pub(crate) tenant_id: String,
    /// The virtual machine's id.
    #[arg(long, value_name = "ID", required_unless_present = "vmss_id")]
    pub(crate) vm_id: Option<String>,
    /// The scale set's id.
    #[arg(long, value_name = "ID")]
    pub(crate) vmss_id: Option<String>,
    /// PEM (the default on a terminal and elsewhere).
    #[arg(long, group = "form")]
    pub(crate) pem: bool,
    /// Raw DER.
    #[arg(long, group = "form")]
    pub(crate) der: bool,
    /// One line of base64, as it goes to the metadata service.
    #[arg(long, group = "form")]
    pub(crate) base64: bool,
    #[command(flatten)]
    pub(crate) key: KeyArgs,
}

/// `keybond cert`.
#[derive(Debug, Subcommand)]
pub(crate) enum CertCommand {
    /// Find the certificate that was kept, or get one, and print what it says and where it is.
    #[command(after_help = "Example: keybond cert show --json")]
    Show(ClientArgs),
    /// Have the same key certified anew and print the new certificate. Tokens of the old one stay valid where
    /// they are in use.
    #[command(after_help = "Example: keybond cert renew")]
    Renew(ClientArgs),
}

/// `keybond token`.
#[derive(Debug, Args)]
pub(crate) struct TokenArgs {
    /// The resource the token is for, as a URI or a scope.
    pub(crate) resource: String,
    /// Where bound tokens cannot be had, take a bearer token: bound to nothing, whoever steals it can use it.
    #[arg(long)]
    pub(crate) allow_bearer: bool,
    #[command(flatten)]
    pub(crate) client: ClientArgs,
}

/// `keybond call`.
#[derive(Debug, Args)]
pub(crate) struct CallArgs {
    /// The URL to call (https).
    pub(crate) url: String,
    /// The HTTP method; GET, or POST if there is a body.
    #[arg(short = 'X', long = "request", value_name = "METHOD")]
    pub(crate) method: Option<String>,
    /// A header to send, `Name: value`; may be repeated.
    #[arg(short = 'H', long = "header", value_name = "HEADER")]
    pub(crate) headers: Vec<String>,
    /// The body to send; `@file` reads it from a file, `@-` from standard input.
    #[arg(short = 'd', long = "data", value_name = "DATA")]
    pub(crate) data: Option<String>,
    /// Where to write the body of the answer (default: standard output).
    #[arg(short = 'o', long = "output", value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    /// The resource the token is for (default: derived from the URL's host).
    #[arg(long, value_name = "URI")]
    pub(crate) resource: Option<String>,
    /// When the server asks for the client certificate (default: as its host or resource is known to).
    #[arg(long, value_name = "WHEN")]
    pub(crate) certificate: Option<AskedWhen>,
    /// The newest TLS version to offer: 1.2 or 1.3.
    #[arg(long, value_name = "VERSION", value_parser = ["1.2", "1.3"])]
    pub(crate) max_tls: Option<String>,
    /// Announce the bound token to the server (`x-ms-tokenboundauth: true`), as vaults need it.
    #[arg(long)]
    pub(crate) token_bound_header: bool,
    /// Give up when no connection is made after this many seconds, the key's signature included.
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub(crate) connect_timeout: Option<f64>,
    /// Give up after this many seconds, whatever is going on.
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub(crate) max_time: Option<f64>,
    /// Fail (exit code 1) if the answer's status is 400 or above.
    #[arg(long)]
    pub(crate) fail: bool,
    /// Do not show how far a long transfer is. It is shown on a terminal only.
    #[arg(short = 's', long)]
    pub(crate) silent: bool,
    /// Show the legs, their times and the facts about each connection on standard error.
    #[arg(short = 'v', long)]
    pub(crate) verbose: bool,
    #[command(flatten)]
    pub(crate) client: ClientArgs,
}

/// For `--certificate`.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum AskedWhen {
    /// In the first handshake.
    FirstHandshake,
    /// When it has read the request, by a TLS 1.2 renegotiation.
    OnDemand,
    /// When it has read the request, under TLS 1.3 (not supported).
    PostHandshake,
}

/// `keybond emulate`.
#[derive(Debug, Args)]
pub(crate) struct EmulateArgs {
    /// A folder that keeps the certification authority, keys and secrets over a restart.
    #[arg(long, value_name = "DIR")]
    pub(crate) state: Option<PathBuf>,
    /// Print only the lines that point a client here, for this shell.
    #[arg(long, value_name = "SHELL", num_args = 0..=1, default_missing_value = "sh")]
    pub(crate) print_env: Option<ShellArg>,
    /// Ports of metadata service, token service, vault and renegotiating vault; 0, which the last
    /// one may leave out, lets the system choose.
    #[arg(long, value_name = "IMDS,STS,VAULT[,RENEG]", default_value = "0,0,0", value_parser = ports)]
    pub(crate) ports: (u16, u16, u16, u16),
    /// A file that says what happens when, one event a line, as in `after 10m: 410 for 60s`.
    #[arg(long, value_name = "FILE")]
    pub(crate) scenario: Option<PathBuf>,
}

/// Shells for `--print-env`.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum ShellArg {
    /// POSIX shells.
    Sh,
    /// PowerShell.
    Powershell,
    /// `docker run` options.
    Docker,
}

/// `keybond demo`.
#[derive(Debug, Args)]
pub(crate) struct DemoArgs {
    #[command(flatten)]
    pub(crate) key: KeyArgs,
    /// Keep the demo's keys in a new directory, for other programs to try them; they are thrown away otherwise.
    #[arg(long, value_name = "NEW-DIR")]
    pub(crate) keep: Option<PathBuf>,
}

fn seconds(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|seconds| (0.001..=1e6).contains(seconds))
        .ok_or_else(|| "expected a number of seconds from 0.001 to a million".into())
}

fn scheme(name: &str) -> Result<SignatureScheme, String> {
    SignatureScheme::from_jose_name(name)
        .ok_or_else(|| "expected PS256, PS384, PS512, RS256, RS384 or RS512".into())
}

fn ports(text: &str) -> Result<(u16, u16, u16, u16), String> {
    let parsed: Vec<u16> = text
        .split(',')
        .map_while(|port| port.trim().parse().ok())
        .collect();
    match parsed[..] {
        [imds, sts, vault] if text.split(',').count() == 3 => Ok((imds, sts, vault, 0)),
        [imds, sts, vault, renegotiating] if text.split(',').count() == 4 => {
            Ok((imds, sts, vault, renegotiating))
        }
        _ => Err("expected three or four port numbers separated by commas".into()),
    }
}
