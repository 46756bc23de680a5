//! The two hellos: what a client offers, what the server makes of it.

use super::{
    alert::{Alert, Failure},
    codec::{Input, message, vector},
    keys::{Group, Suite},
    record::VERSION,
};

/// Handshake messages (RFC 5246, 7.4).
pub(super) const HELLO_REQUEST: u8 = 0;
pub(super) const CLIENT_HELLO: u8 = 1;
pub(super) const SERVER_HELLO: u8 = 2;

/// TLS_EMPTY_RENEGOTIATION_INFO_SCSV (RFC 5746, 3.3).
const RENEGOTIATION_SCSV: u16 = 0x00ff;

const SUPPORTED_GROUPS: u16 = 10;
const POINT_FORMATS: u16 = 11;
const SIGNATURE_ALGORITHMS: u16 = 13;
const ALPN: u16 = 16;
const EXTENDED_MASTER_SECRET: u16 = 23;
const SUPPORTED_VERSIONS: u16 = 43;
const RENEGOTIATION_INFO: u16 = 0xff01;

const TLS_1_2: u16 = 0x0303;
const UNCOMPRESSED: u8 = 0;
const HTTP_1_1: &[u8] = b"http/1.1";

/// What a client offers, as far as this server looks at it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ClientHello {
    pub(super) random: [u8; 32],
    suites: Vec<u16>,
    groups: Option<Vec<u16>>,
    pub(super) schemes: Vec<u16>,
    alpn: Option<bool>,
    point_formats: bool,
    extended_master_secret: bool,
    renegotiation_info: Option<Vec<u8>>,
}

/// What both sides use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Agreed {
    pub(super) suite: Suite,
    pub(super) group: Group,
    pub(super) extended_master_secret: bool,
    /// Whether renegotiation is safe with this client.
    pub(super) secure: bool,
}

/// `verify_data` of the Finished messages of the session in use (RFC 5746, 3.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct VerifyData {
    pub(super) client: [u8; 12],
    pub(super) server: [u8; 12],
}

impl ClientHello {
    pub(super) fn parse(body: &[u8]) -> Result<Self, Failure> {
        let mut input = Input::new(body);
        let mut hello = Self::default();
        let version = input.u16()?;
        if version < TLS_1_2 {
            return Err(Alert::ProtocolVersion.because("the client does not know TLS 1.2"));
        }
        hello.random.copy_from_slice(input.bytes(32)?);
        if input.vector8()?.rest().len() > 32 {
            return Err(Alert::DecodeError.because("a session id that is too long"));
        }
        hello.suites = input.vector16()?.numbers()?;
        if !input.vector8()?.rest().contains(&0) {
            return Err(Alert::IllegalParameter.because("the client insists on compression"));
        }
        if !input.is_empty() {
            let mut extensions = input.vector16()?;
            let mut seen = Vec::new();
            while !extensions.is_empty() {
                let (kind, content) = (extensions.u16()?, extensions.vector16()?);
                if seen.contains(&kind) {
                    return Err(Alert::IllegalParameter.because("an extension is given twice"));
                }
                seen.push(kind);
                hello.extension(kind, content)?;
            }
        }
        input.finish()?;
        Ok(hello)
    }

    fn extension(&mut self, kind: u16, mut content: Input<'_>) -> Result<(), Failure> {
        match kind {
            SUPPORTED_GROUPS => self.groups = Some(content.vector16()?.numbers()?),
            SIGNATURE_ALGORITHMS => self.schemes = content.vector16()?.numbers()?,
            POINT_FORMATS => {
                if !content.vector8()?.rest().contains(&UNCOMPRESSED) {
                    return Err(Alert::IllegalParameter.because("no uncompressed points"));
                }
                self.point_formats = true;
            }
            ALPN => {
                let mut names = content.vector16()?;
                let mut known = false;
                while !names.is_empty() {
                    let name = names.vector8()?.rest();
                    if name.is_empty() {
                        return Err(Alert::DecodeError.because("an empty protocol name"));
                    }
                    known |= name == HTTP_1_1;
                }
                self.alpn = Some(known);
            }
            EXTENDED_MASTER_SECRET => self.extended_master_secret = true,
            SUPPORTED_VERSIONS => {
                if !content.vector8()?.numbers()?.contains(&TLS_1_2) {
                    return Err(Alert::ProtocolVersion.because("the client does not take TLS 1.2"));
                }
            }
            RENEGOTIATION_INFO => {
                self.renegotiation_info = Some(content.vector8()?.rest().to_vec());
            }
            _ => return Ok(()),
        }
        content.finish()
    }

    /// Decides; `established` is the session that is renegotiated, if there is one.
    pub(super) fn agree(&self, established: Option<&VerifyData>) -> Result<Agreed, Failure> {
        let signalled = self.suites.contains(&RENEGOTIATION_SCSV);
        let secure = match (established, &self.renegotiation_info) {
            // RFC 5746, 3.6.
            (None, Some(info)) if info.is_empty() => true,
            (None, None) => signalled,
            // RFC 5746, 3.7.
            (Some(session), Some(info)) if !signalled && *info == session.client => true,
            _ => {
                return Err(Alert::HandshakeFailure
                    .because("the renegotiation is not that of this session"));
            }
        };
        if self.alpn == Some(false) {
            return Err(Alert::NoApplicationProtocol.because("the client does not speak http/1.1"));
        }
        let suite = Suite::ALL
            .into_iter()
            .find(|suite| self.suites.contains(&suite.number()))
            .ok_or_else(|| Alert::HandshakeFailure.because("no cipher suite in common"))?;
        let group = match &self.groups {
            Some(groups) => Group::ALL
                .into_iter()
                .find(|group| groups.contains(&group.number())),
            // A client that does not say takes any (RFC 8422, 4).
            None => Some(Group::P256),
        };
        Ok(Agreed {
            suite,
            group: group.ok_or_else(|| Alert::HandshakeFailure.because("no group in common"))?,
            extended_master_secret: self.extended_master_secret,
            secure,
        })
    }

    /// The ServerHello that says what was agreed on; extensions only for those that asked.
    pub(super) fn answer(
        &self,
        agreed: &Agreed,
        random: &[u8; 32],
        established: Option<&VerifyData>,
    ) -> Vec<u8> {
        let mut extensions = Vec::new();
        let mut extension = |kind: u16, content: &[u8]| {
            extensions.extend_from_slice(&kind.to_be_bytes());
            extensions.extend_from_slice(&vector(2, content));
        };
        if agreed.secure {
            let info = established.map(|session| [session.client, session.server].concat());
            extension(RENEGOTIATION_INFO, &vector(1, &info.unwrap_or_default()));
        }
        if agreed.extended_master_secret {
            extension(EXTENDED_MASTER_SECRET, &[]);
        }
        if self.point_formats {
            extension(POINT_FORMATS, &[1, UNCOMPRESSED]);
        }
        if self.alpn == Some(true) {
            extension(ALPN, &vector(2, &vector(1, HTTP_1_1)));
        }
        let mut body = VERSION.to_vec();
        body.extend_from_slice(random);
        // No session id: there is no resumption. No compression.
        body.push(0);
        body.extend_from_slice(&agreed.suite.number().to_be_bytes());
        body.push(0);
        if !extensions.is_empty() {
            body.extend_from_slice(&vector(2, &extensions));
        }
        message(SERVER_HELLO, &body)
    }
}
