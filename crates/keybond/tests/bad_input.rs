//! Bad input: every answer that is not as agreed is an error of its own, names leg and field, and ends the
//! way: nothing is sent onwards.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use keybond::keys::KeyProvider;
use keybond::{Error, Leg, NoAnswer, Strength};
use rcgen::{ExtendedKeyUsagePurpose, KeyUsagePurpose};
use serde_json::{Value, json};
use support::{
    Bench, CLIENT, OTHER, RESOURCE,
    azure::{Service, jwt},
    server::Reply,
};

/// What an error says to programs.
#[derive(Debug, PartialEq)]
struct Said {
    leg: Option<Leg>,
    field: Option<String>,
    code: String,
}

fn said(error: &Error) -> Said {
    Said {
        leg: error.leg(),
        field: error.field().map(Into::into),
        code: error.code().into(),
    }
}

/// Asks for a token and expects an error; checks that no service after `last` heard anything and that the
/// one asked was asked once.
async fn refused(bench: &Bench, last: Service) -> Error {
    let error = bench.client().token(RESOURCE).await.unwrap_err();
    let order = [
        Service::Metadata,
        Service::Issue,
        Service::Token,
        Service::Resource,
    ];
    let place = order.iter().position(|service| *service == last).unwrap();
    for (index, service) in order.into_iter().enumerate() {
        assert_eq!(
            bench.azure.count(service),
            usize::from(index <= place),
            "{service:?}: {error}"
        );
    }
    assert!(!error.remedy().is_empty(), "{error}");
    assert!(!error.retryable(), "{error}");
    assert_eq!(error.correlation_id().map(str::len), Some(36), "{error}");
    assert!(!error.to_string().contains('\n'), "{error}");
    error
}

fn leg(service: Service) -> Leg {
    match service {
        Service::Metadata => Leg::Metadata,
        Service::Issue => Leg::Issue,
        Service::Token => Leg::Token,
        Service::Resource => Leg::Resource,
    }
}

const PROTOCOL: [Service; 3] = [Service::Metadata, Service::Issue, Service::Token];

#[tokio::test]
async fn bodies_that_are_no_json_objects() {
    let cases: [(&[u8], &str); 8] = [
        (b"", "managed_identity_response_parse_failure"),
        (
            b"<html>captive portal</html>",
            "managed_identity_response_parse_failure",
        ),
        (
            b"{\"clientId\": ",
            "managed_identity_response_parse_failure",
        ),
        (b"[]", "managed_identity_response_parse_failure"),
        (b"\"text\"", "managed_identity_response_parse_failure"),
        (b"{} trailing", "managed_identity_response_parse_failure"),
        (b"\xff\xfe{}", "response_not_utf8"),
        (b"{\"clientId\": \"\xc3\x28\"}", "response_not_utf8"),
    ];
    for service in PROTOCOL {
        for (body, code) in cases {
            let bench = Bench::new().await;
            bench
                .azure
                .twist_one(service, move |_| Reply::status(200, body));
            let error = refused(&bench, service).await;
            let expected = Said {
                leg: Some(leg(service)),
                field: Some("body".into()),
                code: code.into(),
            };
            assert_eq!(said(&error), expected, "{error}");
            assert_eq!(error.http_status(), Some(200));
        }
    }
}

#[tokio::test]
async fn members_that_are_missing_empty_or_strange() {
    let members: [(Service, &[&str]); 3] = [
        (
            Service::Metadata,
            &["cuId", "clientId", "tenantId", "attestationEndpoint"],
        ),
        (
            Service::Issue,
            &[
                "client_id",
                "tenant_id",
                "certificate",
                "identity_type",
                "mtls_authentication_endpoint",
            ],
        ),
        (
            Service::Token,
            &["token_type", "access_token", "expires_in"],
        ),
    ];
    for (service, members) in members {
        for member in members {
            for wrong in [Value::Null, json!(""), json!("  "), json!(true), json!([1])] {
                let bench = Bench::new().await;
                let (member, twisted) = (*member, wrong.clone());
                bench.azure.twist_one(service, move |honest| {
                    honest.with_member(member, twisted.clone())
                });
                let error = refused(&bench, service).await;
                let said = said(&error);
                assert_eq!(said.leg, Some(leg(service)), "{member} = {wrong}: {error}");
                assert_eq!(said.field.as_deref(), Some(member), "{wrong}: {error}");
                let shape = (wrong.is_null(), wrong.is_string());
                let expected = match (member, shape) {
                    ("token_type", (true, _) | (_, true)) => "token_type_missing",
                    ("expires_in", _) => "response_field_invalid",
                    ("cuId", (_, true)) => "response_field_invalid",
                    (_, (true, _)) => "response_field_missing",
                    (_, (_, true)) => "response_field_empty",
                    ("certificate", _) => "invalid_certificate",
                    _ => "response_field_invalid",
                };
                assert_eq!(said.code, expected, "{member} = {wrong}: {error}");
            }
        }
    }
}

#[tokio::test]
async fn members_with_impossible_values() {
    let cases = [
        (
            Service::Metadata,
            "cuId",
            json!({}),
            "response_field_invalid",
        ),
        (
            Service::Metadata,
            "cuId",
            json!({"vmId": ""}),
            "response_field_invalid",
        ),
        (
            Service::Metadata,
            "cuId",
            json!({"vmId": 7}),
            "response_field_invalid",
        ),
        (
            Service::Metadata,
            "clientId",
            json!("contoso"),
            "response_field_invalid",
        ),
        (
            Service::Metadata,
            "tenantId",
            json!("../../common"),
            "response_field_invalid",
        ),
        (
            Service::Metadata,
            "attestationEndpoint",
            json!("attest"),
            "response_field_invalid",
        ),
        (
            Service::Issue,
            "client_id",
            json!(OTHER),
            "identity_mismatch",
        ),
        (
            Service::Issue,
            "tenant_id",
            json!(OTHER),
            "identity_mismatch",
        ),
        (
            Service::Issue,
            "identity_type",
            json!("Robot"),
            "response_field_invalid",
        ),
        (
            Service::Issue,
            "certificate",
            json!("not base64!"),
            "invalid_certificate",
        ),
        (
            Service::Issue,
            "certificate",
            json!("AAAA"),
            "invalid_certificate",
        ),
        (
            Service::Token,
            "token_type",
            json!("Bearer"),
            "token_type_mismatch",
        ),
        (
            Service::Token,
            "access_token",
            json!("a b"),
            "response_field_invalid",
        ),
        (
            Service::Token,
            "access_token",
            json!("a\r\nb"),
            "response_field_invalid",
        ),
        (
            Service::Token,
            "expires_in",
            json!(0),
            "response_field_invalid",
        ),
        (
            Service::Token,
            "expires_in",
            json!(-5),
            "response_field_invalid",
        ),
        (
            Service::Token,
            "expires_in",
            json!(u64::MAX),
            "response_field_invalid",
        ),
        (
            Service::Token,
            "refresh_in",
            json!("soon"),
            "response_field_invalid",
        ),
    ];
    for (service, member, wrong, code) in cases {
        let bench = Bench::new().await;
        let twisted = wrong.clone();
        bench.azure.twist_one(service, move |honest| {
            honest.with_member(member, twisted.clone())
        });
        let error = refused(&bench, service).await;
        let expected = Said {
            leg: Some(leg(service)),
            field: Some(member.into()),
            code: code.into(),
        };
        assert_eq!(said(&error), expected, "{wrong}: {error}");
    }
}

#[tokio::test]
async fn a_server_header_that_is_not_the_metadata_services() {
    for wrong in [None, Some("I_MDS/150.870.65.1854"), Some("nginx"), Some("")] {
        let bench = Bench::new().await;
        bench
            .azure
            .twist_one(Service::Metadata, move |honest| match wrong {
                None => honest.without_header("server"),
                Some(text) => honest.with_header("server", text),
            });
        let error = refused(&bench, Service::Metadata).await;
        let expected = Said {
            leg: Some(Leg::Metadata),
            field: Some("Server header".into()),
            code: "server_header_invalid".into(),
        };
        assert_eq!(said(&error), expected, "{error}");
    }
}

#[tokio::test]
async fn certificates_that_are_not_for_this_key_client_tenant_time_or_purpose() {
    type Change = fn(&mut support::azure::Wish);
    let cases: [(Change, &str, &str); 8] = [
        (
            |wish| wish.client = OTHER.into(),
            "certificate subject CN",
            "certificate_for_another_client",
        ),
        (
            |wish| wish.client = String::new(),
            "certificate subject CN",
            "certificate_for_another_client",
        ),
        (
            |wish| wish.tenant = Some(OTHER.into()),
            "certificate subject DC",
            "certificate_for_another_tenant",
        ),
        (
            |wish| wish.until = (2026, 6, 14),
            "certificate notAfter",
            "certificate_expired",
        ),
        (
            |wish| wish.until = (2026, 6, 15),
            "certificate notAfter",
            "certificate_expired",
        ),
        (
            |wish| wish.from = (2026, 6, 16),
            "certificate notBefore",
            "certificate_not_yet_valid",
        ),
        (
            |wish| wish.purpose = ExtendedKeyUsagePurpose::ServerAuth,
            "extendedKeyUsage",
            "certificate_not_for_clients",
        ),
        (
            |wish| wish.usage = KeyUsagePurpose::KeyCertSign,
            "keyUsage",
            "certificate_not_for_clients",
        ),
    ];
    for (change, field, code) in cases {
        let bench = Bench::new().await;
        bench.azure.wish(change);
        let error = refused(&bench, Service::Issue).await;
        let expected = Said {
            leg: Some(Leg::Issue),
            field: Some(field.into()),
            code: code.into(),
        };
        assert_eq!(said(&error), expected, "{error}");
    }
}

#[tokio::test]
async fn a_certificate_for_another_key() {
    let bench = Bench::new().await;
    let foreign = KeyProvider::in_memory().get_or_create_key().await.unwrap();
    let foreign = bench.azure.certificate_for(foreign.public_key().spki_der());
    let foreign = support::azure::base64(&foreign);
    bench.azure.twist_one(Service::Issue, move |honest| {
        honest.with_member("certificate", json!(foreign))
    });
    let error = refused(&bench, Service::Issue).await;
    let expected = Said {
        leg: Some(Leg::Issue),
        field: Some("certificate subjectPublicKeyInfo".into()),
        code: "certificate_for_another_key".into(),
    };
    assert_eq!(said(&error), expected, "{error}");
}

/// An issuer may leave the tenant out of the certificate, and ids in other case are the same ids.
#[tokio::test]
async fn harmless_differences_are_accepted() {
    let bench = Bench::new().await;
    bench.azure.wish(|wish| {
        wish.tenant = None;
        wish.client = CLIENT.to_uppercase();
    });
    bench.azure.twist(|service, _, honest| match service {
        Service::Issue => honest.with_member("client_id", json!(CLIENT.to_uppercase())),
        Service::Token => honest
            .with_member("token_type", json!("MTLS_POP"))
            .with_member("expires_in", json!("3599")),
        _ => honest,
    });
    bench.client().token(RESOURCE).await.unwrap();
}

#[tokio::test]
async fn metadata_for_another_identity_than_the_one_asked_for() {
    let bench = Bench::new().await;
    let identity = keybond::Identity::client_id(OTHER).unwrap();
    let client = bench.builder().identity(identity).build().unwrap();
    let error = client.token(RESOURCE).await.unwrap_err();
    let expected = Said {
        leg: Some(Leg::Metadata),
        field: Some("clientId".into()),
        code: "identity_mismatch".into(),
    };
    assert_eq!(said(&error), expected, "{error}");
    assert_eq!(bench.azure.total(), 1);
}

#[tokio::test]
async fn token_services_that_must_not_get_credentials() {
    for endpoint in [
        "http://westeurope.mtlsauth.microsoft.com",
        "https://evil.example",
        "https://mtlsauth.microsoft.com.evil.example",
        "https://localhost",
    ] {
        let bench = Bench::new().await;
        bench.azure.twist_one(Service::Issue, move |honest| {
            honest.with_member("mtls_authentication_endpoint", json!(endpoint))
        });
        let error = refused(&bench, Service::Issue).await;
        let expected = Said {
            leg: Some(Leg::Issue),
            field: Some("mtls_authentication_endpoint".into()),
            code: "host_not_allowed".into(),
        };
        assert_eq!(said(&error), expected, "{error}");
        assert!(bench.tls.shown.lock().unwrap().is_empty(), "no connection");
    }
}

/// The list is consulted again before every token, not only when the certificate is issued.
#[tokio::test]
async fn a_host_that_is_no_longer_allowed_gets_nothing() {
    let bench = Bench::new().await;
    let client = bench.client();
    client.credential().await.unwrap();
    bench.env.set("MSAL_MI_IMDSV2_ALLOWED_HOSTS", "elsewhere");
    let error = client.token(RESOURCE).await.unwrap_err();
    assert_eq!(
        (error.leg(), error.code()),
        (Some(Leg::Token), "host_not_allowed")
    );
    assert_eq!(bench.azure.count(Service::Token), 0);
}

#[tokio::test]
async fn redirects_are_followed_on_no_leg() {
    for status in [301, 302, 303, 307, 308] {
        for service in PROTOCOL {
            let bench = Bench::new().await;
            let target = bench.azure.imds() + "/honeypot";
            bench.azure.twist_one(service, move |_| {
                Reply::status(status, "").with_header("location", &target)
            });
            let error = refused(&bench, service).await;
            let expected = Said {
                leg: Some(leg(service)),
                field: Some("status".into()),
                code: "redirect_refused".into(),
            };
            assert_eq!(said(&error), expected, "{error}");
            assert_eq!(error.http_status(), Some(status));
        }
        let bench = Bench::new().await;
        let target = bench.azure.url("/honeypot");
        bench.azure.twist_one(Service::Resource, move |_| {
            Reply::status(status, "").with_header("location", &target)
        });
        let request = bench.client().get(&bench.azure.url("/")).resource(RESOURCE);
        let error = request.send().await.unwrap_err();
        assert_eq!(
            (error.leg(), error.code()),
            (Some(Leg::Resource), "redirect_refused")
        );
        assert_eq!(bench.azure.count(Service::Resource), 1);
    }
}

#[tokio::test]
async fn endless_bodies_are_not_read_to_their_end() {
    for endless in [Reply::Gigabyte, Reply::Endless] {
        for service in PROTOCOL {
            let bench = Bench::new().await;
            let reply = endless.clone();
            bench.azure.twist_one(service, move |_| reply.clone());
            let error = refused(&bench, service).await;
            let expected = Said {
                leg: Some(leg(service)),
                field: Some("body".into()),
                code: "response_too_large".into(),
            };
            assert_eq!(said(&error), expected, "{error}");
        }
        let bench = Bench::new().await;
        bench
            .azure
            .twist_one(Service::Resource, move |_| endless.clone());
        let client = bench.builder().response_limit(100_000).build().unwrap();
        let request = client.get(&bench.azure.url("/")).resource(RESOURCE);
        let error = request.send().await.unwrap().bytes().await.unwrap_err();
        assert_eq!(
            (error.leg(), error.code()),
            (Some(Leg::Resource), "response_too_large")
        );
    }
}

#[tokio::test]
async fn a_token_for_another_certificate() {
    for claims in [
        json!({"cnf": {"x5t#S256": "bm90IHRoaXMgb25l"}}),
        json!({"cnf": {}}),
        json!({"sub": "bound to nothing"}),
    ] {
        let bench = Bench::new().await;
        bench.azure.twist_one(Service::Token, move |honest| {
            honest.with_member("access_token", json!(jwt(&claims)))
        });
        let error = refused(&bench, Service::Token).await;
        let expected = Said {
            leg: Some(Leg::Token),
            field: Some("access_token cnf.x5t#S256".into()),
            code: "token_not_bound_to_certificate".into(),
        };
        assert_eq!(said(&error), expected, "{error}");
    }
}

#[tokio::test]
async fn a_token_that_cannot_be_read_is_passed_on_with_a_note() {
    let bench = Bench::new().await;
    bench.azure.twist_one(Service::Token, |honest| {
        honest.with_member("access_token", json!("opaque"))
    });
    let token = bench.client().token(RESOURCE).await.unwrap();
    assert!(!token.is_confirmed());
    let reports = bench.reports.lock().unwrap();
    assert!(reports[4].outcome.contains("opaque: it does not show"));
}

#[tokio::test]
async fn refusals_carry_what_the_service_said() {
    let bench = Bench::new().await;
    bench.azure.twist_one(Service::Token, |_| {
        let body = json!({
            "error": "invalid_client",
            "error_description": "AADSTS392196: no bound\r\ntokens",
            "error_codes": [392196],
            "echo": "SECRET",
        });
        Reply::status(401, body.to_string())
    });
    let error = refused(&bench, Service::Token).await;
    assert_eq!(error.code(), "invalid_client");
    assert_eq!(error.http_status(), Some(401));
    assert_eq!(
        error.to_string(),
        "token leg: HTTP 401: invalid_client: AADSTS392196: no bound  tokens"
    );
    assert!(error.remedy().contains("takes no bound tokens"));
    assert!(!format!("{error:?}").contains("SECRET"));
}

#[tokio::test]
async fn a_machine_without_version_2_is_told_at_once() {
    let bench = Bench::new().await;
    bench
        .azure
        .twist_one(Service::Metadata, |_| Reply::status(404, "not found"));
    let error = refused(&bench, Service::Metadata).await;
    assert_eq!(error.code(), "mtls_pop_token_not_supported_in_imds_v1");
}

#[tokio::test]
async fn the_floor_stands_before_anything_is_sent() {
    let bench = Bench::new().await;
    let client = bench
        .builder()
        .minimum_strength(Strength::Hardware)
        .build()
        .unwrap();
    let error = client.token(RESOURCE).await.unwrap_err();
    assert_eq!(
        (error.leg(), error.code()),
        (Some(Leg::Key), "min_strength_not_met")
    );
    assert_eq!(
        error.to_string(),
        "key leg: min_strength_not_met: the strongest key here has strength software, the floor is hardware"
    );
    assert_eq!(bench.azure.total(), 0);
}

#[tokio::test]
async fn the_kill_switch_is_read_live_and_forgets_nothing() {
    const SWITCH: &str = "MSAL_MI_DISABLE_IMDS_V2";
    let bench = Bench::new().await;
    let client = bench.client();
    client.token(RESOURCE).await.unwrap();
    let before = bench.azure.total();

    bench.env.set(SWITCH, "true");
    client.token(RESOURCE).await.unwrap();
    let error = client.token("https://other.example").await.unwrap_err();
    assert_eq!(error.code(), "mtls_pop_administratively_disabled");
    assert_eq!(error.field(), Some(SWITCH));
    assert_eq!(client.renew().await.unwrap_err().code(), error.code());
    assert_eq!(bench.azure.total(), before, "nothing was sent");

    bench.env.set(SWITCH, "ture");
    client.token("https://other.example").await.unwrap();
}

#[tokio::test]
async fn settings_that_cannot_be_used_are_named() {
    let bench = Bench::new().await;
    let built = keybond::ManagedIdentity::builder().build();
    assert_eq!(built.unwrap_err().field(), Some("tls"));
    let built = keybond::ManagedIdentity::builder()
        .tls(bench.tls.clone())
        .build();
    assert_eq!(built.unwrap_err().field(), Some("key_provider"));
    let built = bench.builder().imds_endpoint("http://10.1.2.3").build();
    assert_eq!(built.unwrap_err().field(), Some("imds_endpoint"));
    let identity = keybond::Identity::ObjectId("me".into());
    let built = bench.builder().identity(identity).build();
    assert_eq!(built.unwrap_err().field(), Some("object_id"));
}

#[tokio::test]
async fn a_connection_that_breaks_is_an_error_of_its_leg() {
    for service in PROTOCOL {
        let bench = Bench::new().await;
        bench.keys.get_or_create_key().await.unwrap();
        bench.azure.twist_one(service, |_| Reply::HangUp);
        // It is asked again before the error stands; nobody waits for that here, but where the key proves
        // itself, which takes real time.
        let paused = service != Service::Token;
        if paused {
            tokio::time::pause();
        }
        let error = bench.client().token(RESOURCE).await.unwrap_err();
        if paused {
            tokio::time::resume();
        }
        assert_eq!(error.leg(), Some(leg(service)), "{error}");
        let broken = matches!(
            error,
            Error::Unreachable {
                how: NoAnswer::Broken,
                ..
            }
        );
        assert!(broken && error.retryable(), "{error}");
    }
}

#[tokio::test]
async fn a_silent_service_costs_the_deadline_and_no_more() {
    for service in PROTOCOL {
        let bench = Bench::new().await;
        let gate = std::sync::Arc::new(tokio::sync::Semaphore::new(0));
        let shut = gate.clone();
        bench.azure.twist_one(service, move |honest| {
            Reply::Gated(shut.clone(), Box::new(honest))
        });
        // The key is there already, so that the deadline falls into the leg in question.
        bench.keys.get_or_create_key().await.unwrap();
        let builder = bench.builder().deadline(Duration::from_millis(300));
        let error = builder.build().unwrap().token(RESOURCE).await.unwrap_err();
        assert_eq!(
            (error.leg(), error.code()),
            (Some(leg(service)), "deadline_exceeded")
        );
        assert!(error.retryable());
    }
}
