//! The checks, in the order of the report.

use std::thread;

use keybond_keys::{
    ExportAttempt, KeyName, KeyProvider, KeyStore, RSA_BITS, Reason, SignatureScheme, StoredKey,
};

use super::{
    Hurt, Outcome, Subject,
    verify::{public_key, text, told, verify},
};

type Answer = Result<Outcome, String>;
type Check = fn(&Subject<'_>) -> Answer;

pub(super) const ALL: &[(&str, Check)] = &[
    ("says that it can hold a key", probes),
    ("has no key before one is made", starts_empty),
    (
        "makes RSA-2048 keys with exponent 65537",
        makes_the_right_key,
    ),
    ("gives the same key to a new process", reopens),
    ("signs every scheme it offers, as openssl verifies", signs),
    ("offers PS256 and RS256", offers_the_needed_schemes),
    (
        "refuses a digest of the wrong length",
        refuses_wrong_digests,
    ),
    ("does not export the key", refuses_export),
    ("shows the strength of its tier", shows_its_strength),
    ("keeps keys of different names apart", keeps_names_apart),
    ("serves many threads at once", serves_many_threads),
    ("replaces a key that is given up", replaces),
    ("deletes a key, once", deletes),
    ("survives a killed creation", survives_a_killed_creation),
    ("tells a corrupt record and replaces the key", tells_corrupt),
    ("tells a foreign device and replaces the key", tells_foreign),
];

const IN_MEMORY: &str = "its keys die with the process";
const NO_WAY: &str = "nothing from outside can do that to it";

/// A store without any of the keys of this suite.
fn fresh(subject: &Subject<'_>) -> Result<Box<dyn KeyStore>, String> {
    let store = subject.connect();
    for name in [KeyName::default(), name("a")?, name("b")?] {
        store.delete(&name).map_err(text)?;
    }
    Ok(store)
}

fn name(suffix: &str) -> Result<KeyName, String> {
    KeyName::new(format!("conformance-{suffix}")).map_err(text)
}

fn ensure(condition: bool, otherwise: impl Into<String>) -> Result<(), String> {
    condition.then_some(()).ok_or_else(|| otherwise.into())
}

fn create(store: &dyn KeyStore) -> Result<Box<dyn StoredKey>, String> {
    store.create(&KeyName::default()).map_err(text)
}

fn probes(subject: &Subject<'_>) -> Answer {
    subject.connect().probe().map_err(text)?;
    Ok(Outcome::Passed)
}

fn starts_empty(subject: &Subject<'_>) -> Answer {
    let opened = fresh(subject)?.open(&KeyName::default()).map_err(text)?;
    ensure(opened.is_none(), "there is a key")?;
    Ok(Outcome::Passed)
}

fn makes_the_right_key(subject: &Subject<'_>) -> Answer {
    let key = public_key(&create(&*fresh(subject)?)?.public_key().map_err(text)?)?;
    ensure(
        key.bits() == RSA_BITS,
        format!("it has {} bits", key.bits()),
    )?;
    let exponent = key.exponent();
    ensure(
        exponent == [1, 0, 1],
        format!("its exponent is {exponent:?}"),
    )?;
    Ok(Outcome::Passed)
}

fn reopens(subject: &Subject<'_>) -> Answer {
    let store = fresh(subject)?;
    if !store.outlives_process() {
        return Ok(Outcome::NotApplicable(IN_MEMORY));
    }
    let made = create(&*store)?.public_key().map_err(text)?;
    drop(store);
    let opened = subject.connect().open(&KeyName::default()).map_err(text)?;
    let opened = opened.ok_or("the key is gone")?;
    ensure(
        made == opened.public_key().map_err(text)?,
        "it is another key",
    )?;
    try_all(&*opened)?;
    Ok(Outcome::Passed)
}

fn try_all(key: &dyn StoredKey) -> Result<(), String> {
    let spki = key.public_key().map_err(text)?;
    ensure(!key.schemes().is_empty(), "it offers no scheme")?;
    for scheme in key.schemes() {
        let digest = scheme.hash().digest(b"conformance");
        let signature = key.sign_digest(scheme, &digest).map_err(text)?;
        ensure(signature.len() == RSA_BITS / 8, "the signature's length")?;
        verify(&spki, scheme, &digest, &signature)?;
        // The verifier can say no.
        let other = scheme.hash().digest(b"something else");
        let wrong = verify(&spki, scheme, &other, &signature);
        ensure(wrong.is_err(), "a signature fits every digest")?;
    }
    Ok(())
}

fn signs(subject: &Subject<'_>) -> Answer {
    try_all(&*create(&*fresh(subject)?)?)?;
    Ok(Outcome::Passed)
}

fn offers_the_needed_schemes(subject: &Subject<'_>) -> Answer {
    let schemes = create(&*fresh(subject)?)?.schemes();
    for needed in [
        SignatureScheme::RsaPssSha256,
        SignatureScheme::RsaPkcs1Sha256,
    ] {
        ensure(schemes.contains(&needed), format!("no {needed}"))?;
    }
    Ok(Outcome::Passed)
}

fn refuses_wrong_digests(subject: &Subject<'_>) -> Answer {
    let key = create(&*fresh(subject)?)?;
    for scheme in key.schemes() {
        for length in [0, 1, 31, 33, 65, 300] {
            let answer = key.sign_digest(scheme, &vec![7; length]);
            ensure(answer.is_err(), format!("{scheme} over {length} bytes"))?;
        }
    }
    Ok(Outcome::Passed)
}

fn refuses_export(subject: &Subject<'_>) -> Answer {
    let key = create(&*fresh(subject)?)?;
    let attempt = key.attempt_export().map_err(text)?;
    ensure(
        attempt != ExportAttempt::Exported,
        "the private key came out",
    )?;
    let properties = key.properties().map_err(text)?;
    ensure(
        properties.exportable != Some(true),
        "it says it is exportable",
    )?;
    Ok(Outcome::Passed)
}

fn shows_its_strength(subject: &Subject<'_>) -> Answer {
    let expected = fresh(subject)?.id().tier().required_strength();
    let key = provided(subject)?;
    ensure(
        key == expected,
        format!("{key}, its tier demands {expected}"),
    )?;
    Ok(Outcome::Passed)
}

/// The strength of the key that a provider over this store alone gets.
fn provided(subject: &Subject<'_>) -> Result<keybond_keys::Strength, String> {
    let provider = KeyProvider::builder()
        .shared_store(subject.connect().into())
        .build();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .map_err(text)?;
    let key = runtime
        .block_on(provider.get_or_create_key())
        .map_err(told)?;
    Ok(key.strength())
}

fn keeps_names_apart(subject: &Subject<'_>) -> Answer {
    let store = fresh(subject)?;
    let (a, b) = (name("a")?, name("b")?);
    let one = store.create(&a).map_err(text)?.public_key().map_err(text)?;
    let two = store.create(&b).map_err(text)?.public_key().map_err(text)?;
    ensure(one != two, "two names, one key")?;
    if store.outlives_process() {
        ensure(store.delete(&a).map_err(text)?, "the first is gone")?;
        let left = store.open(&b).map_err(text)?.ok_or("the second is gone")?;
        ensure(
            left.public_key().map_err(text)? == two,
            "the second changed",
        )?;
        store.delete(&b).map_err(text)?;
    }
    Ok(Outcome::Passed)
}

fn serves_many_threads(subject: &Subject<'_>) -> Answer {
    let key = create(&*fresh(subject)?)?;
    let public = public_key(&key.public_key().map_err(text)?)?;
    let work = |worker: usize| {
        for scheme in key.schemes() {
            let message = format!("{worker} {scheme}");
            let digest = scheme.hash().digest(message.as_bytes());
            let signature = key.sign_digest(scheme, &digest).map_err(text)?;
            let valid = public.verify(scheme, message.as_bytes(), &signature);
            ensure(valid, format!("{scheme} under load"))?;
        }
        Ok::<_, String>(())
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..8).map(|n| scope.spawn(move || work(n))).collect();
        workers
            .into_iter()
            .try_for_each(|worker| worker.join().map_err(|_| "a thread panicked")?)
    })?;
    Ok(Outcome::Passed)
}

fn replaces(subject: &Subject<'_>) -> Answer {
    let store = fresh(subject)?;
    let one = create(&*store)?.public_key().map_err(text)?;
    subject.hurt(Hurt::DeadKey);
    let two = create(&*store)?.public_key().map_err(text)?;
    ensure(one != two, "the old key was handed out as a new one")?;
    if store.outlives_process() {
        let opened = store.open(&KeyName::default()).map_err(text)?;
        let opened = opened.ok_or("no key is there")?;
        ensure(
            opened.public_key().map_err(text)? == two,
            "the old key is opened",
        )?;
    }
    Ok(Outcome::Passed)
}

fn deletes(subject: &Subject<'_>) -> Answer {
    let store = fresh(subject)?;
    create(&*store)?;
    let first = store.delete(&KeyName::default()).map_err(text)?;
    ensure(first == store.outlives_process(), "the answer is wrong")?;
    let opened = store.open(&KeyName::default()).map_err(text)?;
    ensure(opened.is_none(), "the key is still there")?;
    let second = store.delete(&KeyName::default()).map_err(text)?;
    ensure(!second, "it was deleted twice")?;
    Ok(Outcome::Passed)
}

fn survives_a_killed_creation(subject: &Subject<'_>) -> Answer {
    fresh(subject)?;
    if !subject.hurt(Hurt::KilledCreation) {
        return Ok(Outcome::NotApplicable(NO_WAY));
    }
    provided(subject)?;
    Ok(Outcome::Passed)
}

fn tells_corrupt(subject: &Subject<'_>) -> Answer {
    tells(subject, Hurt::CorruptRecord, Reason::Corrupt)
}

fn tells_foreign(subject: &Subject<'_>) -> Answer {
    tells(subject, Hurt::ForeignDevice, Reason::Foreign)
}

fn tells(subject: &Subject<'_>, hurt: Hurt, expected: Reason) -> Answer {
    let old = create(&*fresh(subject)?)?.public_key().map_err(text)?;
    if !subject.hurt(hurt) {
        return Ok(Outcome::NotApplicable(NO_WAY));
    }
    let store = subject.connect();
    match store.open(&KeyName::default()) {
        Err(refusal) if refusal.reason == expected => {}
        Err(refusal) => return Err(refusal.to_string()),
        Ok(_) => return Err(format!("it opens; expected {expected}")),
    }
    provided(subject)?;
    let new = store.open(&KeyName::default()).map_err(text)?;
    let new = new.ok_or("nothing is there afterwards")?;
    ensure(
        new.public_key().map_err(text)? != old,
        "the old key is back",
    )?;
    Ok(Outcome::Passed)
}
