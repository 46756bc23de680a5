//! Every source of bearer tokens: what it is asked, with which secret, and what is refused before and after.
#![allow(clippy::unwrap_used)]

mod support;

use std::{
    fs,
    path::Path,
    sync::{Arc, Mutex},
    time::{Duration, UNIX_EPOCH},
};

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use keybond::{Clock as _, Error, Identity, Leg, ManagedIdentityBuilder, Source, TokenType, tls};
use keybond_emulator::Emulator;
use serde_json::json;
use support::{
    Bench, CLIENT, NOW, OTHER, RESOURCE,
    server::{Asked, Handler, Reply, Server},
};
use tempfile::TempDir;
use tokio::{net::TcpListener, sync::Semaphore};

const SECRET: &str = "environment-secret";

/// A client in some surroundings, and one server that stands for whatever is asked.
struct Place {
    bench: Bench,
    server: Server,
    root: TempDir,
    replies: Arc<Mutex<Handler>>,
}

impl Place {
    async fn new() -> Self {
        let replies: Arc<Mutex<Handler>> = Arc::new(Mutex::new(Arc::new(|_| token())));
        let handler = Arc::clone(&replies);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let answer: Handler = Arc::new(move |asked| {
            let handler = Arc::clone(&*handler.lock().unwrap());
            handler(asked)
        });
        Self {
            bench: Bench::new().await,
            server: Server::start(listener, answer).await,
            root: TempDir::new().unwrap(),
            replies,
        }
    }

    /// The surroundings that these variables make; `{}` stands for the server.
    async fn with(variables: &[(&str, &str)]) -> Self {
        let place = Self::new().await;
        for (name, value) in variables {
            let value = value.replace("{}", &place.server.address.to_string());
            place.bench.env.set(name, &value);
        }
        place
    }

    fn answer(&self, handler: impl Fn(&Asked) -> Reply + Send + Sync + 'static) {
        *self.replies.lock().unwrap() = Arc::new(handler);
    }

    fn builder(&self) -> ManagedIdentityBuilder {
        self.bench.placeless().filesystem_root(self.root.path())
    }

    async fn ask(&self, identity: Identity) -> Result<Arc<keybond::BearerToken>, Error> {
        let client = self.builder().identity(identity).build().unwrap();
        client.bearer_token(RESOURCE).await
    }

    /// The one request that was sent.
    fn asked(&self) -> Asked {
        let log = self.server.log();
        assert_eq!(log.len(), 1, "{log:?}");
        log[0].clone()
    }
}

fn token() -> Reply {
    let expires = NOW.as_secs() + 3600;
    Reply::json(&json!({
        "access_token": "header.claims.SIGNATURE",
        "expires_on": expires.to_string(),
        "resource": RESOURCE,
        "token_type": "Bearer",
    }))
}

fn client(id: &str) -> Identity {
    Identity::client_id(id).unwrap()
}

fn object(id: &str) -> Identity {
    Identity::object_id(id).unwrap()
}

fn by_resource() -> Identity {
    Identity::resource_id("/subscriptions/s/x").unwrap()
}

const APP: &[(&str, &str)] = &[
    ("IDENTITY_ENDPOINT", "http://{}/msi/token"),
    ("IDENTITY_HEADER", SECRET),
];
const ML: &[(&str, &str)] = &[
    ("MSI_ENDPOINT", "http://{}/msi/token"),
    ("MSI_SECRET", SECRET),
    ("DEFAULT_IDENTITY_CLIENT_ID", CLIENT),
];
const SHELL: &[(&str, &str)] = &[("MSI_ENDPOINT", "http://{}/oauth2/token")];
const ARC: &[(&str, &str)] = &[
    (
        "IDENTITY_ENDPOINT",
        "http://{}/metadata/identity/oauth2/token",
    ),
    ("IMDS_ENDPOINT", "http://{}"),
];

const FABRIC_LEAF: &[u8] = b"the cluster's certificate";

async fn fabric() -> Place {
    let place = Place::with(&[
        (
            "IDENTITY_ENDPOINT",
            "https://{}/metadata/identity/oauth2/token",
        ),
        ("IDENTITY_HEADER", SECRET),
    ])
    .await;
    let hash: String = digest(&SHA1_FOR_LEGACY_USE_ONLY, FABRIC_LEAF)
        .as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    place.bench.env.set("IDENTITY_SERVER_THUMBPRINT", &hash);
    *place.bench.tls.server_leaf.lock().unwrap() = FABRIC_LEAF.to_vec();
    place
}

#[tokio::test]
async fn app_service_is_asked_as_published() {
    for (identity, selector) in [
        (Identity::SystemAssigned, String::new()),
        (client(CLIENT), format!("&client_id={CLIENT}")),
        (object(OTHER), format!("&object_id={OTHER}")),
        (by_resource(), "&mi_res_id=%2Fsubscriptions%2Fs%2Fx".into()),
    ] {
        let place = Place::with(APP).await;
        let token = place.ask(identity).await.unwrap();
        assert_eq!(token.source(), Source::AppService);
        assert_eq!(token.token_type(), TokenType::Bearer);
        assert_eq!(token.secret(), "header.claims.SIGNATURE");
        assert_eq!(
            token.expires_on(),
            UNIX_EPOCH + NOW + Duration::from_secs(3600)
        );
        let asked = place.asked();
        assert_eq!(asked.method, "GET");
        assert_eq!(
            asked.target,
            format!(
                "/msi/token?api-version=2019-08-01&resource=https%3A%2F%2Fvault.azure.net{selector}"
            )
        );
        assert_eq!(asked.header("x-identity-header"), Some(SECRET));
        assert_eq!(asked.header("metadata"), None);
        assert_eq!(asked.header("x-ms-client-request-id").unwrap().len(), 36);
    }
}

#[tokio::test]
async fn machine_learning_is_asked_by_client_id_only() {
    for (identity, id) in [(Identity::SystemAssigned, CLIENT), (client(OTHER), OTHER)] {
        let place = Place::with(ML).await;
        let token = place.ask(identity).await.unwrap();
        assert_eq!(token.source(), Source::MachineLearning);
        let asked = place.asked();
        assert_eq!(
            asked.target,
            format!(
                "/msi/token?api-version=2017-09-01&resource=https%3A%2F%2Fvault.azure.net&clientid={id}"
            )
        );
        assert_eq!(asked.header("secret"), Some(SECRET));
        assert_eq!(asked.header("metadata"), Some("true"));
    }
    let place = Place::with(ML).await;
    for identity in [object(OTHER), by_resource()] {
        let error = place.ask(identity).await.unwrap_err();
        assert_eq!(error.code(), "invalid_managed_identity_id_type");
        assert_eq!(
            (error.field(), error.leg()),
            (Some("identity"), Some(Leg::Bearer))
        );
    }
    assert!(place.server.log().is_empty());
}

#[tokio::test]
async fn cloud_shell_is_asked_with_a_form() {
    let place = Place::with(SHELL).await;
    let token = place.ask(Identity::SystemAssigned).await.unwrap();
    assert_eq!(token.source(), Source::CloudShell);
    let asked = place.asked();
    assert_eq!((&*asked.method, &*asked.target), ("POST", "/oauth2/token"));
    assert_eq!(asked.body, b"resource=https%3A%2F%2Fvault.azure.net");
    assert_eq!(asked.header("metadata"), Some("true"));
    assert_eq!(
        asked.header("content-type"),
        Some("application/x-www-form-urlencoded")
    );
}

#[tokio::test]
async fn service_fabric_is_asked_over_tls_with_the_named_certificate() {
    for (identity, selector) in [
        (Identity::SystemAssigned, String::new()),
        (object(OTHER), format!("&principalId={OTHER}")),
    ] {
        let place = fabric().await;
        let token = place.ask(identity).await.unwrap();
        assert_eq!(token.source(), Source::ServiceFabric);
        let asked = place.asked();
        assert_eq!(
            asked.target,
            format!(
                "/metadata/identity/oauth2/token?api-version=2020-05-01&resource=https%3A%2F%2Fvault.azure.net{selector}"
            )
        );
        assert_eq!(asked.header("secret"), Some(SECRET));
        let shown = place.bench.tls.shown.lock().unwrap();
        assert_eq!(shown[0].leg, tls::Leg::Plain);
        assert!(shown[0].identity.is_none(), "no client certificate");
    }
    let place = fabric().await;
    for identity in [client(OTHER), by_resource()] {
        let error = place.ask(identity).await.unwrap_err();
        assert_eq!(
            error.code(),
            "user_assigned_managed_identity_not_configurable_at_runtime"
        );
    }
}

#[tokio::test]
async fn service_fabric_is_told_what_the_client_understands() {
    let place = fabric().await;
    let builder = place.builder().client_capabilities(["cp1", "cp2"]);
    builder
        .build()
        .unwrap()
        .bearer_token(RESOURCE)
        .await
        .unwrap();
    assert!(place.asked().target.ends_with("&xms_cc=cp1%2Ccp2"));
}

/// The vector that is published for it.
const REFUSED: (&str, &str) = (
    "test_token",
    "cc0af97287543b65da2c7e1476426021826cab166f1e063ed012b855ff819656",
);

/// The source keeps tokens: it gives the first one until it is told that this one was refused.
fn keeps_a_token(asked: &Asked) -> Reply {
    let told = asked.target.contains(REFUSED.1);
    let secret = if told { "another" } else { REFUSED.0 };
    token().with_member("access_token", json!(secret))
}

#[tokio::test]
async fn service_fabric_is_told_which_token_a_resource_refused() {
    let place = fabric().await;
    place.answer(keeps_a_token);
    let builder = place.builder().client_capabilities(["cp1"]);
    let client = builder.build().unwrap();
    let refused = client.bearer_token(RESOURCE).await.unwrap();
    assert_eq!(refused.secret(), REFUSED.0);

    let callers: Vec<_> = (0..20)
        .map(|_| {
            let (client, refused) = (client.clone(), Arc::clone(&refused));
            tokio::spawn(async move { client.bearer_token_after_challenge(&refused).await })
        })
        .collect();
    for caller in callers {
        assert_eq!(caller.await.unwrap().unwrap().secret(), "another");
    }
    let log = place.server.log();
    assert_eq!(log.len(), 2, "one for all: {log:?}");
    assert_eq!(
        log[1].target,
        format!(
            "/metadata/identity/oauth2/token?api-version=2020-05-01&resource=https%3A%2F%2Fvault.azure.net\
             &xms_cc=cp1&token_sha256_to_refresh={}",
            REFUSED.1
        )
    );
    // It took the other one's place; who comes late with the old one takes it, too.
    let cached = client.bearer_token(RESOURCE).await.unwrap();
    assert_eq!(cached.secret(), "another");
    let late = client.bearer_token_after_challenge(&refused).await.unwrap();
    assert_eq!(late.secret(), "another");
    assert_eq!(place.server.log().len(), 2);
}

/// The run that is joined says nothing of the refused token, and gets it from the source once more.
#[tokio::test]
async fn whoever_joins_a_refresh_says_itself_which_token_was_refused() {
    let place = fabric().await;
    place.answer(keeps_a_token);
    let client = place.builder().build().unwrap();
    let refused = client.bearer_token(RESOURCE).await.unwrap();
    let gate = Arc::new(Semaphore::new(0));
    let held = Arc::clone(&gate);
    place.answer(move |asked| Reply::Gated(Arc::clone(&held), Box::new(keeps_a_token(asked))));
    place.bench.clock.advance(Duration::from_secs(1801));
    client.bearer_token(RESOURCE).await.unwrap();
    let mut asking = std::pin::pin!(client.bearer_token_after_challenge(&refused));
    tokio::select! {
        biased;
        _ = &mut asking => unreachable!("the gate is closed"),
        () = std::future::ready(()) => {}
    }
    gate.add_permits(9);
    assert_eq!(asking.await.unwrap().secret(), "another");
    assert_eq!(place.server.log().len(), 3);
}

#[tokio::test]
async fn other_sources_are_asked_anew_and_told_nothing() {
    for variables in [APP, ML] {
        let place = Place::with(variables).await;
        place.answer(keeps_a_token);
        let client = place.builder().build().unwrap();
        let refused = client.bearer_token(RESOURCE).await.unwrap();
        let new = client.bearer_token_after_challenge(&refused).await.unwrap();
        assert_eq!(new.secret(), REFUSED.0, "what the source keeps");
        let log = place.server.log();
        assert_eq!(log.len(), 2);
        assert_eq!(log[0].target, log[1].target);
    }
}

#[tokio::test]
async fn service_fabrics_secret_goes_to_no_other_server() {
    let place = fabric().await;
    *place.bench.tls.server_leaf.lock().unwrap() = b"another certificate".to_vec();
    let error = place.ask(Identity::SystemAssigned).await.unwrap_err();
    assert_eq!(error.code(), "tls_server_host_mismatch");
    assert!(place.server.log().is_empty());

    let place = fabric().await;
    place
        .bench
        .env
        .set("IDENTITY_ENDPOINT", "http://127.0.0.1:1/token");
    let error = place.ask(Identity::SystemAssigned).await.unwrap_err();
    assert_eq!(error.code(), "invalid_managed_identity_endpoint");
}

/// An Arc agent whose challenge names `realm`.
async fn arc(realm: &str) -> Place {
    let place = Place::with(ARC).await;
    let challenge = format!("Basic realm={realm}");
    place.answer(move |asked| match asked.header("authorization") {
        Some("Basic the key") => token(),
        Some(_) => Reply::status(403, ""),
        None => Reply::status(401, "").with_header("www-authenticate", &challenge),
    });
    place
}

fn key_file(root: &Path, content: &[u8]) {
    let directory = root.join("var/opt/azcmagent/tokens");
    fs::create_dir_all(&directory).unwrap();
    fs::write(directory.join("one.key"), content).unwrap();
}

const KEY_FILE: &str = "/var/opt/azcmagent/tokens/one.key";

#[tokio::test]
async fn azure_arc_is_answered_with_the_content_of_its_file() {
    let place = arc(KEY_FILE).await;
    key_file(place.root.path(), b"the key\n");
    let token = place.ask(Identity::SystemAssigned).await.unwrap();
    assert_eq!(token.source(), Source::AzureArc);
    let log = place.server.log();
    assert_eq!(log.len(), 2);
    for asked in &log {
        assert_eq!(
            asked.target,
            "/metadata/identity/oauth2/token?api-version=2020-06-01&resource=https%3A%2F%2Fvault.azure.net"
        );
        assert_eq!(asked.header("metadata"), Some("true"));
    }
    assert_eq!(log[0].header("authorization"), None);
}

#[tokio::test]
async fn azure_arc_cannot_make_us_send_another_file() {
    let longest = vec![b'k'; 4097];
    for (realm, content, text) in [
        ("/etc/one.key", &b"the key"[..], "outside"),
        (
            "/var/opt/azcmagent/tokens/../../../../etc/one.key",
            b"the key",
            "outside",
        ),
        ("/var/opt/azcmagent/tokens/one.pem", b"the key", ".key"),
        (
            "/var/opt/azcmagent/tokens/two.key",
            b"the key",
            "cannot be read",
        ),
        (KEY_FILE, &longest[..], "longer than 4096"),
        (KEY_FILE, b" \n", "empty"),
    ] {
        let place = arc(realm).await;
        key_file(place.root.path(), content);
        let etc = place.root.path().join("etc");
        fs::create_dir_all(&etc).unwrap();
        fs::write(etc.join("one.key"), "the key").unwrap();
        let error = place.ask(Identity::SystemAssigned).await.unwrap_err();
        assert_eq!(error.code(), "managed_identity_request_failed");
        assert!(error.to_string().contains(text), "{realm}: {error}");
        assert_eq!(place.server.log().len(), 1, "{realm}: nothing was sent");
    }
}

#[cfg(unix)]
#[tokio::test]
async fn azure_arcs_file_must_not_be_a_link() {
    let place = arc(KEY_FILE).await;
    let directory = place.root.path().join("var/opt/azcmagent/tokens");
    fs::create_dir_all(&directory).unwrap();
    fs::write(place.root.path().join("elsewhere"), "the key").unwrap();
    std::os::unix::fs::symlink(
        place.root.path().join("elsewhere"),
        directory.join("one.key"),
    )
    .unwrap();
    let error = place.ask(Identity::SystemAssigned).await.unwrap_err();
    assert!(error.to_string().contains("a link"), "{error}");
    assert_eq!(place.server.log().len(), 1);
}

#[tokio::test]
async fn a_file_of_exactly_4096_bytes_is_read_and_a_challenge_without_a_header_is_refused() {
    let place = arc(KEY_FILE).await;
    let mut padded = b"the key".to_vec();
    padded.resize(4096, b'\n');
    key_file(place.root.path(), &padded);
    place.ask(Identity::SystemAssigned).await.unwrap();

    let place = Place::with(ARC).await;
    place.answer(|_| Reply::status(401, ""));
    let error = place.ask(Identity::SystemAssigned).await.unwrap_err();
    assert!(error.to_string().contains("WWW-Authenticate"), "{error}");
}

#[tokio::test]
async fn arc_and_cloud_shell_know_no_user_assigned_identities() {
    for variables in [ARC, SHELL] {
        let place = Place::with(variables).await;
        for identity in [client(CLIENT), object(OTHER), by_resource()] {
            let error = place.ask(identity).await.unwrap_err();
            assert_eq!(error.code(), "user_assigned_managed_identity_not_supported");
        }
        assert!(place.server.log().is_empty());
    }
}

#[tokio::test]
async fn the_source_is_told_by_its_variables_and_bound_tokens_are_refused_there() {
    for (variables, source) in [
        (APP, Source::AppService),
        (ML, Source::MachineLearning),
        (SHELL, Source::CloudShell),
        (ARC, Source::AzureArc),
    ] {
        let place = Place::with(variables).await;
        let client = place.builder().build().unwrap();
        let report = client.source_probe().await.unwrap();
        assert_eq!((report.source, report.certain), (source, true));
        assert!(report.endpoint.contains(&place.server.address.to_string()));
        for error in [
            client.token(RESOURCE).await.unwrap_err(),
            client.credential().await.unwrap_err(),
        ] {
            assert_eq!(error.code(), "mtls_pop_not_supported_for_environment");
            assert!(error.to_string().contains(source.name()), "{error}");
        }
        assert!(place.server.log().is_empty(), "nothing was sent");
    }
}

#[tokio::test]
async fn an_installed_arc_agent_is_a_source_and_a_named_metadata_service_goes_before_all() {
    let place = Place::new().await;
    let agent = place.root.path().join("opt/azcmagent/bin");
    fs::create_dir_all(&agent).unwrap();
    fs::write(agent.join("himds"), "").unwrap();
    let client = place.builder().build().unwrap();
    let report = client.source_probe().await.unwrap();
    assert_eq!(report.source, Source::AzureArc);
    assert!(
        report.endpoint.starts_with("http://127.0.0.1:40342/"),
        "{}",
        report.endpoint
    );

    let named = place.builder().imds_endpoint(place.bench.azure.imds());
    let token = named.build().unwrap().token(RESOURCE).await.unwrap();
    assert_eq!(token.token_type(), TokenType::MtlsPop);
}

#[tokio::test]
async fn an_endpoint_in_clear_must_be_near() {
    for (value, text) in [
        ("http://example.com/token", "clear"),
        ("http://8.8.8.8/token", "clear"),
        ("ftp://127.0.0.1/token", "neither http nor https"),
        ("http://me:pw@127.0.0.1/", "user name"),
        ("somewhere", "no URL"),
    ] {
        let place = Place::with(&[("MSI_ENDPOINT", value)]).await;
        let error = place.ask(Identity::SystemAssigned).await.unwrap_err();
        assert_eq!(error.code(), "invalid_managed_identity_endpoint", "{value}");
        assert_eq!(error.field(), Some("MSI_ENDPOINT"));
        assert!(error.to_string().contains(text), "{error}");
        assert!(!error.to_string().contains("pw@"), "{error}");
    }
}

#[tokio::test]
async fn an_answer_that_does_not_fit_is_refused() {
    for (member, value, code) in [
        ("token_type", json!("mtls_pop"), "token_type_mismatch"),
        ("client_id", json!(OTHER), "identity_mismatch"),
        ("access_token", json!("a b"), "response_field_invalid"),
        ("access_token", json!(null), "response_field_missing"),
        ("expires_on", json!("soon"), "response_field_invalid"),
        ("expires_on", json!(1), "response_field_invalid"),
        (
            "expires_on",
            json!(NOW.as_secs() + 99 * 86_400),
            "response_field_invalid",
        ),
    ] {
        let place = Place::with(APP).await;
        let named = value.clone();
        place.answer(move |_| token().with_member(member, named.clone()));
        let error = place.ask(client(CLIENT)).await.unwrap_err();
        assert_eq!(error.code(), code, "{member} {value}");
        assert_eq!(error.leg(), Some(Leg::Bearer));
    }
    let place = Place::with(APP).await;
    place.answer(|_| Reply::status(400, r#"{"error":"invalid_request","message":"no such id"}"#));
    let error = place.ask(Identity::SystemAssigned).await.unwrap_err();
    assert_eq!(error.code(), "managed_identity_request_failed");
    assert!(error.to_string().contains("no such id"), "{error}");
}

#[tokio::test]
async fn a_bearer_token_is_cached_fetched_once_and_never_printed() {
    let place = Place::with(APP).await;
    let gate = Arc::new(Semaphore::new(0));
    let held = Arc::clone(&gate);
    place.answer(move |_| Reply::Gated(Arc::clone(&held), Box::new(token())));
    let client = place.builder().build().unwrap();
    let ask = || {
        let client = client.clone();
        tokio::spawn(async move { client.bearer_token(RESOURCE).await })
    };
    let (one, two) = (ask(), ask());
    gate.add_permits(9);
    let (one, two) = (one.await.unwrap().unwrap(), two.await.unwrap().unwrap());
    assert!(Arc::ptr_eq(&one, &two));
    assert_eq!(place.server.log().len(), 1);
    assert!(!format!("{one:?} {one}").contains("SIGNATURE"));

    place.bench.clock.advance(Duration::from_secs(3600));
    client.bearer_token(RESOURCE).await.unwrap_err();
    assert_eq!(place.server.log().len(), 2, "expired: asked again");
}

#[tokio::test]
async fn version_1_of_the_metadata_service_gives_bearer_tokens_even_if_bound_ones_are_off() {
    let place = Place::new().await;
    let clock = Arc::clone(&place.bench.clock);
    let azure = Emulator::builder()
        .clock(Arc::new(move || clock.now()))
        .start()
        .await
        .unwrap();
    place
        .bench
        .env
        .set("AZURE_POD_IDENTITY_AUTHORITY_HOST", &azure.imds_url());
    place.bench.env.set("MSAL_MI_DISABLE_IMDS_V2", "true");
    let client = place.builder().build().unwrap();
    let token = client.bearer_token(RESOURCE).await.unwrap();
    assert_eq!(token.source(), Source::ImdsV1);
    assert_eq!(token.secret().split('.').count(), 3);
    assert!(token.expires_on() > azure.now());
    let error = client.token(RESOURCE).await.unwrap_err();
    assert_eq!(error.code(), "mtls_pop_administratively_disabled");
}

#[tokio::test]
async fn version_1_is_asked_by_its_own_names() {
    for (identity, selector) in [
        (Identity::SystemAssigned, String::new()),
        (client(CLIENT), format!("&client_id={CLIENT}")),
        (object(OTHER), format!("&object_id={OTHER}")),
        (by_resource(), "&msi_res_id=%2Fsubscriptions%2Fs%2Fx".into()),
    ] {
        let place = Place::with(&[("AZURE_POD_IDENTITY_AUTHORITY_HOST", "http://{}")]).await;
        place.ask(identity).await.unwrap();
        let asked = place.asked();
        assert_eq!(
            asked.target,
            format!(
                "/metadata/identity/oauth2/token?api-version=2018-02-01&resource=https%3A%2F%2Fvault.azure.net{selector}"
            )
        );
        assert_eq!(asked.header("metadata"), Some("true"));
        assert!(asked.header("x-client-sku").is_some() && asked.header("x-client-ver").is_some());
    }
}
