//! tss-esapi, over libtss2's ESYS.

use std::str::FromStr;

use keybond_tpm::KeyBlob;
use tss_esapi::{
    Context, TctiNameConf,
    constants::tss::{TPM2_RH_NULL, TPM2_ST_HASHCHECK},
    handles::KeyHandle,
    interface_types::{
        algorithm::HashingAlgorithm, resource_handles::Hierarchy, session_handles::AuthSession,
    },
    structures::{Digest, HashScheme, HashcheckTicket, Private, Public, SignatureScheme},
    traits::UnMarshall,
    tss2_esys::TPMT_TK_HASHCHECK,
};

use crate::{DIGEST, EACH, Failure, SRK, Times, timed};

pub(crate) struct Tss {
    context: Context,
    root: KeyHandle,
    private: Private,
    public: Public,
}

impl Tss {
    pub(crate) fn connect(config: &str, blob: &KeyBlob) -> Result<Self, Failure> {
        let mut context = Context::new(TctiNameConf::from_str(&format!("swtpm:{config}"))?)?;
        let template = Public::unmarshall(&SRK)?;
        let root = context.execute_with_session(Some(AuthSession::Password), |context| {
            context.create_primary(Hierarchy::Owner, template, None, None, None, None)
        })?;
        Ok(Self {
            context,
            root: root.key_handle,
            // Without the lengths in front.
            private: Private::try_from(blob.tpm2b_private()[2..].to_vec())?,
            public: Public::unmarshall(&blob.tpm2b_public()[2..])?,
        })
    }

    /// With the key kept loaded; with the password session, or the session that `execute_with_nullauth_session` makes
    /// for each call.
    pub(crate) fn signatures(mut self, password: bool) -> Times {
        let key = self.load(password)?;
        let times = (0..EACH)
            .map(|_| timed(|| self.sign(key, password)))
            .collect();
        self.context.flush_context(key.into())?;
        times
    }

    pub(crate) fn load_sign_flush(mut self, password: bool) -> Times {
        (0..EACH)
            .map(|_| {
                timed(|| {
                    let key = self.load(password)?;
                    self.sign(key, password)?;
                    Ok(self.context.flush_context(key.into())?)
                })
            })
            .collect()
    }

    fn load(&mut self, password: bool) -> Result<KeyHandle, Failure> {
        let (root, private, public) = (self.root, self.private.clone(), self.public.clone());
        Ok(self.run(password, |context| context.load(root, private, public))?)
    }

    fn sign(&mut self, key: KeyHandle, password: bool) -> Result<(), Failure> {
        let digest = Digest::try_from(DIGEST.to_vec())?;
        let scheme = SignatureScheme::RsaPss {
            hash_scheme: HashScheme::new(HashingAlgorithm::Sha256),
        };
        let no_ticket = HashcheckTicket::try_from(TPMT_TK_HASHCHECK {
            tag: TPM2_ST_HASHCHECK,
            hierarchy: TPM2_RH_NULL,
            digest: Default::default(),
        })?;
        self.run(password, |context| {
            context.sign(key, digest, scheme, no_ticket)
        })?;
        Ok(())
    }

    fn run<T>(
        &mut self,
        password: bool,
        job: impl FnOnce(&mut Context) -> tss_esapi::Result<T>,
    ) -> tss_esapi::Result<T> {
        if password {
            self.context
                .execute_with_session(Some(AuthSession::Password), job)
        } else {
            self.context.execute_with_nullauth_session(job)
        }
    }
}
