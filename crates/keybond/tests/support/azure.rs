//! Honest answers of all services, and the place to twist them.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use aws_lc_rs::digest::{SHA256, digest};
use base64::{
    Engine as _,
    prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD},
};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, DnValue, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SubjectPublicKeyInfo, date_time_ymd,
};
use serde_json::json;
use tokio::net::TcpListener;
use x509_cert::der::{Decode as _, Encode as _};

use super::{
    CLIENT, TENANT, VM,
    server::{Asked, Reply, Server},
};

/// Who is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    Metadata,
    Issue,
    Token,
    Resource,
}

impl Service {
    fn of(asked: &Asked) -> Self {
        match asked.path() {
            "/metadata/identity/getplatformmetadata" => Self::Metadata,
            "/metadata/identity/issuecredential" => Self::Issue,
            path if path.ends_with("/oauth2/v2.0/token") => Self::Token,
            _ => Self::Resource,
        }
    }
}

/// What a certificate is to say.
#[derive(Clone, Debug)]
pub struct Wish {
    pub client: String,
    pub tenant: Option<String>,
    /// Year, month, day.
    pub from: (i32, u8, u8),
    pub until: (i32, u8, u8),
    pub purpose: ExtendedKeyUsagePurpose,
    pub usage: KeyUsagePurpose,
}

impl Default for Wish {
    fn default() -> Self {
        Self {
            client: CLIENT.into(),
            tenant: Some(TENANT.into()),
            from: (2026, 6, 11),
            until: (2026, 6, 25),
            purpose: ExtendedKeyUsagePurpose::ClientAuth,
            usage: KeyUsagePurpose::DigitalSignature,
        }
    }
}

type Twist = Box<dyn Fn(Service, &Asked, Reply) -> Reply + Send + Sync>;

/// The state behind the answers.
struct State {
    address: SocketAddr,
    issuer: Issuer<'static, KeyPair>,
    wish: Mutex<Wish>,
    /// SubjectPublicKeyInfo of the last request.
    requested: Mutex<Vec<u8>>,
    /// The last certificate, DER.
    issued: Mutex<Vec<u8>>,
    twist: Mutex<Option<Twist>>,
}

pub struct Azure {
    server: Server,
    state: Arc<State>,
}

impl Azure {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut ca = CertificateParams::new(Vec::new()).unwrap();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let state = Arc::new(State {
            address: listener.local_addr().unwrap(),
            issuer: Issuer::new(ca, KeyPair::generate().unwrap()),
            wish: Mutex::default(),
            requested: Mutex::default(),
            issued: Mutex::default(),
            twist: Mutex::default(),
        });
        let answering = Arc::clone(&state);
        let server = Server::start(listener, Arc::new(move |asked| answering.answer(asked))).await;
        Self { server, state }
    }

    pub fn imds(&self) -> String {
        format!("http://{}", self.state.address)
    }

    /// The URL of a resource's path.
    pub fn url(&self, path: &str) -> String {
        format!("https://{}{path}", self.state.address)
    }

    /// Changes answers from now on.
    pub fn twist(&self, twist: impl Fn(Service, &Asked, Reply) -> Reply + Send + Sync + 'static) {
        *self.state.twist.lock().unwrap() = Some(Box::new(twist));
    }

    /// Changes the answers of one service from now on.
    pub fn twist_one(
        &self,
        which: Service,
        twist: impl Fn(Reply) -> Reply + Send + Sync + 'static,
    ) {
        self.twist(move |service, _, honest| {
            if service == which {
                twist(honest)
            } else {
                honest
            }
        });
    }

    /// Answers honestly from now on.
    pub fn untwist(&self) {
        *self.state.twist.lock().unwrap() = None;
    }

    /// Changes the certificates that are issued from now on.
    pub fn wish(&self, change: impl FnOnce(&mut Wish)) {
        change(&mut self.state.wish.lock().unwrap());
    }

    /// A certificate for another key.
    pub fn certificate_for(&self, spki: &[u8]) -> Vec<u8> {
        self.state.certify(spki)
    }

    pub fn asked(&self, service: Service) -> Vec<Asked> {
        let mut log = self.server.log();
        log.retain(|asked| Service::of(asked) == service);
        log
    }

    pub fn count(&self, service: Service) -> usize {
        self.asked(service).len()
    }

    pub fn total(&self) -> usize {
        self.server.log().len()
    }
}

impl State {
    fn answer(&self, asked: &Asked) -> Reply {
        let service = Service::of(asked);
        let honest = match service {
            Service::Metadata => self.metadata(asked),
            Service::Issue => self.issue(asked),
            Service::Token => self.token(asked),
            Service::Resource => Reply::status(200, "the secret"),
        };
        match &*self.twist.lock().unwrap() {
            Some(twist) => twist(service, asked, honest),
            None => honest,
        }
    }

    fn metadata(&self, asked: &Asked) -> Reply {
        if asked.header("metadata") != Some("true") {
            let refusal = json!({"error": "invalid_request",
                "error_description": "Required metadata header not specified"});
            return Reply::status(400, refusal.to_string());
        }
        Reply::json(&json!({
            "cuId": {"vmId": VM},
            "clientId": CLIENT,
            "tenantId": TENANT,
            "attestationEndpoint": "https://attest.example/",
        }))
    }

    fn issue(&self, asked: &Asked) -> Reply {
        let body: serde_json::Value = serde_json::from_slice(&asked.body).unwrap();
        let csr = BASE64_STANDARD
            .decode(body["csr"].as_str().unwrap())
            .unwrap();
        let csr = x509_cert::request::CertReq::from_der(&csr).unwrap();
        let spki = csr.info.public_key.to_der().unwrap();
        let certificate = self.certify(&spki);
        *self.requested.lock().unwrap() = spki;
        self.issued.lock().unwrap().clone_from(&certificate);
        Reply::json(&json!({
            "client_id": CLIENT,
            "tenant_id": TENANT,
            "certificate": BASE64_STANDARD.encode(certificate),
            "identity_type": "SystemAssigned",
            "mtls_authentication_endpoint": format!("https://{}/", self.address),
        }))
    }

    fn certify(&self, spki: &[u8]) -> Vec<u8> {
        let wish = self.wish.lock().unwrap().clone();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        if let Some(tenant) = wish.tenant {
            let dc = DnType::CustomDnType(vec![0, 9, 2342, 19200300, 100, 1, 25]);
            let tenant = DnValue::Ia5String(tenant.as_str().try_into().unwrap());
            params.distinguished_name.push(dc, tenant);
        }
        params
            .distinguished_name
            .push(DnType::CommonName, wish.client);
        params.not_before = date_time_ymd(wish.from.0, wish.from.1, wish.from.2);
        params.not_after = date_time_ymd(wish.until.0, wish.until.1, wish.until.2);
        params.key_usages = vec![wish.usage];
        params.extended_key_usages = vec![wish.purpose];
        let key = SubjectPublicKeyInfo::from_der(spki).unwrap();
        params.signed_by(&key, &self.issuer).unwrap().der().to_vec()
    }

    fn token(&self, _: &Asked) -> Reply {
        let hash = digest(&SHA256, &self.issued.lock().unwrap());
        let claims = json!({"cnf": {"x5t#S256": BASE64_URL_SAFE_NO_PAD.encode(hash)}});
        Reply::json(&json!({
            "token_type": "mtls_pop",
            "access_token": jwt(&claims),
            "expires_in": 86399,
        }))
    }
}

/// A token that no one would accept, but that can be read.
pub fn jwt(claims: &serde_json::Value) -> String {
    let part = |value: &serde_json::Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
    format!(
        "{}.{}.{}",
        part(&json!({"alg": "none"})),
        part(claims),
        BASE64_URL_SAFE_NO_PAD.encode("TOPSECRET")
    )
}

pub fn base64(bytes: &[u8]) -> String {
    BASE64_STANDARD.encode(bytes)
}
