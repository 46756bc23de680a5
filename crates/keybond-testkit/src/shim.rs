//! A man in the middle between a TPM client and a TPM: forwards, delays, truncates, lies, hangs.

use std::{
    io::{self, Read, Write},
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use aws_lc_rs::digest::{Digest, SHA256, digest};
use tempfile::TempDir;

/// What the shim does with one command.
#[derive(Clone, Debug)]
pub enum Action {
    /// Hands it to the TPM and the answer back.
    Forward,
    /// The same, but the answer comes later.
    Delay(Duration),
    /// Answers these bytes itself.
    Answer(Vec<u8>),
    /// Gives only the first so many bytes of the TPM's answer, then closes.
    Truncate(usize),
    /// Changes the length in the header of the TPM's answer to this.
    LieAboutLength(u32),
    /// Never answers; keeps the connection open.
    Hang,
    /// Closes the connection without an answer.
    Close,
    /// Signs PSS with the largest salt that fits (222 bytes), as chips that do not follow FIPS 186-4 may. If
    /// the key cannot do raw RSA, which the shim needs for that, the answer is a signature that does not verify.
    LargestSalt,
}

/// A response of only a header with this response code.
pub fn response_code(rc: u32) -> Vec<u8> {
    let mut bytes = vec![0x80, 0x01, 0, 0, 0, 10];
    bytes.extend_from_slice(&rc.to_be_bytes());
    bytes
}

/// A policy for [`Shim::start`]: a chip whose TPM2_Sign does PSS with a salt of 222 bytes.
pub fn old_pss(command: &[u8]) -> Action {
    if is_pss_sign(command) {
        Action::LargestSalt
    } else {
        Action::Forward
    }
}

/// A running shim. Dropping it ends nothing that is in progress; its threads end with their connections.
#[derive(Debug)]
pub struct Shim {
    dir: TempDir,
    commands: Arc<AtomicUsize>,
}

impl Shim {
    /// Listens on a socket of its own in front of the TPM at `upstream` and asks `policy` about every command
    /// (the whole command in wire format).
    ///
    /// # Errors
    /// If the socket cannot be made.
    pub fn start<P>(upstream: &Path, policy: P) -> io::Result<Self>
    where
        P: FnMut(&[u8]) -> Action + Send + 'static,
    {
        let dir = tempfile::Builder::new().prefix("shim-").tempdir()?;
        let listener = UnixListener::bind(dir.path().join("sock"))?;
        let commands = Arc::new(AtomicUsize::new(0));
        let policy = Arc::new(Mutex::new(policy));
        let (counter, upstream) = (Arc::clone(&commands), upstream.to_path_buf());
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let (counter, policy, upstream) =
                    (Arc::clone(&counter), Arc::clone(&policy), upstream.clone());
                thread::spawn(move || serve(client, &upstream, &counter, &policy));
            }
        });
        Ok(Self { dir, commands })
    }

    /// The shim's Unix socket.
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("sock")
    }

    /// The address in keybond's notation, `unix:/…`.
    pub fn address(&self) -> String {
        format!("unix:{}", self.socket().display())
    }

    /// How many commands arrived so far.
    pub fn commands(&self) -> usize {
        self.commands.load(Ordering::SeqCst)
    }
}

/// Ends with the connection; an error on either side closes both.
fn serve<P>(mut client: UnixStream, upstream: &Path, counter: &AtomicUsize, policy: &Mutex<P>)
where
    P: FnMut(&[u8]) -> Action,
{
    // The TPM serves one connection at a time, so the shim takes it only when it must.
    let mut tpm = None;
    while let Ok(command) = read_frame(&mut client) {
        counter.fetch_add(1, Ordering::SeqCst);
        let action = match policy.lock() {
            Ok(mut policy) => policy(&command),
            Err(_) => return,
        };
        let mut ask = |command: &[u8]| -> io::Result<Vec<u8>> {
            let tpm = match &mut tpm {
                Some(tpm) => tpm,
                empty => empty.insert(UnixStream::connect(upstream)?),
            };
            tpm.write_all(command)?;
            read_frame(tpm)
        };
        let answer = match action {
            Action::Forward => ask(&command),
            Action::Delay(by) => ask(&command).inspect(|_| thread::sleep(by)),
            Action::Answer(bytes) => Ok(bytes),
            Action::Truncate(length) => {
                if let Ok(answer) = ask(&command) {
                    let _ = client.write_all(&answer[..length.min(answer.len())]);
                }
                return;
            }
            Action::LieAboutLength(length) => ask(&command).map(|mut answer| {
                answer[2..6].copy_from_slice(&length.to_be_bytes());
                answer
            }),
            Action::Hang => {
                // Returns when the client gives up.
                let _ = client.read(&mut [0]);
                return;
            }
            Action::Close => return,
            Action::LargestSalt => sign_with_largest_salt(&command, &mut ask),
        };
        match answer {
            Ok(answer) if client.write_all(&answer).is_ok() => {}
            _ => return,
        }
    }
}

pub(crate) fn read_frame(stream: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut frame = vec![0; 10];
    stream.read_exact(&mut frame)?;
    let length = u32::from_be_bytes([frame[2], frame[3], frame[4], frame[5]]) as usize;
    if !(10..=4096).contains(&length) {
        return Err(io::Error::other("frame length"));
    }
    frame.resize(length, 0);
    stream.read_exact(&mut frame[10..])?;
    Ok(frame)
}

/// Where the parameters of a command with one handle and an authorization area begin.
fn parameters(command: &[u8]) -> Option<usize> {
    let size = command.get(14..18)?;
    Some(18 + u32::from_be_bytes([size[0], size[1], size[2], size[3]]) as usize)
}

fn is_pss_sign(command: &[u8]) -> bool {
    let scheme = || {
        let start = parameters(command)?;
        let digest = u16::from_be_bytes([*command.get(start)?, *command.get(start + 1)?]);
        command.get(start + 2 + usize::from(digest)..)?.get(..2)
    };
    command.get(6..10) == Some(&[0, 0, 1, 0x5d]) && scheme() == Some(&[0, 0x16])
}

/// Answers a TPM2_Sign(RSAPSS, SHA-256) through TPM2_RSA_Decrypt of an encoding with a salt of 222 bytes.
fn sign_with_largest_salt(
    sign: &[u8],
    ask: &mut impl FnMut(&[u8]) -> io::Result<Vec<u8>>,
) -> io::Result<Vec<u8>> {
    let bad = || io::Error::other("not a signature over SHA-256");
    let start = parameters(sign).ok_or_else(bad)?;
    let message_hash = sign.get(start + 2..start + 34).ok_or_else(bad)?;
    let encoded = largest_salt_encoding(message_hash);

    let mut raw = sign[..start].to_vec();
    raw[6..10].copy_from_slice(&0x159u32.to_be_bytes());
    raw.extend_from_slice(&256u16.to_be_bytes());
    raw.extend_from_slice(&encoded);
    raw.extend_from_slice(&[0, 0x10, 0, 0]);
    let length = u32::try_from(raw.len()).map_err(|_| bad())?;
    raw[2..6].copy_from_slice(&length.to_be_bytes());

    let answer = ask(&raw)?;
    let mut native = ask(sign)?;
    // header 10, parameter size 4, scheme 2, hash 2, length 2, then the signature.
    let signature = native.get_mut(20..276).ok_or_else(bad)?;
    match answer.get(6..10) {
        Some([0, 0, 0, 0]) => signature.copy_from_slice(answer.get(16..272).ok_or_else(bad)?),
        _ => signature[128] ^= 1,
    }
    Ok(native)
}

/// EMSA-PSS (RFC 8017 §9.1.1) for a modulus of 2048 bits with SHA-256 and a salt of 222 bytes.
fn largest_salt_encoding(message_hash: &[u8]) -> Vec<u8> {
    let salt = [0x5a; 222];
    let hash = sha256(&[&[0; 8], message_hash, &salt]);
    let mut block = vec![1];
    block.extend_from_slice(&salt);
    let mask = (0u32..7).flat_map(|n| sha256(&[hash.as_ref(), &n.to_be_bytes()]).as_ref().to_vec());
    for (byte, mask) in block.iter_mut().zip(mask.collect::<Vec<_>>()) {
        *byte ^= mask;
    }
    block[0] &= 0x7f;
    block.extend_from_slice(hash.as_ref());
    block.push(0xbc);
    block
}

fn sha256(parts: &[&[u8]]) -> Digest {
    digest(&SHA256, &parts.concat())
}
