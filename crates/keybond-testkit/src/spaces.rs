//! What the kernel's resource manager does (drivers/char/tpm/tpm2-space.c): every client has a space of its own
//! with virtual handles; its objects are swapped into the TPM for each command and out again. Sessions are not
//! swapped, unlike in the kernel.

use std::{
    collections::HashMap,
    io::{self, Write},
    os::unix::net::UnixStream,
    path::PathBuf,
    time::Duration,
};

use crate::shim::read_frame;

const CREATE_PRIMARY: u32 = 0x131;
const LOAD: u32 = 0x157;
const CONTEXT_LOAD: u32 = 0x161;
const CONTEXT_SAVE: u32 = 0x162;
const FLUSH_CONTEXT: u32 = 0x165;
const LOAD_EXTERNAL: u32 = 0x167;
const START_AUTH_SESSION: u32 = 0x176;
const GET_CAPABILITY: u32 = 0x17a;
/// No TPM gives this handle to anybody.
const NO_OBJECT: u32 = 0x80ff_ffff;

/// All spaces in front of one TPM.
pub(crate) struct Spaces {
    upstream: PathBuf,
    tpm: Option<UnixStream>,
    spaces: HashMap<u64, Space>,
}

#[derive(Default)]
struct Space {
    /// Virtual handles and saved contexts.
    objects: Vec<(u32, Vec<u8>)>,
    sessions: Vec<u32>,
    made: u32,
}

impl Spaces {
    pub(crate) fn new(upstream: PathBuf) -> Self {
        Self {
            upstream,
            tpm: None,
            spaces: HashMap::new(),
        }
    }

    /// Frees what a client left behind.
    pub(crate) fn close(&mut self, client: u64) {
        for session in self.spaces.remove(&client).unwrap_or_default().sessions {
            // The TPM may be gone; then so is the session.
            let _ = self.command(FLUSH_CONTEXT, &session.to_be_bytes());
        }
        self.tpm = None;
    }

    /// Runs one command of a client. An error is one of the way to the TPM.
    pub(crate) fn run(&mut self, client: u64, command: &[u8]) -> io::Result<Vec<u8>> {
        let mut space = self.spaces.remove(&client).unwrap_or_default();
        let result = self.run_in(&mut space, command);
        self.spaces.insert(client, space);
        // swtpm serves one connection at a time; between commands it is anybody's.
        self.tpm = None;
        result
    }

    fn run_in(&mut self, space: &mut Space, command: &[u8]) -> io::Result<Vec<u8>> {
        let code = word(command, 6);
        let mut command = command.to_vec();
        let mut real = HashMap::new();
        for (handle, context) in &space.objects {
            let loaded = self.command(CONTEXT_LOAD, context)?;
            if word(&loaded, 6) == 0 {
                real.insert(*handle, word(&loaded, 10));
            }
        }
        let mut flushed = None;
        // TPM2_FlushContext has its handle where others have their first parameter, which is the same place.
        let handles = if code == FLUSH_CONTEXT {
            1
        } else {
            handles_of(code)
        };
        for at in (0..handles).map(|index| 10 + 4 * index) {
            let handle = word(&command, at);
            if handle >> 24 == 0x80 {
                let to = real.get(&handle).copied().unwrap_or(NO_OBJECT);
                command[at..at + 4].copy_from_slice(&to.to_be_bytes());
                flushed = (code == FLUSH_CONTEXT).then_some(handle);
            } else if code == FLUSH_CONTEXT {
                space.sessions.retain(|session| *session != handle);
            }
        }
        let mut response = self.exchange(&command)?;
        if word(&response, 6) == 0 {
            match code {
                CREATE_PRIMARY | LOAD | LOAD_EXTERNAL | CONTEXT_LOAD => {
                    space.made += 1;
                    let handle = 0x8100_0000 - space.made;
                    real.insert(handle, word(&response, 10));
                    space.objects.push((handle, Vec::new()));
                    response[10..14].copy_from_slice(&handle.to_be_bytes());
                }
                START_AUTH_SESSION => space.sessions.push(word(&response, 10)),
                // A client sees only what is its own.
                GET_CAPABILITY if word(&command, 10) == 1 && command[14] == 0x80 => {
                    let own: Vec<u32> = space.objects.iter().map(|(handle, _)| *handle).collect();
                    response = handle_list(&own);
                }
                _ => {}
            }
            space.objects.retain(|(handle, _)| Some(*handle) != flushed);
        }
        for (handle, context) in &mut space.objects {
            let Some(real) = real.get(handle) else {
                continue;
            };
            let saved = self.command(CONTEXT_SAVE, &real.to_be_bytes())?;
            if word(&saved, 6) == 0 {
                *context = saved[10..].to_vec();
            }
            self.command(FLUSH_CONTEXT, &real.to_be_bytes())?;
        }
        Ok(response)
    }

    fn command(&mut self, code: u32, body: &[u8]) -> io::Result<Vec<u8>> {
        let length = u32::try_from(body.len() + 10).map_err(io::Error::other)?;
        let header = [&[0x80, 1][..], &length.to_be_bytes(), &code.to_be_bytes()].concat();
        self.exchange(&[&header, body].concat())
    }

    fn exchange(&mut self, command: &[u8]) -> io::Result<Vec<u8>> {
        let tpm = match &mut self.tpm {
            Some(tpm) => tpm,
            none => {
                let tpm = UnixStream::connect(&self.upstream)?;
                // A stopped TPM must not leave the test's process unkillable inside the kernel.
                tpm.set_read_timeout(Some(Duration::from_secs(20)))?;
                none.insert(tpm)
            }
        };
        tpm.write_all(command)?;
        read_frame(tpm)
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    let word = bytes.get(at..at + 4).and_then(|word| word.try_into().ok());
    u32::from_be_bytes(word.unwrap_or_default())
}

/// How many handles a command has, of those that keybond and tpm2-tools use.
fn handles_of(code: u32) -> usize {
    match code {
        0x143 | 0x144 | 0x145 | 0x161 | 0x165 | 0x167 | 0x17a | 0x17b | 0x17d => 0,
        0x120 | 0x147 | 0x148 | 0x14b | 0x14e | 0x150 | 0x151 | 0x176 => 2,
        _ => 1,
    }
}

/// A response of TPM2_GetCapability(TPM_CAP_HANDLES).
fn handle_list(handles: &[u32]) -> Vec<u8> {
    let mut response = vec![0x80, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    for number in [&[handles.len() as u32], handles].concat() {
        response.extend_from_slice(&number.to_be_bytes());
    }
    let length = response.len() as u32;
    response[2..6].copy_from_slice(&length.to_be_bytes());
    response
}
