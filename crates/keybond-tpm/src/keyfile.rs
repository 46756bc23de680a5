//! Key files: TSS2 PEM, the format that OpenSSL's tpm2 provider reads and writes.
//!
//! ```text
//! TPMKey ::= SEQUENCE {
//!     type        OBJECT IDENTIFIER,                -- 2.23.133.10.1.3, loadable key
//!     emptyAuth   [0] EXPLICIT BOOLEAN OPTIONAL,
//!     policy      [1] …, secret [2] …, authPolicy [3] …   -- not supported
//!     description [4] EXPLICIT UTF8String OPTIONAL,
//!     rsaParent   [5] EXPLICIT BOOLEAN OPTIONAL,
//!     parent      INTEGER,
//!     pubkey      OCTET STRING,                     -- TPM2B_PUBLIC
//!     privkey     OCTET STRING }                    -- TPM2B_PRIVATE
//! ```
//! (draft-bottomley-tpm2-keys.) The private part is encrypted by the TPM that made it.

use std::{fmt, io, path::PathBuf, sync::Arc};

use base64::{Engine, engine::general_purpose::STANDARD};

use crate::{commands, der, error::ErrorKind, public::RsaPublic};

const BEGIN: &str = "-----BEGIN TSS2 PRIVATE KEY-----";
const END: &str = "-----END TSS2 PRIVATE KEY-----";
/// 2.23.133.10.1.3
const LOADABLE_KEY: [u8; 6] = [0x67, 0x81, 0x05, 0x0a, 0x01, 0x03];
/// A real file has some 900 bytes.
pub(crate) const MAX_PEM: usize = 64 * 1024;
const MAX_AREA: usize = 1500;

/// A key as it is kept outside the TPM: its public area and its private area, which only its TPM can read.
#[derive(Clone, PartialEq, Eq)]
pub struct KeyBlob {
    parent: u32,
    empty_auth: bool,
    public: Vec<u8>,
    private: Vec<u8>,
    parsed: RsaPublic,
}

impl KeyBlob {
    /// Puts a blob together from a TPMT_PUBLIC and an encrypted private area, both without a length in front.
    pub(crate) fn new(
        parent: u32,
        empty_auth: bool,
        public: &[u8],
        private: &[u8],
    ) -> Result<Self, KeyFileError> {
        let persistent = (0x8100_0000..=0x81ff_ffff).contains(&parent);
        if parent != commands::OWNER && !persistent {
            let detail = format!("{parent:#x}, expected 0x40000001 or a persistent handle");
            return Err(KeyFileError::field("parent", detail));
        }
        let parsed = RsaPublic::parse("key file", public)
            .map_err(|error| KeyFileError::field("pubkey", error.to_string()))?;
        if parsed.has_policy() {
            let detail = "the key has an authorization policy, which is not supported";
            return Err(KeyFileError::field("pubkey", detail.into()));
        }
        if private.is_empty() || private.len() > MAX_AREA {
            return Err(KeyFileError::field(
                "privkey",
                format!("{} bytes", private.len()),
            ));
        }
        Ok(Self {
            parent,
            empty_auth,
            public: public.to_vec(),
            private: private.to_vec(),
            parsed,
        })
    }

    /// Puts a key together from what TPM2_Create gives and `tpm2_create -u -r` writes: a TPM2B_PUBLIC and a
    /// TPM2B_PRIVATE, each with its length in front.
    ///
    /// # Errors
    /// [`KeyFileError::Invalid`] names the field: `parent`, `pubkey` or `privkey`.
    pub fn from_tpm2b(
        parent: u32,
        empty_auth: bool,
        public: &[u8],
        private: &[u8],
    ) -> Result<Self, KeyFileError> {
        Self::new(
            parent,
            empty_auth,
            area(public, "pubkey")?,
            area(private, "privkey")?,
        )
    }

    /// The TPM2B_PUBLIC, as `tpm2_load -u` takes it.
    pub fn tpm2b_public(&self) -> Vec<u8> {
        sized(&self.public)
    }

    /// The TPM2B_PRIVATE, as `tpm2_load -r` takes it: encrypted by the TPM that made the key.
    pub fn tpm2b_private(&self) -> Vec<u8> {
        sized(&self.private)
    }

    /// The public half, as the file says. A loaded key has the TPM's own answer.
    pub fn public(&self) -> &RsaPublic {
        &self.parsed
    }

    /// Whether the key needs no PIN.
    pub fn empty_auth(&self) -> bool {
        self.empty_auth
    }

    /// The parent: 0x40000001 for the storage root key, or a persistent handle.
    pub fn parent(&self) -> u32 {
        self.parent
    }

    pub(crate) fn public_area(&self) -> &[u8] {
        &self.public
    }

    pub(crate) fn private_area(&self) -> &[u8] {
        &self.private
    }

    /// Writes the key in TSS2 PEM.
    pub fn to_pem(&self) -> String {
        // TRUE is 0xff in DER; an absent emptyAuth means FALSE.
        let empty_auth = match self.empty_auth {
            true => der::value(0xa0, &der::value(der::BOOLEAN, &[0xff])),
            false => Vec::new(),
        };
        let key = der::sequence(&[
            &der::value(der::OID, &LOADABLE_KEY),
            &empty_auth,
            &der::unsigned(&self.parent.to_be_bytes()),
            &der::value(der::OCTET_STRING, &self.tpm2b_public()),
            &der::value(der::OCTET_STRING, &self.tpm2b_private()),
        ]);
        let text = STANDARD.encode(key);
        let mut pem = format!("{BEGIN}\n");
        for (index, character) in text.chars().enumerate() {
            if index > 0 && index % 64 == 0 {
                pem.push('\n');
            }
            pem.push(character);
        }
        pem.push_str(&format!("\n{END}\n"));
        pem
    }

    /// Reads a key in TSS2 PEM: one block, with nothing but white space around it.
    ///
    /// # Errors
    /// [`KeyFileError::Invalid`] names the field and what was expected.
    pub fn from_pem(pem: &str) -> Result<Self, KeyFileError> {
        let invalid = |field, detail: &str| KeyFileError::field(field, detail.to_owned());
        if pem.len() > MAX_PEM {
            return Err(invalid("PEM", "too long for a key file"));
        }
        let body = pem
            .trim_ascii()
            .strip_prefix(BEGIN)
            .ok_or_else(|| invalid("PEM", &format!("expected `{BEGIN}`")))?
            .strip_suffix(END)
            .ok_or_else(|| invalid("PEM", &format!("expected `{END}` at the end")))?;
        let text: String = body.chars().filter(|c| !c.is_ascii_whitespace()).collect();
        let bytes = STANDARD
            .decode(text)
            .map_err(|error| invalid("PEM", &format!("base64: {error}")))?;
        Self::from_der(&bytes)
    }

    fn from_der(bytes: &[u8]) -> Result<Self, KeyFileError> {
        let bad =
            |field, expected: &str| KeyFileError::field(field, format!("expected {expected}"));
        let mut rest = bytes;
        let mut key =
            der::take(&mut rest, der::SEQUENCE).ok_or_else(|| bad("TPMKey", "a SEQUENCE"))?;
        if !rest.is_empty() {
            return Err(bad("TPMKey", "nothing after the SEQUENCE"));
        }
        match der::take(&mut key, der::OID) {
            Some(oid) if oid == LOADABLE_KEY => {}
            _ => return Err(bad("type", "a loadable key (2.23.133.10.1.3)")),
        }
        let empty_auth = optional_bool(&mut key, 0xa0, "emptyAuth")?.unwrap_or(false);
        for (tag, field) in [(0xa1, "policy"), (0xa2, "secret"), (0xa3, "authPolicy")] {
            if key.first() == Some(&tag) {
                return Err(KeyFileError::field(
                    field,
                    "present, which is not supported".into(),
                ));
            }
        }
        if key.first() == Some(&0xa4) {
            der::take(&mut key, 0xa4).ok_or_else(|| bad("description", "a UTF8String"))?;
        }
        if optional_bool(&mut key, 0xa5, "rsaParent")? == Some(true) {
            return Err(KeyFileError::field(
                "rsaParent",
                "TRUE, which is not supported".into(),
            ));
        }
        let parent = der::take(&mut key, der::INTEGER)
            .and_then(der::small)
            .ok_or_else(|| bad("parent", "an INTEGER of at most 32 bits"))?;
        let mut octets = |field| {
            der::take(&mut key, der::OCTET_STRING).ok_or_else(|| bad(field, "an OCTET STRING"))
        };
        let (public, private) = (octets("pubkey")?, octets("privkey")?);
        if !key.is_empty() {
            return Err(bad("TPMKey", "nothing after privkey"));
        }
        Self::from_tpm2b(parent, empty_auth, public, private)
    }
}

impl fmt::Debug for KeyBlob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyBlob")
            .field("parent", &format_args!("{:#x}", self.parent))
            .field("empty_auth", &self.empty_auth)
            .field("public", &self.parsed)
            .finish_non_exhaustive()
    }
}

fn sized(area: &[u8]) -> Vec<u8> {
    [&(area.len() as u16).to_be_bytes(), area].concat()
}

fn area<'a>(sized: &'a [u8], field: &'static str) -> Result<&'a [u8], KeyFileError> {
    match sized.split_first_chunk() {
        Some((length, area)) if usize::from(u16::from_be_bytes(*length)) == area.len() => Ok(area),
        _ => Err(KeyFileError::field(
            field,
            "expected a length and as many bytes".into(),
        )),
    }
}

fn optional_bool(
    input: &mut &[u8],
    tag: u8,
    field: &'static str,
) -> Result<Option<bool>, KeyFileError> {
    if input.first() != Some(&tag) {
        return Ok(None);
    }
    let inside = der::take(input, tag).and_then(|mut content| {
        let value = der::take(&mut content, der::BOOLEAN)?;
        content.is_empty().then_some(value)
    });
    match inside {
        // tpm2-openssl writes TRUE as 0x01, which is BER: any non-zero byte is read as TRUE.
        Some([byte]) => Ok(Some(*byte != 0)),
        _ => Err(KeyFileError::field(field, "expected a BOOLEAN".into())),
    }
}

/// Why a key file cannot be used. Nothing is ever deleted or overwritten because of it.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyFileError {
    /// The content is not a key that can be used.
    #[error("{}: {field}: {detail}", place(.path))]
    Invalid {
        /// The file, if it came from one.
        path: Option<PathBuf>,
        /// The part that is wrong.
        field: &'static str,
        /// What was expected.
        detail: String,
    },
    /// The file may not be trusted: wrong owner, writable by others, a link, not a regular file.
    #[error("{path}: {detail}")]
    Untrusted {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        detail: String,
    },
    /// The operating system refused.
    #[error("{path}: cannot {what}: {cause}")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        cause: Arc<io::Error>,
    },
}

impl KeyFileError {
    pub(crate) fn field(field: &'static str, detail: String) -> Self {
        Self::Invalid {
            path: None,
            field,
            detail,
        }
    }

    /// Whether there certainly is no such file.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Io { cause, .. } if cause.kind() == io::ErrorKind::NotFound)
    }

    /// Whether a file that was to be new is there already.
    pub fn is_already_there(&self) -> bool {
        matches!(self, Self::Io { cause, .. } if cause.kind() == io::ErrorKind::AlreadyExists)
    }

    pub(crate) fn kind(&self) -> ErrorKind {
        match self {
            Self::Invalid { .. } => ErrorKind::CorruptFile,
            Self::Untrusted { .. } => ErrorKind::PermissionDenied,
            Self::Io { cause, .. } if cause.kind() == io::ErrorKind::PermissionDenied => {
                ErrorKind::PermissionDenied
            }
            Self::Io { .. } => ErrorKind::Failed,
        }
    }

    pub(crate) fn code(&self) -> &'static str {
        match self {
            Self::Invalid { .. } => "tpm_key_file_invalid",
            Self::Untrusted { .. } => "tpm_key_file_untrusted",
            Self::Io { .. } => "tpm_key_file_io",
        }
    }

    pub(crate) fn errno(&self) -> Option<i32> {
        match self {
            Self::Io { cause, .. } => cause.raw_os_error(),
            _ => None,
        }
    }

    pub(crate) fn remedy(&self) -> &'static str {
        match self {
            Self::Invalid { .. } => "Restore the key file, or move it away to get a new key.",
            Self::Untrusted { .. } => "Make the file a regular one of this user with mode 0600.",
            Self::Io { .. } => "Check the state directory's permissions and free space.",
        }
    }
}

fn place(path: &Option<PathBuf>) -> String {
    match path {
        Some(path) => path.display().to_string(),
        None => "key file".into(),
    }
}
