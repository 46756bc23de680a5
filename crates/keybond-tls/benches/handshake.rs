//! What a handshake costs with a key in a TPM: against the bare signature and a handshake with a key in memory, all
//! three in turn in the same run. `cargo xtask bench`
#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs)]

#[cfg(not(target_os = "linux"))]
fn main() {}

#[cfg(target_os = "linux")]
#[path = "../tests/tls/pki.rs"]
#[allow(dead_code, reason = "the tests use more of it")]
mod pki;
#[cfg(target_os = "linux")]
#[path = "../tests/tls/rustls_server.rs"]
#[allow(dead_code, reason = "the tests use more of it")]
mod rustls_server;

/// The connector that is measured.
#[cfg(target_os = "linux")]
pub(crate) use keybond_tls::S2nConnector as Connector;

#[cfg(target_os = "linux")]
fn main() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    for version in [&rustls::version::TLS13, &rustls::version::TLS12] {
        runtime.block_on(linux::compare(version));
    }
}

#[cfg(target_os = "linux")]
mod linux {
    use std::{
        io::{Read, Write},
        os::unix::net::UnixStream,
        sync::{Arc, Mutex},
        time::{Duration, Instant},
    };

    use keybond_keys::{HeldKey, KeyProvider, StateDir, StoreId, Tpm2Store};
    use keybond_testkit::{Action, Shim, Swtpm};
    use keybond_tls::{ClientIdentity, Leg, S2nConnector, TlsConnector as _};
    use rustls::SupportedProtocolVersion;

    use crate::{
        pki::{Pki, memory_key},
        rustls_server::RustlsServer,
    };

    const GOAL: f64 = 1.1;
    const ROUNDS: usize = 12;
    const EACH: usize = 25;

    pub(crate) async fn compare(version: &'static SupportedProtocolVersion) {
        let tpm = Swtpm::start().unwrap();
        let tape = Tape::default();
        let writer = Arc::clone(&tape);
        let recorder = Shim::start(&tpm.socket(), move |command| {
            writer.lock().unwrap().push(command.to_vec());
            Action::Forward
        });
        // Made once through the recorder, so that the bare commands are known; used without it.
        let recorder = recorder.unwrap();
        drop(tpm_key(&tpm, &recorder.address()).await);
        let bare = Bare::find(&tape.lock().unwrap());
        let held = tpm_key(&tpm, &tpm.address()).await;

        let pki = Pki::new();
        let server = RustlsServer::start(&pki, version).await;
        let connector = pki.connector();
        let in_memory = pki.identity_of(memory_key().await);
        let in_tpm = pki.identity_of(held);
        let (mut signed, mut memory, mut device) = (Vec::new(), Vec::new(), Vec::new());
        // In short bursts, so that all meet the same disturbances.
        for _ in 0..ROUNDS {
            // swtpm serves one connection at a time: this one waits until the key's has been idle.
            signed.extend(bare.signatures(&tpm));
            for (identity, times) in [(&in_memory, &mut memory), (&in_tpm, &mut device)] {
                // Connects to the TPM and loads the key anew.
                handshake(&server, &connector, identity).await;
                for _ in 0..EACH {
                    times.push(handshake(&server, &connector, identity).await);
                }
            }
        }
        let ratio = |of: fn(&[Duration]) -> Duration| {
            of(&device).as_secs_f64() / (of(&signed) + of(&memory)).as_secs_f64()
        };
        println!(
            "{:?} handshake with a key in the TPM: {:.3?}; bare signature {:.3?} + handshake in memory {:.3?}: ratio \
             {:.3} (of the fastest {:.3}; goal {GOAL})",
            version.version,
            median(&device),
            median(&signed),
            median(&memory),
            ratio(median),
            ratio(least)
        );
    }

    async fn tpm_key(tpm: &Swtpm, address: &str) -> Arc<HeldKey> {
        let state = StateDir::open(tpm.dir().join("keybond")).unwrap();
        let store = Tpm2Store::new(address.parse().unwrap(), &state).unwrap();
        let provider = KeyProvider::builder().store(store).state_dir(state).build();
        let key = provider.get_or_create_key().await.unwrap();
        assert_eq!(key.store(), StoreId::Tpm2);
        key
    }

    /// The time of the client's handshake; the server's side runs beside it.
    async fn handshake(
        server: &RustlsServer,
        connector: &S2nConnector,
        identity: &Arc<ClientIdentity>,
    ) -> Duration {
        let tcp = server.dial().await;
        let began = Instant::now();
        let (connected, accepted) = tokio::join!(
            connector.connect(
                tcp,
                "localhost",
                Leg::FirstHandshake,
                Some(Arc::clone(identity))
            ),
            server.accept(),
        );
        let took = began.elapsed();
        accepted.unwrap();
        assert!(connected.unwrap().info().client_signature.is_some());
        took
    }

    type Tape = Arc<Mutex<Vec<Vec<u8>>>>;

    /// The commands of a signature, as the store sends them.
    struct Bare {
        primary: Vec<u8>,
        load: Vec<u8>,
        sign: Vec<u8>,
    }

    impl Bare {
        fn find(tape: &[Vec<u8>]) -> Self {
            let of = |code: [u8; 4]| {
                let found = tape.iter().find(|command| command[6..10] == code);
                found.unwrap().clone()
            };
            Self {
                primary: of([0, 0, 1, 0x31]),
                load: of([0, 0, 1, 0x57]),
                sign: of([0, 0, 1, 0x5d]),
            }
        }

        fn signatures(&self, tpm: &Swtpm) -> Vec<Duration> {
            let mut stream = UnixStream::connect(tpm.socket()).unwrap();
            exchange(&mut stream, &self.primary);
            exchange(&mut stream, &self.load);
            let times = (0..EACH).map(|_| {
                let began = Instant::now();
                exchange(&mut stream, &self.sign);
                began.elapsed()
            });
            let times = times.collect();
            for handle in [1, 0] {
                let flush = [0x80, 1, 0, 0, 0, 14, 0, 0, 1, 0x65, 0x80, 0, 0, handle];
                exchange(&mut stream, &flush);
            }
            times
        }
    }

    fn exchange(stream: &mut UnixStream, command: &[u8]) {
        stream.write_all(command).unwrap();
        let mut header = [0; 10];
        stream.read_exact(&mut header).unwrap();
        assert_eq!(header[6..], [0; 4], "{:02x?}", &command[6..10]);
        let length = u32::from_be_bytes(header[2..6].try_into().unwrap()) as usize;
        stream.read_exact(&mut vec![0; length - 10]).unwrap();
    }

    fn median(times: &[Duration]) -> Duration {
        let mut times = times.to_vec();
        times.sort();
        times[times.len() / 2]
    }

    fn least(times: &[Duration]) -> Duration {
        times.iter().min().copied().unwrap()
    }
}
