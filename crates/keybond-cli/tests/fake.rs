//! The command as a Windows program under Wine, over the fake `ncrypt.dll`: named keys, KeyGuard, a TPM.
//!
//! Run by `cargo xtask windows`, which puts the library beside the program.
#![cfg(windows)]
#![allow(clippy::unwrap_used)]

#[path = "windows/mod.rs"]
mod windows;

use keybond_testkit::FakeNcrypt;
use windows::Keybond;

#[test]
#[ignore = "run with the fake ncrypt.dll by `cargo xtask windows`"]
fn keyguard_then_the_tpm_then_memory() {
    let machine = FakeNcrypt::new("vbs=on tpm=on");
    let order = ["keyguard", "platform", "memory"];
    let expected = [
        ("vbs=on tpm=on", "keyguard", "keyguard"),
        ("vbs=off tpm=on", "platform", "hardware"),
        ("vbs=off tpm=off", "memory", "software"),
    ];
    for (at, (config, store, strength)) in expected.into_iter().enumerate() {
        machine.becomes(config);
        let keybond = Keybond::new();
        let doctor = keybond.doctor();
        for above in &order[..at] {
            let refusal = doctor.refusal(above);
            assert!(refusal["native"]["code"].is_i64(), "{refusal}");
            assert!(!refusal["remedy"].as_str().unwrap().is_empty(), "{refusal}");
        }
        assert!(doctor.is_available(store), "{config}");
        let key = keybond.key();
        assert_eq!(
            (&key["store"], &key["strength"]),
            (&store.into(), &strength.into())
        );
    }
    assert_eq!(machine.keys(), 2);
}

/// Everything over process borders of Windows programs: the CSR and the handshakes are signed by a CNG key.
#[test]
#[ignore = "run with the fake ncrypt.dll by `cargo xtask windows`"]
fn the_whole_demo_runs_with_a_keyguard_key_and_leaves_none() {
    for (config, store, strength) in [
        ("vbs=on tpm=on", "keyguard", "keyguard"),
        ("vbs=off tpm=on", "platform", "hardware"),
    ] {
        let machine = FakeNcrypt::new(config);
        let keybond = Keybond::new();
        let demo = keybond.json(&["demo", "--json"]);
        assert_eq!(demo["ok"], true, "{demo}");
        assert_eq!(demo["key"]["store"], store, "{demo}");
        assert_eq!(demo["key"]["strength"], strength, "{demo}");
        let legs = demo["legs"].as_array().unwrap();
        let signed = |name: &str| {
            let leg = legs.iter().find(|leg| leg["leg"] == name);
            let leg = leg.unwrap_or_else(|| panic!("no leg {name}: {demo}"));
            leg["client_signature"].as_str().map(ToOwned::to_owned)
        };
        assert_eq!(signed("token").as_deref(), Some("PS256"));
        let attempts = demo["attempts"].as_array().unwrap();
        assert_eq!(attempts.len(), 4);
        assert!(
            attempts
                .iter()
                .all(|attempt| attempt["status"] == attempt["expected"])
        );

        // Two keys made, both used by CNG alone, both gone.
        let calls = machine.calls();
        let count = |what: &str| calls.iter().filter(|call| call.starts_with(what)).count();
        assert_eq!((count("finalize"), count("delete")), (2, 2), "{calls:?}");
        assert_eq!(machine.keys(), 0);
        let signatures = machine.signatures();
        assert!(signatures.len() > 12, "{signatures:?}");
    }
}

/// A reboot between two runs of the command.
#[test]
#[ignore = "run with the fake ncrypt.dll by `cargo xtask windows`"]
fn after_a_reboot_the_command_goes_on_with_one_new_key() {
    for stale in ["sign", "open"] {
        let machine = FakeNcrypt::new("vbs=on boot=1");
        let keybond = Keybond::new();
        let before = keybond.key();
        machine.forget_calls();
        machine.becomes(&format!("vbs=on boot=2 stale={stale}"));
        let after = keybond.key();
        assert_eq!(after["store"], "keyguard");
        assert_ne!(after["key_id"], before["key_id"]);
        assert_eq!(keybond.key()["key_id"], after["key_id"]);
        assert_eq!(machine.calls(), ["finalize keybond-default"], "{stale}");
    }
}

#[test]
#[ignore = "run with the fake ncrypt.dll by `cargo xtask windows`"]
fn the_key_of_msal_is_used_and_never_deleted() {
    let machine = FakeNcrypt::new("vbs=on");
    let keybond = Keybond::new();
    let shared = keybond.json(&["key", "show", "--interop", "msal", "--json"]);
    let own = keybond.key();
    assert_ne!(shared["key_id"], own["key_id"]);
    assert_eq!(
        machine.calls(),
        ["finalize KeyGuardRSAKey", "finalize keybond-default"]
    );
    let delete = ["key", "delete", "--yes", "--interop", "msal"];
    assert!(!keybond.run(&delete).status.success());
    assert_eq!(machine.keys(), 2);
}

#[test]
#[ignore = "run with the fake ncrypt.dll by `cargo xtask windows`"]
fn a_rotated_key_is_the_one_in_use_from_then_on() {
    let machine = FakeNcrypt::new("vbs=on");
    let keybond = Keybond::new();
    let old = keybond.key();
    let rotated = keybond.run(&["key", "rotate", "--json"]);
    assert!(rotated.status.success(), "{rotated:?}");
    let new = keybond.key();
    assert_ne!(new["key_id"], old["key_id"]);
    assert_eq!(
        machine.calls(),
        ["finalize keybond-default", "finalize keybond-default-b"]
    );
    assert!(keybond.run(&["key", "delete", "--yes"]).status.success());
    assert_eq!(machine.keys(), 0);
}
