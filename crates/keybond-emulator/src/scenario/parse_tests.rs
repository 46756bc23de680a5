use super::*;

fn one(line: &str) -> Directive {
    let scenario: Scenario = line.parse().unwrap_or_else(|error| panic!("{error}"));
    let [step] = scenario.steps() else {
        panic!("{line}: not one step")
    };
    step.directive.clone()
}

fn refusal(text: &str) -> String {
    match text.parse::<Scenario>() {
        Err(error) => error.to_string(),
        Ok(scenario) => panic!("{text} was read as {scenario:?}"),
    }
}

fn status(leg: Leg, status: u16) -> Fault {
    let retry_after = None;
    Fault::new(
        leg,
        FaultKind::Status {
            status,
            retry_after,
        },
    )
}

#[test]
fn every_event_is_read_as_what_it_means() {
    let throttle = |leg, per_second, retry_after| {
        let kind = FaultKind::Throttle {
            per_second,
            retry_after,
        };
        Fault::new(leg, kind)
    };
    let slow = |leg, millis| Fault::new(leg, FaultKind::Slow { millis });
    let redirect = FaultKind::Redirect {
        status: 307,
        location: None,
    };
    let aadsts = FaultKind::Aadsts {
        code: 500_181,
        error: "invalid_client".into(),
        status: 401,
    };
    for (line, fault) in [
        ("410 for 60s", status(Leg::Imds, 410).seconds(60)),
        ("503 token", status(Leg::Token, 503)),
        ("410 metadata 3 times", status(Leg::Metadata, 410).times(3)),
        (
            "410 twice for 1m",
            status(Leg::Imds, 410).times(2).seconds(60),
        ),
        ("throttle 5/s", throttle(Leg::Imds, 5, None)),
        (
            "throttle 0/s token retry-after 30s",
            throttle(Leg::Token, 0, Some(30)),
        ),
        ("slow 250ms", slow(Leg::Imds, 250)),
        ("slow vault 1m1s always", slow(Leg::Vault, 61_000)),
        ("garbage", Fault::new(Leg::Imds, FaultKind::Garbage)),
        (
            "garbage issue once",
            Fault::new(Leg::Issue, FaultKind::Garbage).times(1),
        ),
        ("redirect token", Fault::new(Leg::Token, redirect)),
        ("reset vault", Fault::new(Leg::Vault, FaultKind::Reset)),
        (
            "reset handshake token twice",
            Fault::new(Leg::Token, FaultKind::ResetHandshake).times(2),
        ),
        (
            "wrong-key cert once",
            Fault::new(Leg::Issue, FaultKind::WrongKey).times(1),
        ),
        ("early cert", Fault::new(Leg::Issue, FaultKind::NotYetValid)),
        (
            "aadsts 500181 once",
            Fault::new(Leg::Token, aadsts).times(1),
        ),
        (
            r#"fault {"leg":"token", "kind":"wrong_token_type", "times":2}"#,
            Fault::new(Leg::Token, FaultKind::WrongTokenType).times(2),
        ),
    ] {
        assert_eq!(one(line), Directive::Fault(fault), "{line}");
    }
    let revoke = |code, reissues| Directive::Revoke { code, reissues };
    let seconds = Duration::from_secs;
    for (line, directive) in [
        ("revoke", revoke(1_000_610, Some(1))),
        ("revoke once", revoke(1_000_610, Some(1))),
        ("revoke twice", revoke(1_000_610, Some(2))),
        ("revoke 5 times with 0", revoke(0, Some(5))),
        ("revoke always", revoke(1_000_610, None)),
        ("revoke with 1000614", revoke(1_000_614, Some(1))),
        ("rotate in 90s", Directive::CertificateLifetime(seconds(90))),
        (
            "certificate lifetime 14d",
            Directive::CertificateLifetime(seconds(14 * 86_400)),
        ),
        ("token lifetime 10m", Directive::TokenLifetime(seconds(600))),
        (
            "token-not-after 2h",
            Directive::TokenNotAfter(seconds(7_200)),
        ),
        ("tls13 does-not-ask", Directive::AskUnderTls13(false)),
        ("tls13 asks", Directive::AskUnderTls13(true)),
        ("clock +6d", Directive::Clock(6 * 86_400)),
        ("clock -1h30m", Directive::Clock(-5_400)),
        (
            "attestation required",
            Directive::Attestation(AttestationRule::Required),
        ),
        (
            "attestation checked",
            Directive::Attestation(AttestationRule::Checked),
        ),
        (
            "attestation refused",
            Directive::Attestation(AttestationRule::Refused),
        ),
        (
            "attestation optional",
            Directive::Attestation(AttestationRule::Optional),
        ),
        ("clear", Directive::Clear),
    ] {
        assert_eq!(one(line), directive, "{line}");
    }
}

#[test]
fn steps_keep_their_order_and_say_when() {
    let scenario: Scenario = "\n  # a comment\n410 for 60s\r\n\tafter 1d12h: clear\n"
        .parse()
        .unwrap();
    let [first, second] = scenario.steps() else {
        panic!("{scenario:?}")
    };
    assert_eq!(
        (first.after, first.to_string()),
        (Duration::ZERO, "410 for 60s".into())
    );
    assert_eq!(
        (second.after, second.to_string()),
        (Duration::from_secs(129_600), "clear".into())
    );
    assert_eq!("".parse::<Scenario>().unwrap(), Scenario::new());
}

#[test]
fn what_is_not_understood_in_full_is_refused_with_its_line() {
    let prefix = "scenario, line 3: ";
    for (line, expected) in [
        ("410 for 60", DURATION),
        ("410 for 1h1d", DURATION),
        ("410 for", DURATION),
        ("410 for s", DURATION),
        ("410 for 99999999999999999999d", DURATION),
        ("410 for 500ms", "whole seconds"),
        ("410 metadata vault", "'for DURATION', 'once'"),
        ("410 metadate", "a leg (imds, probe"),
        ("410 once twice", "a leg (imds"),
        ("410 metadata once twice", "'for DURATION', 'once'"),
        ("410 metadata 3", "'times'"),
        ("410 metadata 0 times", "'for DURATION', 'once'"),
        ("410 always once", "a leg"),
        ("99", "a status of 200 to 599"),
        ("+410", "an event"),
        ("thrttle 5/s", "an event"),
        ("throttle 5", "a rate such as 5/s"),
        ("throttle", "a rate such as 5/s"),
        ("slow vault", "a leg"),
        ("slow soon", "a leg"),
        ("reset handshake imds", "token or vault"),
        ("reset handshake", "token or vault"),
        ("wrong-key", "'cert'"),
        ("wrong-key cert issue", "'for DURATION'"),
        ("aadsts x", "the number after AADSTS"),
        ("revoke thrice", "'once', 'twice'"),
        ("revoke once more", "'once', 'twice'"),
        ("revoke with", "the number after AADSTS"),
        ("rotate 90s", "'in'"),
        ("rotate in 20y", DURATION),
        ("rotate in 0s", "an event that makes sense"),
        ("clock 6d", "a movement such as +6d"),
        ("tls13 sometimes", "asks or does-not-ask"),
        (
            "attestation maybe",
            "required, checked, refused or optional",
        ),
        ("clear everything", "the end of the line"),
        ("after 10s 410", "'after DURATION: EVENT'"),
        ("after soon: 410", DURATION),
        ("after 10s:", "an event"),
        ("fault {}", "a fault as JSON"),
        (
            r#"fault {"leg":"vault","kind":"wrong_key"}"#,
            "an event that makes sense",
        ),
    ] {
        let text = format!("clear\n\n{line}\nclear");
        let refusal = refusal(&text);
        let rest = refusal
            .strip_prefix(prefix)
            .unwrap_or_else(|| panic!("{refusal}"));
        assert!(
            rest.starts_with(&format!("expected {expected}")),
            "{line}: {refusal}"
        );
    }
}
