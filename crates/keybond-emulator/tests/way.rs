//! The whole way from metadata to a secret, and what stops a thief on it.
#![allow(clippy::unwrap_used)]

mod support;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use keybond_emulator::{Emulator, Profile, Shell};
use serde_json::Value;
use support::{Client, METADATA, REQUEST_ID, csr::ClientKey};

fn claims(token: &str) -> Value {
    let part = token.split('.').nth(1).unwrap();
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap()
}

fn thumbprint(der: &[u8]) -> String {
    use aws_lc_rs::digest;
    URL_SAFE_NO_PAD.encode(digest::digest(&digest::SHA256, der))
}

#[tokio::test]
async fn a_bound_token_opens_the_vault_over_tls_1_2_and_1_3() {
    let azure = Emulator::builder().start().await.unwrap();
    let client = Client::new(&azure);
    let identity = client.system();
    let credential = client.enrol("", &ClientKey::new()).await;
    assert_eq!(credential.issued["client_id"], identity.client_id.as_str());
    assert_eq!(credential.issued["tenant_id"], azure.tenant_id());
    assert_eq!(credential.issued["identity_type"], "SystemAssigned");
    assert_eq!(
        credential.issued["mtls_authentication_endpoint"],
        azure.sts_url()
    );

    for (lowest, highest) in [("--tlsv1.2", "1.2"), ("--tlsv1.3", "1.3")] {
        let version = [lowest, "--tls-max", highest];
        let form = client.form(identity, "https://vault.azure.net/.default", "mtls_pop");
        let answer = client
            .ask_token(Some(&credential), &form, &version)
            .await
            .unwrap();
        let answer = answer.json();
        assert_eq!(answer["token_type"], "mtls_pop");
        assert_eq!(answer["expires_in"], 86_399);
        assert_eq!(answer["refresh_in"], 43_199);
        let token = answer["access_token"].as_str().unwrap();
        let claims = claims(token);
        assert_eq!(claims["cnf"]["x5t#S256"], thumbprint(&credential.der));
        assert_eq!(claims["aud"], "https://vault.azure.net");
        assert_eq!(claims["appid"], identity.client_id.as_str());
        assert_eq!(claims["oid"], identity.object_id.as_str());
        assert_eq!(claims["tid"], azure.tenant_id());
        assert!(claims["xms_tb"].is_string());
        assert!(
            claims["iss"]
                .as_str()
                .unwrap()
                .starts_with("https://keybond.invalid/emulator/")
        );

        let secret = client
            .secret(Some(&credential), token, &version)
            .await
            .unwrap();
        assert_eq!(secret.status, 200, "{}", secret.json());
        assert_eq!(secret.json()["value"], "opened by a bound token");
        assert!(
            secret.json()["id"]
                .as_str()
                .unwrap()
                .starts_with(&format!("{}/secrets/demo/", azure.vault_url()))
        );
    }
    let counters = azure.counters();
    assert_eq!(
        (
            counters.metadata,
            counters.issue,
            counters.token,
            counters.vault
        ),
        (1, 1, 2, 2)
    );
}

#[tokio::test]
async fn a_stolen_token_opens_nothing() {
    let azure = Emulator::builder().start().await.unwrap();
    let client = Client::new(&azure);
    let key = ClientKey::new();
    let honest = client.enrol("", &key).await;
    let renewed = client.enrol("", &key).await;
    let selector = format!("&client_id={}", client.user().client_id);
    let other = client.enrol(&selector, &ClientKey::new()).await;
    let token = client.token(client.system(), &honest).await;

    for (thief, says) in [
        (None, "Client certificate required for using MTLS_POP token"),
        (Some(&other), "[MtlsCnfClaimRequestDataValidationFailed]"),
        (Some(&renewed), "[MtlsCnfClaimRequestDataValidationFailed]"),
    ] {
        let answer = client.secret(thief, &token, &[]).await.unwrap();
        assert_eq!(answer.status, 401);
        assert!(answer.description().contains(says), "{}", answer.json());
        let challenge = answer.header("www-authenticate").unwrap();
        assert!(
            challenge.contains("resource=\"https://vault.azure.net\""),
            "{challenge}"
        );
    }
    // Without the header a vault would not have asked for the certificate.
    let url = format!("{}/secrets/demo?api-version=7.4", azure.vault_url());
    let authorization = format!("Authorization: mtls_pop {token}");
    let answer = client
        .tls(&url, Some(&honest), &["-H", &authorization])
        .await
        .unwrap();
    assert_eq!(answer.status, 401);
    assert!(
        answer
            .description()
            .contains("MtlsMissingClientCertificate")
    );

    let answer = client.secret(Some(&honest), &token, &[]).await.unwrap();
    assert_eq!(answer.status, 200);
}

#[tokio::test]
async fn the_vault_refuses_every_other_token() {
    let azure = Emulator::builder().start().await.unwrap();
    let client = Client::new(&azure);
    let credential = client.enrol("", &ClientKey::new()).await;
    let ask = |scope: &'static str, kind: &'static str| {
        let form = client.form(client.system(), scope, kind);
        let (client, credential) = (&client, &credential);
        async move {
            let answer = client
                .ask_token(Some(credential), &form, &[])
                .await
                .unwrap();
            answer.json()["access_token"].as_str().unwrap().to_owned()
        }
    };
    let bearer = ask("https://vault.azure.net/.default", "bearer").await;
    assert!(claims(&bearer)["cnf"].is_null());
    let foreign = ask("https://other.example/.default", "mtls_pop").await;
    let good = ask("https://vault.azure.net/.default", "mtls_pop").await;
    let other = if good.ends_with('A') { 'Q' } else { 'A' };
    let changed = format!("{}{other}", &good[..good.len() - 1]);
    for (token, says) in [
        (&bearer, "not bound"),
        (&foreign, "AKV10022: Invalid audience"),
        (&changed, "not signed by"),
    ] {
        let answer = client.secret(Some(&credential), token, &[]).await.unwrap();
        assert_eq!(answer.status, 401);
        assert!(answer.description().contains(says), "{}", answer.json());
    }
    let url = format!("{}/secrets/demo?api-version=7.4", azure.vault_url());
    let nothing = client.tls(&url, Some(&credential), &[]).await.unwrap();
    assert!(nothing.description().contains("AKV10000"));
    let bearer_scheme = format!("Authorization: Bearer {good}");
    let answer = client
        .tls(&url, Some(&credential), &["-H", &bearer_scheme])
        .await
        .unwrap();
    assert_eq!(answer.status, 401);
    assert!(answer.description().contains("only the scheme mtls_pop"));

    azure
        .advance_clock(std::time::Duration::from_secs(86_399))
        .unwrap();
    let answer = client.secret(Some(&credential), &good, &[]).await.unwrap();
    assert!(answer.description().contains("[TokenExpired]"));
}

#[tokio::test]
async fn the_vault_keeps_what_is_put_into_it() {
    let azure = Emulator::builder().start().await.unwrap();
    let client = Client::new(&azure);
    let credential = client.enrol("", &ClientKey::new()).await;
    let token = client.token(client.system(), &credential).await;
    let authorization = format!("Authorization: mtls_pop {token}");
    let ask = |path: &str, more: &[&str]| {
        let url = format!("{}{path}", azure.vault_url());
        let more: Vec<String> = more.iter().map(ToString::to_string).collect();
        let (client, credential, authorization) = (&client, &credential, &*authorization);
        async move {
            let mut all = vec!["-H", authorization, "-H", "x-ms-tokenboundauth: true"];
            all.extend(more.iter().map(String::as_str));
            client.tls(&url, Some(credential), &all).await.unwrap()
        }
    };
    let put = ask(
        "/secrets/mine?api-version=7.4",
        &["-X", "PUT", "--data", r#"{"value":"v1"}"#],
    )
    .await;
    assert_eq!(put.status, 200, "{}", put.json());
    assert_eq!(
        ask("/secrets/mine?api-version=7.4", &[]).await.json()["value"],
        "v1"
    );
    let version = put.json()["id"]
        .as_str()
        .unwrap()
        .rsplit('/')
        .next()
        .unwrap()
        .to_owned();
    let path = format!("/secrets/mine/{version}?api-version=7.4");
    assert_eq!(ask(&path, &[]).await.status, 200);
    assert_eq!(
        ask("/secrets/none?api-version=7.4", &[]).await.json()["error"]["code"],
        "SecretNotFound"
    );
    assert_eq!(ask("/secrets/mine", &[]).await.status, 400);
    assert_eq!(ask("/keys/mine?api-version=7.4", &[]).await.status, 404);
}

#[tokio::test]
async fn each_way_of_naming_a_user_assigned_identity_leads_to_it() {
    let azure = Emulator::builder().start().await.unwrap();
    let client = Client::new(&azure);
    let user = client.user();
    for selector in [
        format!("&client_id={}", user.client_id),
        format!("&object_id={}", user.object_id),
        format!("&mi_res_id={}", user.resource_id.as_deref().unwrap()),
    ] {
        let credential = client.enrol(&selector, &ClientKey::new()).await;
        assert_eq!(credential.issued["client_id"], user.client_id.as_str());
        assert_eq!(credential.issued["identity_type"], "UserAssigned");
        let token = client.token(user, &credential).await;
        assert_eq!(claims(&token)["oid"], user.object_id.as_str());
    }
}

#[tokio::test]
async fn version_1_gives_bearer_tokens_that_the_key_set_verifies() {
    let azure = Emulator::builder()
        .profile(Profile::V1Only)
        .start()
        .await
        .unwrap();
    let client = Client::new(&azure);
    let path = format!(
        "/metadata/identity/oauth2/token?api-version=2018-02-01&resource=https://x.example&msi_res_id={}",
        client.user().resource_id.as_deref().unwrap()
    );
    let answer = client.get(&path, &["Metadata: true"]).await.unwrap();
    assert_eq!(answer.status, 200);
    let answer = answer.json();
    assert_eq!(answer["token_type"], "Bearer");
    assert_eq!(answer["client_id"], client.user().client_id.as_str());
    assert_eq!(answer["expires_in"], "86399");
    let token = answer["access_token"].as_str().unwrap();
    assert_eq!(claims(token)["aud"], "https://x.example");
    assert!(claims(token)["cnf"].is_null());

    let base = format!("{}/{}", azure.sts_url(), azure.tenant_id());
    let configuration = client
        .tls(
            &format!("{base}/v2.0/.well-known/openid-configuration"),
            None,
            &[],
        )
        .await
        .unwrap()
        .json();
    assert_eq!(configuration["issuer"], claims(token)["iss"]);
    let keys = client
        .tls(configuration["jwks_uri"].as_str().unwrap(), None, &[])
        .await
        .unwrap()
        .json();
    let part = |name: &str| {
        URL_SAFE_NO_PAD
            .decode(keys["keys"][0][name].as_str().unwrap())
            .unwrap()
    };
    let (input, signature) = token.rsplit_once('.').unwrap();
    aws_lc_rs::signature::RsaPublicKeyComponents {
        n: part("n"),
        e: part("e"),
    }
    .verify(
        &aws_lc_rs::signature::RSA_PKCS1_2048_8192_SHA256,
        input.as_bytes(),
        &URL_SAFE_NO_PAD.decode(signature).unwrap(),
    )
    .unwrap();

    // Such a machine does not know version 2: not even a probe is answered otherwise than by 404.
    for headers in [&["Metadata: true", REQUEST_ID][..], &[REQUEST_ID]] {
        assert_eq!(client.get(METADATA, headers).await.unwrap().status, 404);
    }
}

#[tokio::test]
async fn instance_metadata_says_what_the_machine_is() {
    let azure = Emulator::builder()
        .machine_kind("Windows", "ConfidentialVM")
        .start()
        .await
        .unwrap();
    let client = Client::new(&azure);
    let answer = client
        .get(
            "/metadata/instance/compute?api-version=2021-02-01",
            &["Metadata: true"],
        )
        .await
        .unwrap()
        .json();
    assert_eq!(answer["osType"], "Windows");
    assert_eq!(answer["securityProfile"]["securityType"], "ConfidentialVM");
    let answer = client
        .get(
            "/metadata/instance/compute/location?api-version=2020-06-01&format=text",
            &["Metadata: true"],
        )
        .await
        .unwrap();
    assert_eq!(answer.body, b"emulated");
}

#[tokio::test]
async fn a_restart_on_the_same_state_keeps_authority_tokens_and_secrets() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state");
    let start = || Emulator::builder().state_dir(&state).start();

    let first = start().await.unwrap();
    first.set_secret("demo", "kept").unwrap();
    let ca = first.ca_pem();
    assert_eq!(std::fs::read_to_string(first.ca_file()).unwrap(), ca);
    let client = Client::new(&first);
    let key = ClientKey::new();
    let credential = client.enrol("", &key).await;
    let token = client.token(client.system(), &credential).await;
    let port = first
        .imds_url()
        .rsplit(':')
        .next()
        .unwrap()
        .parse::<u16>()
        .unwrap();
    let (der, issued) = (credential.der.clone(), credential.issued.clone());
    drop(client);
    first.shutdown().await;
    std::net::TcpListener::bind(("127.0.0.1", port)).expect("the port is free again");

    let second = start().await.unwrap();
    assert_eq!(second.ca_pem(), ca);
    let client = Client::new(&second);
    let credential = client.credential(&key, der, issued);
    let answer = client.secret(Some(&credential), &token, &[]).await.unwrap();
    assert_eq!(answer.json()["value"], "kept");
    client.token(client.system(), &credential).await;

    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode =
            |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&state), 0o700);
        for file in std::fs::read_dir(&state).unwrap() {
            assert_eq!(mode(&file.unwrap().path()), 0o600);
        }
    }
}

#[tokio::test]
async fn without_a_folder_nothing_but_the_ca_file_is_written_and_it_goes_away() {
    let azure = Emulator::builder().start().await.unwrap();
    let ca = azure.ca_file();
    let files = std::fs::read_dir(ca.parent().unwrap()).unwrap().count();
    assert_eq!(files, 1);
    azure.shutdown().await;
    assert!(!ca.exists());
}

#[tokio::test]
async fn the_printed_environment_works_in_a_shell() {
    let azure = Emulator::builder().start().await.unwrap();
    let script = format!(
        "{}{}",
        azure.env_lines(Shell::Sh),
        "curl -s -H 'Metadata: true' -H \"$ID\" \
         \"$AZURE_POD_IDENTITY_AUTHORITY_HOST/metadata/identity/getplatformmetadata?cred-api-version=2.0\"\n\
         curl -s -o /dev/null -w ' %{http_code} ' --cacert \"$KEYBOND_CA_FILE\" \"$KEYBOND_DEMO_VAULT_URL/\"\n\
         printf %s \"$MSAL_MI_IMDSV2_ALLOWED_HOSTS\"\n"
    );
    let output = tokio::process::Command::new("sh")
        .args(["-c", &script])
        .env("ID", REQUEST_ID)
        .output()
        .await
        .unwrap();
    let output = String::from_utf8(output.stdout).unwrap();
    assert!(
        output.contains(&azure.identities()[0].client_id),
        "{output}"
    );
    assert!(output.ends_with(" 401 localhost"), "{output}");

    let powershell = azure.env_lines(Shell::PowerShell);
    let docker = azure.env_lines(Shell::Docker);
    for (name, value) in azure.env() {
        assert!(powershell.contains(&format!("$env:{name} = '{value}'\n")));
        assert!(docker.contains(&format!("--env '{name}={value}'\n")));
    }
    assert!(docker.contains("--volume '"));
}

#[tokio::test]
async fn a_vault_may_take_bearer_tokens_and_then_takes_unbound_ones_only() {
    for accept in [false, true] {
        let azure = Emulator::builder()
            .accept_bearer_tokens(accept)
            .start()
            .await
            .unwrap();
        let client = Client::new(&azure);
        let credential = client.enrol("", &ClientKey::new()).await;
        let bound = client.token(client.system(), &credential).await;
        let path = "/metadata/identity/oauth2/token?api-version=2018-02-01&resource=https://vault.azure.net";
        let unbound = client.get(path, &["Metadata: true"]).await.unwrap().json();
        let url = format!("{}/secrets/demo?api-version=7.4", azure.vault_url());
        for (token, opens) in [
            (unbound["access_token"].as_str().unwrap(), accept),
            (&*bound, false),
        ] {
            let authorization = format!("Authorization: Bearer {token}");
            let header = "x-ms-tokenboundauth: true";
            let answer = client
                .tls(
                    &url,
                    Some(&credential),
                    &["-H", &authorization, "-H", header],
                )
                .await
                .unwrap();
            assert_eq!(answer.status == 200, opens, "{accept}: {}", answer.json());
        }
    }
}
