//! A signature by keybond-tpm, by tss-esapi and by OpenSSL's tpm2 provider, side by side: the same key in the same
//! software TPM, over TCP, which all three speak, in short turns in the same run. What the command alone takes, over a
//! bare socket, is the measure.

mod openssl;
mod swtpm;
mod tss;

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::{Duration, Instant},
};

use keybond_tpm::{Existing, Hash, KeyRequest, Scheme, Tpm, TpmOptions};

use crate::{openssl::OpenSsl, swtpm::Swtpm, tss::Tss};

const ROUNDS: usize = 8;
const EACH: usize = 25;
const DIGEST: [u8; 32] = [7; 32];
const PSS: Scheme = Scheme::Pss(Hash::Sha256);

type Failure = Box<dyn std::error::Error>;
type Times = Result<Vec<Duration>, Failure>;

fn main() -> Result<(), Failure> {
    let swtpm = Swtpm::start()?;
    let options = TpmOptions {
        // The others get their turn soon after this one falls silent.
        idle_release: Some(Duration::from_millis(5)),
        ..TpmOptions::default()
    };
    let tpm = Tpm::open(&swtpm.address().parse()?, &options)?;
    let blob = tpm.create_key(&KeyRequest::default())?;
    let file = swtpm.dir().join("key.pem");
    blob.save(&file, Existing::Replace)?;
    let key = tpm.load(&blob)?;
    key.sign_digest(PSS, &DIGEST)?;
    // Three keys in turn: two stay loaded, so that each one pushes another out.
    let mut turns = Vec::new();
    for _ in 0..3 {
        let turn = tpm.load(&tpm.create_key(&KeyRequest::default())?)?;
        turn.sign_digest(PSS, &DIGEST)?;
        turns.push(turn);
    }
    let openssl = OpenSsl::build(swtpm.dir())?;
    let tss = || Tss::connect(&swtpm.tss_config(), &blob);

    let mut kept: [Vec<Duration>; 5] = Default::default();
    let mut loaded: [Vec<Duration>; 4] = Default::default();
    for _ in 0..ROUNDS {
        let ours = || -> Times {
            key.sign_digest(PSS, &DIGEST)?;
            (0..EACH)
                .map(|_| timed(|| Ok(drop(key.sign_digest(PSS, &DIGEST)?))))
                .collect()
        };
        kept[0].extend(bare(&swtpm, &blob, false)?);
        kept[1].extend(ours()?);
        kept[2].extend(tss()?.signatures(true)?);
        kept[3].extend(tss()?.signatures(false)?);
        kept[4].extend(openssl.signatures(&swtpm, &file, EACH)?);
        loaded[0].extend(bare(&swtpm, &blob, true)?);
        for turn in &turns {
            turn.sign_digest(PSS, &DIGEST)?;
        }
        for n in 0..EACH {
            loaded[1].push(timed(|| Ok(drop(turns[n % 3].sign_digest(PSS, &DIGEST)?)))?);
        }
        loaded[2].extend(tss()?.load_sign_flush(true)?);
        loaded[3].extend(tss()?.load_sign_flush(false)?);
    }
    report("PSS signature, the key kept loaded", &NAMES, kept);
    report("load, sign, flush", &NAMES[..4], loaded);
    Ok(())
}

const NAMES: [&str; 5] = [
    "bare exchange",
    "keybond-tpm",
    "tss-esapi 7.7.0, password session",
    "tss-esapi 7.7.0, null auth session",
    "OpenSSL, provider tpm2",
];

fn report<const N: usize>(what: &str, names: &[&str], times: [Vec<Duration>; N]) {
    println!("\n{what}: median, and as a multiple of the bare exchange");
    let medians = times.map(median);
    for (name, time) in names.iter().zip(medians) {
        println!(
            "  {name:<36} {time:>9.3?}  {:.2}",
            time.as_secs_f64() / medians[0].as_secs_f64()
        );
    }
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

pub(crate) fn timed(job: impl FnOnce() -> Result<(), Failure>) -> Result<Duration, Failure> {
    let began = Instant::now();
    job()?;
    Ok(began.elapsed())
}

/// The commands alone: TPM2_Sign, or with TPM2_Load before and TPM2_FlushContext after it.
fn bare(swtpm: &Swtpm, blob: &keybond_tpm::KeyBlob, reload: bool) -> Times {
    let mut stream = TcpStream::connect(("127.0.0.1", swtpm.port()))?;
    stream.set_nodelay(true)?;
    let srk = handle(&exchange(&mut stream, &create_primary())?);
    let load = with_password(
        0x157,
        srk,
        &[blob.tpm2b_private(), blob.tpm2b_public()].concat(),
    );
    let sign = |key| with_password(0x15d, key, &sign_parameters());
    let mut key = handle(&exchange(&mut stream, &load)?);
    let mut times = Vec::new();
    for _ in 0..EACH {
        times.push(timed(|| {
            if reload {
                exchange(&mut stream, &flush(key))?;
                key = handle(&exchange(&mut stream, &load)?);
            }
            exchange(&mut stream, &sign(key)).map(drop)
        })?);
    }
    exchange(&mut stream, &flush(key))?;
    exchange(&mut stream, &flush(srk))?;
    Ok(times)
}

fn exchange(stream: &mut TcpStream, command: &[u8]) -> Result<Vec<u8>, Failure> {
    stream.write_all(command)?;
    let mut answer = vec![0; 10];
    stream.read_exact(&mut answer)?;
    if answer[6..] != [0; 4] {
        return Err(format!("{:02x?}: {:02x?}", &command[6..10], &answer[6..]).into());
    }
    let length = u32::from_be_bytes([answer[2], answer[3], answer[4], answer[5]]) as usize;
    answer.resize(length, 0);
    stream.read_exact(&mut answer[10..])?;
    Ok(answer)
}

fn handle(answer: &[u8]) -> u32 {
    u32::from_be_bytes([answer[10], answer[11], answer[12], answer[13]])
}

fn command(tag: u8, code: u32, rest: &[u8]) -> Vec<u8> {
    let length = rest.len() as u32 + 10;
    [
        &[0x80, tag][..],
        &length.to_be_bytes(),
        &code.to_be_bytes(),
        rest,
    ]
    .concat()
}

/// A command with one handle, authorized by an empty password.
fn with_password(code: u32, handle: u32, parameters: &[u8]) -> Vec<u8> {
    let session = [0, 0, 0, 9, 0x40, 0, 0, 9, 0, 0, 1, 0, 0];
    command(
        2,
        code,
        &[&handle.to_be_bytes()[..], &session, parameters].concat(),
    )
}

fn flush(handle: u32) -> Vec<u8> {
    command(1, 0x165, &handle.to_be_bytes())
}

fn sign_parameters() -> Vec<u8> {
    // The digest, RSAPSS with SHA-256, no ticket.
    let rest = [0, 0x16, 0, 0x0b, 0x80, 0x24, 0x40, 0, 0, 7, 0, 0];
    [&[0, 32][..], &DIGEST, &rest].concat()
}

/// The TPMT_PUBLIC of the storage root key: what parent 0x40000001 in a key file means.
pub(crate) const SRK: [u8; 26] = [
    0, 0x23, 0, 0x0b, 0, 3, 4, 0x72, 0, 0, 0, 6, 0, 0x80, 0, 0x43, 0, 0x10, 0, 3, 0, 0x10, 0, 0, 0,
    0,
];

fn create_primary() -> Vec<u8> {
    let sensitive = [0, 4, 0, 0, 0, 0];
    let public = [&[0, SRK.len() as u8][..], &SRK].concat();
    let parameters = [&sensitive[..], &public, &[0; 6]].concat();
    with_password(0x131, 0x4000_0001, &parameters)
}
