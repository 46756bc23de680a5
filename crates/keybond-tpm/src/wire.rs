//! Frames: building a command, taking a response apart (TPM 2.0 Library Part 1, §18). Every length is checked
//! before it is believed.

use tpm2_protocol::{TpmWriter, data::TpmCc, frame::TpmMarshalBody};
use zeroize::Zeroizing;

use crate::{error::TpmError, rc::ResponseCode};

/// The largest frame in either direction; the kernel's buffer has the same size.
pub(crate) const MAX_FRAME: usize = 4096;
/// Tag, length and code.
pub(crate) const HEADER: usize = 10;

const NO_SESSIONS: u16 = 0x8001;
const SESSIONS: u16 = 0x8002;
/// The tag of every TPM 1.2 response (TPM_TAG_RSP_COMMAND).
const TPM12_RESPONSE: u16 = 0x00c4;

/// How a handle is authorized.
#[derive(Clone, Copy)]
pub(crate) enum Auth<'a> {
    /// With its password; empty for most.
    Password(&'a [u8]),
    /// With a policy session.
    Session(u32),
}

/// A command in wire format. Wiped when dropped: it may carry a PIN.
pub(crate) struct Command {
    pub(crate) name: &'static str,
    pub(crate) bytes: Zeroizing<Vec<u8>>,
    response_handle: bool,
    sessions: usize,
}

impl Command {
    /// Begins a command: header, handles, authorizations. Parameters follow through [`Command::body`] and the
    /// like, then [`Command::finish`].
    pub(crate) fn new(name: &'static str, cc: TpmCc, handles: &[u32], auths: &[Auth<'_>]) -> Self {
        // Never grows, so no copy of a PIN is left behind by a reallocation.
        let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_FRAME));
        let tag = if auths.is_empty() {
            NO_SESSIONS
        } else {
            SESSIONS
        };
        bytes.extend_from_slice(&tag.to_be_bytes());
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&(cc as u32).to_be_bytes());
        for handle in handles {
            bytes.extend_from_slice(&handle.to_be_bytes());
        }
        let mut command = Self {
            name,
            bytes,
            response_handle: false,
            sessions: auths.len(),
        };
        if !auths.is_empty() {
            let start = command.bytes.len();
            command.put(&[0; 4]);
            for auth in auths {
                let (session, password) = match auth {
                    Auth::Password(password) => (0x4000_0009u32, *password),
                    Auth::Session(handle) => (*handle, &[][..]),
                };
                command.put(&session.to_be_bytes());
                // No nonce; continueSession.
                command.put(&[0, 0, 1]);
                command.put_sized(password);
            }
            let length = (command.bytes.len() - start - 4) as u32;
            command.bytes[start..start + 4].copy_from_slice(&length.to_be_bytes());
        }
        command
    }

    /// The response begins with a handle.
    pub(crate) fn with_response_handle(mut self) -> Self {
        self.response_handle = true;
        self
    }

    /// Appends raw bytes.
    pub(crate) fn put(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Appends a TPM2B: a length of 16 bits, then the bytes.
    pub(crate) fn put_sized(&mut self, bytes: &[u8]) {
        self.put(&(bytes.len() as u16).to_be_bytes());
        self.put(bytes);
    }

    /// Appends the parameters of a command of `tpm2-protocol`. Not for secrets: its buffers are not wiped.
    pub(crate) fn body(mut self, command: &impl TpmMarshalBody) -> Result<Self, TpmError> {
        let mut buffer = [0; MAX_FRAME];
        let mut writer = TpmWriter::new(&mut buffer);
        command
            .marshal_parameters(&mut writer)
            .map_err(|error| TpmError::Input {
                field: "command parameters",
                detail: format!("{}: {error:?}", self.name),
            })?;
        let length = writer.len();
        self.put(&buffer[..length]);
        self.finish()
    }

    /// Writes the length into the header.
    pub(crate) fn finish(mut self) -> Result<Self, TpmError> {
        let length = self.bytes.len();
        if length > MAX_FRAME {
            return Err(TpmError::Input {
                field: "command",
                detail: format!("{}: {length} bytes, at most {MAX_FRAME}", self.name),
            });
        }
        self.bytes[2..6].copy_from_slice(&(length as u32).to_be_bytes());
        Ok(self)
    }

    /// Takes the response to this command apart.
    ///
    /// # Errors
    /// [`TpmError::Response`] for any code but success, [`TpmError::Tpm12`] (without an address) for a TPM 1.2,
    /// [`TpmError::Malformed`] otherwise.
    pub(crate) fn parse(&self, response: &[u8]) -> Result<Response, TpmError> {
        let bad = |field, detail: String| TpmError::Malformed {
            command: self.name,
            field,
            detail,
        };
        let mut reader = Reader::new(self.name, response);
        let tag = reader.u16("tag")?;
        let size = reader.u32("responseSize")? as usize;
        let code = reader.u32("responseCode")?;
        if size != response.len() || size > MAX_FRAME {
            return Err(bad(
                "responseSize",
                format!("{size}, but {} bytes came", response.len()),
            ));
        }
        if tag == TPM12_RESPONSE {
            return Err(TpmError::Tpm12 {
                address: String::new(),
            });
        }
        if code != 0 {
            if size != HEADER {
                return Err(bad(
                    "responseSize",
                    format!("{size} in an error, expected {HEADER}"),
                ));
            }
            return Err(TpmError::Response {
                command: self.name,
                code: ResponseCode::new(code),
            });
        }
        let expected = if self.sessions == 0 {
            NO_SESSIONS
        } else {
            SESSIONS
        };
        if tag != expected {
            return Err(bad("tag", format!("{tag:#06x}, expected {expected:#06x}")));
        }
        let handle = if self.response_handle {
            Some(reader.u32("handle")?)
        } else {
            None
        };
        let parameters = if self.sessions == 0 {
            reader.rest
        } else {
            let length = reader.u32("parameterSize")? as usize;
            let parameters = reader.take(length, "parameterSize")?;
            for _ in 0..self.sessions {
                reader.sized("session nonce")?;
                reader.take(1, "session attributes")?;
                reader.sized("session hmac")?;
            }
            reader.end("sessions")?;
            parameters
        };
        Ok(Response {
            command: self.name,
            handle,
            parameters: parameters.to_vec(),
        })
    }
}

/// A successful response.
#[derive(Debug)]
pub(crate) struct Response {
    command: &'static str,
    pub(crate) handle: Option<u32>,
    parameters: Vec<u8>,
}

impl Response {
    pub(crate) fn reader(&self) -> Reader<'_> {
        Reader::new(self.command, &self.parameters)
    }

    /// The handle that the command promised.
    pub(crate) fn handle(&self) -> Result<u32, TpmError> {
        self.handle.ok_or_else(|| TpmError::Malformed {
            command: self.command,
            field: "handle",
            detail: "missing".into(),
        })
    }
}

/// Reads big-endian fields and never beyond the end. Errors name the field.
pub(crate) struct Reader<'a> {
    command: &'static str,
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) fn new(command: &'static str, bytes: &'a [u8]) -> Self {
        Self {
            command,
            rest: bytes,
        }
    }

    pub(crate) fn take(
        &mut self,
        length: usize,
        field: &'static str,
    ) -> Result<&'a [u8], TpmError> {
        match self.rest.split_at_checked(length) {
            Some((head, tail)) => {
                self.rest = tail;
                Ok(head)
            }
            None => Err(self.bad(
                field,
                format!("{length} bytes, but {} are left", self.rest.len()),
            )),
        }
    }

    pub(crate) fn u8(&mut self, field: &'static str) -> Result<u8, TpmError> {
        Ok(self.take(1, field)?[0])
    }

    pub(crate) fn u16(&mut self, field: &'static str) -> Result<u16, TpmError> {
        let bytes = self.take(2, field)?;
        Ok(u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    pub(crate) fn u32(&mut self, field: &'static str) -> Result<u32, TpmError> {
        let bytes = self.take(4, field)?;
        Ok(u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    /// A TPM2B without its length.
    pub(crate) fn sized(&mut self, field: &'static str) -> Result<&'a [u8], TpmError> {
        let length = self.u16(field)?;
        self.take(usize::from(length), field)
    }

    /// Whatever is left.
    pub(crate) fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// Refuses bytes that are left over.
    pub(crate) fn end(&self, field: &'static str) -> Result<(), TpmError> {
        match self.rest.len() {
            0 => Ok(()),
            left => Err(self.bad(field, format!("{left} bytes too many"))),
        }
    }

    pub(crate) fn bad(&self, field: &'static str, detail: String) -> TpmError {
        TpmError::Malformed {
            command: self.command,
            field,
            detail,
        }
    }
}
