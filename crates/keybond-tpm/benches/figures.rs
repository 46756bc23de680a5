//! What this crate adds to the bare exchange of commands with the TPM, as ratios within one run: the commands it
//! sends are recorded, then sent again over a bare socket to the same software TPM.
#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs)]

#[cfg(not(target_os = "linux"))]
fn main() {}

#[cfg(target_os = "linux")]
fn main() {
    linux::main();
}

#[cfg(target_os = "linux")]
mod linux {
    use std::{
        io::{Read, Write},
        os::unix::net::UnixStream,
        sync::{Arc, Mutex},
        time::{Duration, Instant},
    };

    use keybond_testkit::{Action, Shim, Swtpm};
    use keybond_tpm::{Hash, KeyRequest, LoadedKey, Scheme, Tpm, TpmOptions};

    const PSS: Scheme = Scheme::Pss(Hash::Sha256);
    const SIGN: u32 = 0x15d;
    const LOAD: u32 = 0x157;
    const FLUSH: u32 = 0x165;
    const CREATE: u32 = 0x153;
    const CREATE_PRIMARY: u32 = 0x131;

    /// Commands as they passed, with the time.
    type Tape = Arc<Mutex<Vec<(Instant, Vec<u8>)>>>;

    fn taped(tpm: &Swtpm) -> (Shim, Tape) {
        let tape = Tape::default();
        let writer = Arc::clone(&tape);
        let shim = Shim::start(&tpm.socket(), move |command| {
            writer
                .lock()
                .unwrap()
                .push((Instant::now(), command.to_vec()));
            Action::Forward
        });
        (shim.unwrap(), tape)
    }

    fn code(command: &[u8]) -> u32 {
        u32::from_be_bytes(command[6..10].try_into().unwrap())
    }

    fn open(address: &str) -> Tpm {
        let options = TpmOptions {
            // The bare socket gets its turn soon after the other one falls silent.
            idle_release: Some(Duration::from_millis(5)),
            ..TpmOptions::default()
        };
        Tpm::open(&address.parse().unwrap(), &options).unwrap()
    }

    fn exchange(stream: &mut UnixStream, command: &[u8]) {
        stream.write_all(command).unwrap();
        let mut header = [0; 10];
        stream.read_exact(&mut header).unwrap();
        assert_eq!(header[6..], [0; 4], "{:#x}", code(command));
        let length = u32::from_be_bytes(header[2..6].try_into().unwrap()) as usize;
        let mut body = vec![0; length - 10];
        stream.read_exact(&mut body).unwrap();
    }

    fn median(mut times: Vec<Duration>) -> Duration {
        times.sort();
        times[times.len() / 2]
    }

    fn timed(mut job: impl FnMut()) -> Duration {
        let began = Instant::now();
        job();
        began.elapsed()
    }

    /// Alternates between both in short bursts, so that they meet the same disturbances.
    fn compare(
        what: &str,
        goal: f64,
        mut bare: impl FnMut() -> Vec<Duration>,
        mut ours: impl FnMut() -> Vec<Duration>,
    ) {
        let (mut first, mut second) = (Vec::new(), Vec::new());
        for _ in 0..12 {
            first.extend(bare());
            second.extend(ours());
        }
        let least = |times: &[Duration]| times.iter().min().copied().unwrap();
        let of_least = least(&second).as_secs_f64() / least(&first).as_secs_f64();
        let (bare, ours) = (median(first), median(second));
        let ratio = ours.as_secs_f64() / bare.as_secs_f64();
        println!(
            "{what:<34} bare {bare:>9.3?}  keybond {ours:>9.3?}  ratio {ratio:.3} (of the fastest {of_least:.3}; goal {goal})"
        );
    }

    pub(super) fn main() {
        detection();
        first_key();
        let tpm = Swtpm::start().unwrap();
        let (shim, tape) = taped(&tpm);
        let through = open(&shim.address());
        let blobs = [(); 3].map(|()| through.create_key(&KeyRequest::default()).unwrap());
        through
            .load(&blobs[0])
            .unwrap()
            .sign_digest(PSS, &[7; 32])
            .unwrap();
        drop(through);
        let tape = tape.lock().unwrap();
        let find = |wanted: u32| {
            tape.iter()
                .rev()
                .map(|(_, command)| command)
                .find(|command| code(command) == wanted)
        };
        let (primary, load, sign) = (
            find(CREATE_PRIMARY).unwrap(),
            find(LOAD).unwrap(),
            find(SIGN).unwrap(),
        );
        // The key is the second object after the storage root key.
        let key = &sign[10..14];
        let mut flush = vec![0x80, 1, 0, 0, 0, 14];
        flush.extend_from_slice(&FLUSH.to_be_bytes());
        flush.extend_from_slice(key);

        let bare = |each: &dyn Fn(&mut UnixStream)| {
            let mut stream = UnixStream::connect(tpm.socket()).unwrap();
            exchange(&mut stream, primary);
            exchange(&mut stream, load);
            let times = (0..40).map(|_| timed(|| each(&mut stream))).collect();
            for handle in [key, &[0x80, 0, 0, 0]] {
                let mut last = flush[..10].to_vec();
                last.extend_from_slice(handle);
                exchange(&mut stream, &last);
            }
            times
        };
        let direct = open(&tpm.address());
        let keys = blobs.each_ref().map(|blob| direct.load(blob).unwrap());
        let sign_with = |key: &LoadedKey| {
            key.sign_digest(PSS, &[7; 32]).unwrap();
        };
        keys.iter().for_each(sign_with);
        compare(
            "sign, the key kept loaded",
            1.02,
            || bare(&|stream| exchange(stream, sign)),
            || {
                sign_with(&keys[0]);
                (0..40).map(|_| timed(|| sign_with(&keys[0]))).collect()
            },
        );
        compare(
            "load, sign, flush",
            1.05,
            || {
                bare(&|stream| {
                    exchange(stream, &flush);
                    exchange(stream, load);
                    exchange(stream, sign);
                })
            },
            || {
                // Two keys stay loaded, so that with three each one pushes another out.
                keys.iter().for_each(sign_with);
                (0..42).map(|n| timed(|| sign_with(&keys[n % 3]))).collect()
            },
        );
    }

    fn detection() {
        let address = "device:/dev/there-is-no-tpm".parse().unwrap();
        let times = (0..200)
            .map(|_| timed(|| assert!(Tpm::open(&address, &TpmOptions::default()).is_err())));
        println!(
            "no TPM: known after {:.3?} (goal 1 ms)",
            median(times.collect())
        );
    }

    /// From nothing to a key that has shown how it signs PSS, less the time of TPM2_Create.
    fn first_key() {
        let mut rest = Vec::new();
        for _ in 0..10 {
            let tpm = Swtpm::start().unwrap();
            let (shim, tape) = taped(&tpm);
            let took = timed(|| {
                let key = open(&shim.address()).create_pss_key(&KeyRequest::default());
                drop(key.unwrap());
            });
            let tape = tape.lock().unwrap();
            let at = tape
                .iter()
                .position(|(_, command)| code(command) == CREATE)
                .unwrap();
            rest.push(took - (tape[at + 1].0 - tape[at].0));
        }
        println!(
            "first key on an empty TPM: creation + {:.3?} (goal 20 ms)",
            median(rest)
        );
    }
}
