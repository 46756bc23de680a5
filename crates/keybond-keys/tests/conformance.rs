//! The conformance suite over the stores of this crate, and over liars, to show that it can say no.
#![allow(clippy::unwrap_used, missing_docs)]
#![forbid(unsafe_code)]

use std::fs;

use keybond_keys::{MemoryStore, StateDir, StoreId};
use keybond_testkit::{
    conformance::{Hurt, Subject, examine},
    stores::{FileStore, Lie, ScriptedStore},
};

#[test]
fn memory() {
    let report = examine(&Subject::new("memory", || Box::new(MemoryStore)));
    println!("{report}");
    assert!(report.is_green(), "{report}");
}

#[test]
fn a_file_stands_for_stores_that_can_be_hurt() {
    let home = tempfile::tempdir().unwrap();
    let dir = || StateDir::open(home.path().join("keys")).unwrap();
    let subject = Subject::new("file", || Box::new(FileStore::new(dir())))
        .with(Hurt::CorruptRecord, || {
            dir().write("default.p8", b"not a key").unwrap();
        })
        .with(Hurt::KilledCreation, || {
            // What a writer leaves that is killed before the rename.
            fs::write(home.path().join("keys/.default.p8.1-0.tmp"), b"half a k").unwrap();
        });
    let report = examine(&subject);
    println!("{report}");
    assert!(report.is_green(), "{report}");
}

#[test]
fn liars_fail_where_they_lie() {
    for (lie, check) in [
        (Lie::NotIsolated, "shows the strength of its tier"),
        (Lie::Imported, "shows the strength of its tier"),
        (Lie::Exports, "does not export the key"),
        (
            Lie::WrongSalt,
            "signs every scheme it offers, as openssl verifies",
        ),
        (
            Lie::AnotherKey,
            "signs every scheme it offers, as openssl verifies",
        ),
        (Lie::Bits(1024), "makes RSA-2048 keys with exponent 65537"),
    ] {
        let store = ScriptedStore::lying(StoreId::Tpm2, lie);
        let report = examine(&Subject::new("liar", || Box::new(store.clone())));
        assert!(
            report.failed().any(|failed| failed == check),
            "{lie:?}\n{report}"
        );
    }
}
