//! The figures of the TLS layer against their likes in the same run: a handshake against bare rustls, a download
//! against curl, slow keys against the clock, ten thousand calls against the memory. `cargo xtask bench`
//!
//! `cargo bench --workspace --bench figures -- handshake` makes the named ones only.
#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs)]

#[cfg(not(target_os = "linux"))]
fn main() {}

/// The connector that is measured.
#[cfg(target_os = "linux")]
pub(crate) use keybond_tls::S2nConnector as Connector;

#[cfg(target_os = "linux")]
#[path = "figures/download.rs"]
mod download;
#[cfg(target_os = "linux")]
#[path = "figures/handshake.rs"]
mod handshake;
#[cfg(target_os = "linux")]
#[path = "figures/memory.rs"]
mod memory;
#[cfg(target_os = "linux")]
#[path = "../tests/tls/pki.rs"]
#[allow(dead_code, reason = "the tests use more of it")]
mod pki;
#[cfg(target_os = "linux")]
#[path = "../tests/tls/rustls_server.rs"]
#[allow(dead_code, reason = "the tests use more of it")]
mod rustls_server;
#[cfg(target_os = "linux")]
#[path = "figures/slow.rs"]
mod slow;

#[cfg(target_os = "linux")]
fn main() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let named: Vec<String> = std::env::args()
        .skip(1)
        .filter(|argument| !argument.starts_with('-'))
        .collect();
    let wanted = |name: &str| named.is_empty() || named.iter().any(|named| named == name);
    if wanted("handshake") {
        for version in [&rustls::version::TLS13, &rustls::version::TLS12] {
            runtime.block_on(handshake::compare(version));
        }
    }
    if wanted("slow") {
        slow::eight_at_once();
    }
    if wanted("memory") {
        runtime.block_on(memory::ten_thousand_calls());
    }
    if wanted("download") {
        runtime.block_on(download::a_gibibyte());
    }
}

/// Prints a figure and whether it is within its bound.
#[cfg(target_os = "linux")]
fn report(what: &str, found: f64, bound: f64, unit: &str) {
    let verdict = if found <= bound { "ok" } else { "MISSED" };
    println!("{what:<58} {found:>9.3} {unit:<5} (bound {bound}) {verdict}");
}

#[cfg(target_os = "linux")]
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
