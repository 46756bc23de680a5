//! The commands, one function each (TPM 2.0 Library Part 3). Commands are marshalled by `tpm2-protocol`, save
//! those that carry a PIN; answers are read by our own reader, since names are hashes over the bytes as they
//! came and vendors' values must not be an error.

use tpm2_protocol::{
    TpmMarshal, TpmWriter,
    basic::TpmHandle,
    data::{
        Tpm2bData, Tpm2bDigest, Tpm2bNonce, Tpm2bPublic, Tpm2bPublicKeyRsa, TpmAlgId, TpmCap,
        TpmCc, TpmRh, TpmSe, TpmSt, TpmSu, TpmsSchemeHash, TpmtSigScheme, TpmtTkHashcheck,
        TpmuSigScheme,
    },
    frame::{
        TpmCertifyCommand, TpmDuplicateCommand, TpmFlushContextCommand, TpmGetCapabilityCommand,
        TpmGetRandomCommand, TpmPolicyCommandCodeCommand, TpmRsaDecryptCommand, TpmSignCommand,
        TpmStartAuthSessionCommand, TpmStartupCommand,
    },
};

use crate::{
    connection::Connection,
    error::TpmError,
    keyfile::KeyBlob,
    scheme::{Hash, Scheme},
    templates,
    wire::{Auth, Command, MAX_FRAME, Reader},
};

/// TPM_RH_OWNER: the storage hierarchy.
pub(crate) const OWNER: u32 = 0x4000_0001;
/// TPM_RH_ENDORSEMENT.
pub(crate) const ENDORSEMENT: u32 = 0x4000_000b;
const NULL: u32 = 0x4000_0007;
const NO_PASSWORD: [Auth<'static>; 1] = [Auth::Password(&[])];

/// A primary key that was made just now.
pub(crate) struct Primary {
    pub(crate) handle: u32,
    pub(crate) name: Vec<u8>,
    /// The TPMT_PUBLIC.
    pub(crate) public: Vec<u8>,
}

impl Connection {
    /// TPM2_Startup(CLEAR). That it was started before is fine.
    pub(crate) fn startup(&mut self) -> Result<(), TpmError> {
        let body = TpmStartupCommand {
            startup_type: TpmSu::Clear,
            handles: [],
        };
        let command = Command::new("TPM2_Startup", TpmCc::Startup, &[], &[]).body(&body)?;
        match self.run(&command) {
            Err(error) if error.response_code().is_none_or(|code| code.raw() != 0x100) => {
                Err(error)
            }
            Err(_) => Ok(()),
            Ok(response) => response.reader().end("parameters"),
        }
    }

    /// TPM2_GetRandom: fails in failure mode, unlike TPM2_GetCapability.
    pub(crate) fn random(&mut self, bytes: u16) -> Result<Vec<u8>, TpmError> {
        let body = TpmGetRandomCommand {
            handles: [],
            bytes_requested: bytes.into(),
        };
        let command = Command::new("TPM2_GetRandom", TpmCc::GetRandom, &[], &[]).body(&body)?;
        let response = self.run(&command)?;
        let mut reader = response.reader();
        let random = reader.sized("randomBytes")?.to_vec();
        reader.end("parameters")?;
        Ok(random)
    }

    /// TPM2_GetCapability(TPM_CAP_TPM_PROPERTIES): pairs of property and value from `first` on, at most 64.
    pub(crate) fn properties(&mut self, first: u32) -> Result<Vec<(u32, u32)>, TpmError> {
        let response = self.capability(TpmCap::TpmProperties, first)?;
        let mut reader = Reader::new("TPM2_GetCapability", &response);
        let count = bounded(&mut reader, 8)?;
        let pairs = (0..count).map(|_| Ok((reader.u32("property")?, reader.u32("value")?)));
        let pairs = pairs.collect::<Result<_, TpmError>>()?;
        reader.end("capabilityData")?;
        Ok(pairs)
    }

    /// TPM2_GetCapability(TPM_CAP_HANDLES): handles of one kind from `first` on, at most 64.
    pub(crate) fn handles(&mut self, first: u32) -> Result<Vec<u32>, TpmError> {
        let response = self.capability(TpmCap::Handles, first)?;
        let mut reader = Reader::new("TPM2_GetCapability", &response);
        let count = bounded(&mut reader, 4)?;
        let handles = (0..count)
            .map(|_| reader.u32("handle"))
            .collect::<Result<_, _>>()?;
        reader.end("capabilityData")?;
        Ok(handles)
    }

    fn capability(&mut self, cap: TpmCap, first: u32) -> Result<Vec<u8>, TpmError> {
        let body = TpmGetCapabilityCommand {
            handles: [],
            cap,
            property: first.into(),
            property_count: 64.into(),
        };
        let command =
            Command::new("TPM2_GetCapability", TpmCc::GetCapability, &[], &[]).body(&body)?;
        let response = self.run(&command)?;
        let mut reader = response.reader();
        reader.u8("moreData")?;
        let kind = reader.u32("capability")?;
        if kind != cap as u32 {
            return Err(reader.bad(
                "capability",
                format!("{kind:#x}, expected {:#x}", cap as u32),
            ));
        }
        Ok(reader.rest().to_vec())
    }

    /// TPM2_CreatePrimary without authorization values.
    pub(crate) fn create_primary(
        &mut self,
        hierarchy: u32,
        public: &Tpm2bPublic,
    ) -> Result<Primary, TpmError> {
        let name = "TPM2_CreatePrimary";
        let command = Command::new(name, TpmCc::CreatePrimary, &[hierarchy], &NO_PASSWORD)
            .with_response_handle();
        let response = self.run(&creation(command, &[], public)?)?;
        let mut reader = response.reader();
        let public = reader.sized("outPublic")?.to_vec();
        skip_creation(&mut reader)?;
        let name = reader.sized("name")?.to_vec();
        reader.end("parameters")?;
        Ok(Primary {
            handle: response.handle()?,
            name,
            public,
        })
    }

    /// TPM2_Create below a parent without a password.
    pub(crate) fn create(
        &mut self,
        parent: u32,
        pin: &[u8],
        public: &Tpm2bPublic,
    ) -> Result<(Vec<u8>, Vec<u8>), TpmError> {
        let command = Command::new("TPM2_Create", TpmCc::Create, &[parent], &NO_PASSWORD);
        let response = self.run(&creation(command, pin, public)?)?;
        let mut reader = response.reader();
        let private = reader.sized("outPrivate")?.to_vec();
        let public = reader.sized("outPublic")?.to_vec();
        skip_creation(&mut reader)?;
        reader.end("parameters")?;
        Ok((public, private))
    }

    /// TPM2_Load below a parent without a password.
    pub(crate) fn load(&mut self, parent: u32, blob: &KeyBlob) -> Result<u32, TpmError> {
        let mut command =
            Command::new("TPM2_Load", TpmCc::Load, &[parent], &NO_PASSWORD).with_response_handle();
        command.put_sized(blob.private_area());
        command.put_sized(blob.public_area());
        let response = self.run(&command.finish()?)?;
        let mut reader = response.reader();
        reader.sized("name")?;
        reader.end("parameters")?;
        response.handle()
    }

    /// TPM2_ReadPublic: the TPMT_PUBLIC and the name.
    pub(crate) fn read_public(&mut self, handle: u32) -> Result<(Vec<u8>, Vec<u8>), TpmError> {
        let command =
            Command::new("TPM2_ReadPublic", TpmCc::ReadPublic, &[handle], &[]).finish()?;
        let response = self.run(&command)?;
        let mut reader = response.reader();
        let public = reader.sized("outPublic")?.to_vec();
        let name = reader.sized("name")?.to_vec();
        reader.sized("qualifiedName")?;
        reader.end("parameters")?;
        Ok((public, name))
    }

    /// TPM2_Sign of a digest with the scheme named.
    pub(crate) fn sign(
        &mut self,
        key: u32,
        pin: &[u8],
        scheme: Scheme,
        digest: &[u8],
    ) -> Result<Vec<u8>, TpmError> {
        let (padding, hash) = match scheme {
            Scheme::Pkcs1(hash) => (TpmAlgId::Rsassa, hash),
            Scheme::Pss(hash) => (TpmAlgId::Rsapss, hash),
        };
        let hash = hash_algorithm(hash);
        let body = TpmSignCommand {
            handles: [TpmHandle::new(key)],
            digest: Tpm2bDigest::try_from(digest).map_err(|_| too_long("digest"))?,
            in_scheme: TpmtSigScheme {
                scheme: padding,
                details: TpmuSigScheme::Hash(TpmsSchemeHash { hash_alg: hash }),
            },
            // No ticket: the digest was not computed by the TPM.
            validation: TpmtTkHashcheck {
                tag: TpmSt::HashCheck,
                hierarchy: TpmRh::Null,
                digest: Default::default(),
            },
        };
        let command =
            Command::new("TPM2_Sign", TpmCc::Sign, &[key], &[Auth::Password(pin)]).body(&body)?;
        let response = self.run(&command)?;
        let mut reader = response.reader();
        let (signed, hashed) = (reader.u16("sigAlg")?, reader.u16("hash")?);
        if (signed, hashed) != (padding as u16, hash as u16) {
            let detail = format!("{signed:#06x} with {hashed:#06x}, not what was asked for");
            return Err(reader.bad("sigAlg", detail));
        }
        let signature = reader.sized("signature")?.to_vec();
        reader.end("parameters")?;
        Ok(signature)
    }

    /// TPM2_RSA_Decrypt with scheme NULL: the raw private operation.
    pub(crate) fn raw_rsa(
        &mut self,
        key: u32,
        pin: &[u8],
        block: &[u8],
    ) -> Result<Vec<u8>, TpmError> {
        let body = TpmRsaDecryptCommand {
            handles: [TpmHandle::new(key)],
            cipher_text: Tpm2bPublicKeyRsa::try_from(block).map_err(|_| too_long("cipherText"))?,
            in_scheme: Default::default(),
            label: Default::default(),
        };
        let command = Command::new(
            "TPM2_RSA_Decrypt",
            TpmCc::RsaDecrypt,
            &[key],
            &[Auth::Password(pin)],
        )
        .body(&body)?;
        let response = self.run(&command)?;
        let mut reader = response.reader();
        let message = reader.sized("message")?.to_vec();
        reader.end("parameters")?;
        Ok(message)
    }

    /// TPM2_Certify of `object` by `signer`: the TPMS_ATTEST and the TPMT_SIGNATURE, as they came.
    pub(crate) fn certify(
        &mut self,
        object: u32,
        pin: &[u8],
        signer: u32,
        nonce: &[u8],
    ) -> Result<(Vec<u8>, Vec<u8>), TpmError> {
        let body = TpmCertifyCommand {
            handles: [TpmHandle::new(object), TpmHandle::new(signer)],
            qualifying_data: Tpm2bData::try_from(nonce).map_err(|_| too_long("nonce"))?,
            in_scheme: Default::default(),
        };
        let auths = [Auth::Password(pin), Auth::Password(&[])];
        let command =
            Command::new("TPM2_Certify", TpmCc::Certify, &[object, signer], &auths).body(&body)?;
        let response = self.run(&command)?;
        let mut reader = response.reader();
        let attest = reader.sized("certifyInfo")?.to_vec();
        let signature = reader.rest().to_vec();
        // TPMT_SIGNATURE of ECDSA: algorithm, hash, r, s.
        reader.take(4, "sigAlg")?;
        reader.sized("signatureR")?;
        reader.sized("signatureS")?;
        reader.end("parameters")?;
        Ok((attest, signature))
    }

    /// TPM2_Duplicate to no new parent and without wrapping, which would be the private key in the clear.
    pub(crate) fn duplicate(&mut self, key: u32, auth: Auth<'_>) -> Result<(), TpmError> {
        let body = TpmDuplicateCommand {
            handles: [TpmHandle::new(key), TpmHandle::new(NULL)],
            encryption_key_in: Default::default(),
            symmetric_alg: templates::no_symmetric(),
        };
        let command =
            Command::new("TPM2_Duplicate", TpmCc::Duplicate, &[key, NULL], &[auth]).body(&body)?;
        self.run(&command).map(drop)
    }

    /// A policy session that allows one command only, as TPM2_Duplicate demands.
    pub(crate) fn policy_for_duplicate(&mut self) -> Result<u32, TpmError> {
        let body = TpmStartAuthSessionCommand {
            handles: [TpmHandle::new(NULL), TpmHandle::new(NULL)],
            // Protects nothing here: the session carries no secret.
            nonce_caller: Tpm2bNonce::try_from(&[0; 16][..]).map_err(|_| too_long("nonce"))?,
            encrypted_salt: Default::default(),
            session_type: TpmSe::Policy,
            symmetric: templates::no_symmetric(),
            auth_hash: TpmAlgId::Sha256,
        };
        let command = Command::new(
            "TPM2_StartAuthSession",
            TpmCc::StartAuthSession,
            &[NULL, NULL],
            &[],
        )
        .with_response_handle()
        .body(&body)?;
        let response = self.run(&command)?;
        let session = response.handle()?;
        let mut reader = response.reader();
        reader.sized("nonceTPM")?;
        reader.end("parameters")?;
        let body = TpmPolicyCommandCodeCommand {
            handles: [TpmHandle::new(session)],
            code: TpmCc::Duplicate,
        };
        let command = Command::new(
            "TPM2_PolicyCommandCode",
            TpmCc::PolicyCommandCode,
            &[session],
            &[],
        )
        .body(&body)?;
        match self.run(&command) {
            Ok(_) => Ok(session),
            Err(error) => {
                self.flush(session)?;
                Err(error)
            }
        }
    }

    /// TPM2_FlushContext of a transient object or a session.
    pub(crate) fn flush(&mut self, handle: u32) -> Result<(), TpmError> {
        let body = TpmFlushContextCommand {
            handles: [],
            flush_handle: TpmHandle::new(handle),
        };
        let command =
            Command::new("TPM2_FlushContext", TpmCc::FlushContext, &[], &[]).body(&body)?;
        self.run(&command)?.reader().end("parameters")
    }
}

/// The parameters that TPM2_CreatePrimary and TPM2_Create share. Not through `tpm2-protocol`, whose buffers
/// would keep copies of the PIN.
fn creation(mut command: Command, pin: &[u8], public: &Tpm2bPublic) -> Result<Command, TpmError> {
    let mut buffer = [0; MAX_FRAME];
    let mut writer = TpmWriter::new(&mut buffer);
    public
        .marshal(&mut writer)
        .map_err(|_| too_long("template"))?;
    let length = writer.len();
    // TPM2B_SENSITIVE_CREATE: both the PIN and the (empty) data have a length of 16 bits.
    command.put(&(pin.len() as u16 + 4).to_be_bytes());
    command.put_sized(pin);
    command.put_sized(&[]);
    command.put(&buffer[..length]);
    // No outsideInfo, no creationPCR.
    command.put(&[0; 6]);
    command.finish()
}

/// creationData, creationHash and creationTicket.
fn skip_creation(reader: &mut Reader<'_>) -> Result<(), TpmError> {
    reader.sized("creationData")?;
    reader.sized("creationHash")?;
    reader.take(6, "creationTicket")?;
    reader.sized("creationTicket")?;
    Ok(())
}

fn bounded(reader: &mut Reader<'_>, item: usize) -> Result<usize, TpmError> {
    let count = reader.u32("count")? as usize;
    if count > MAX_FRAME / item {
        return Err(reader.bad("count", format!("{count}, more than fit")));
    }
    Ok(count)
}

fn hash_algorithm(hash: Hash) -> TpmAlgId {
    match hash {
        Hash::Sha256 => TpmAlgId::Sha256,
        Hash::Sha384 => TpmAlgId::Sha384,
        Hash::Sha512 => TpmAlgId::Sha512,
    }
}

fn too_long(field: &'static str) -> TpmError {
    TpmError::Input {
        field,
        detail: "too long for the TPM".into(),
    }
}
