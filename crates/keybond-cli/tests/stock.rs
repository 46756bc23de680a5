//! The command under Wine as it comes: any provider opens there, and the flags for VBS are accepted and ignored.
//!
//! Run by `cargo xtask windows`.
#![cfg(windows)]
#![allow(clippy::unwrap_used)]

#[path = "windows/mod.rs"]
mod windows;

use windows::Keybond;

#[test]
#[ignore = "run under stock Wine by `cargo xtask windows`"]
fn no_keyguard_and_no_hardware_reasons_given_and_memory_used() {
    let keybond = Keybond::new();
    let doctor = keybond.doctor();
    for store in ["keyguard", "platform"] {
        let refusal = doctor.refusal(store);
        assert_eq!(refusal["reason"], "not_supported", "{refusal}");
        let detail = refusal["detail"].as_str().unwrap();
        assert!(
            detail.contains("does not say what implements it"),
            "{detail}"
        );
        assert!(!refusal["remedy"].as_str().unwrap().is_empty(), "{refusal}");
    }
    assert!(doctor.is_available("memory"));
    assert_eq!(keybond.key()["store"], "memory");
    let refused = keybond.run(&["key", "show", "--min-strength", "hardware", "--json"]);
    assert_eq!(refused.status.code(), Some(3));
}

#[test]
#[ignore = "run under stock Wine by `cargo xtask windows`"]
fn the_demo_runs_with_a_key_in_memory() {
    let keybond = Keybond::new();
    let demo = keybond.json(&["demo", "--json"]);
    assert_eq!(demo["ok"], true, "{demo}");
    assert_eq!(demo["key"]["store"], "memory");
    assert_eq!(demo["key"]["strength"], "software");
}
