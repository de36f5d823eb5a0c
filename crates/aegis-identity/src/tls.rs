//! TLS between governed parties: mutual, version 1.3, an SVID on each side, checked on every
//! connection. And TLS to servers of the open web, with their roots.
//!
//! There is no resumption: a ticket would let a revoked peer come back without showing its SVID.
//! An endpoint whose own SVID has expired presents nothing, so the handshake fails.

use std::{fmt, fs, path::PathBuf, sync::Arc};

use aegis_core::{AgentId, SpiffeId, Timestamp, TrustDomain};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, OtherError,
    RootCertStore, ServerConfig, SignatureScheme,
    client::{
        ResolvesClientCert, Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject},
    server::{
        ClientHello, NoServerSessionStorage, ResolvesServerCert,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    sign::CertifiedKey,
};
use tokio::sync::watch;

use crate::{
    Bundle, Clock, Identity, PeerIdentity, Revocations, SvidSource, VerifyError, verify::Leaf,
    verify_chain,
};

/// Which peers an endpoint talks to.
#[derive(Clone)]
pub struct PeerRule(Arc<dyn Fn(&SpiffeId) -> bool + Send + Sync>);

/// Whose word is taken for a server of the open web.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Roots {
    /// Mozilla's root programme, compiled in.
    WebPki,
    /// The certificates in a PEM file, and no others.
    Pem(PathBuf),
}

/// Why there is no TLS configuration.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// rustls refuses the combination.
    #[error("TLS cannot be configured: {0}")]
    Config(#[from] rustls::Error),
    /// The roots cannot be read.
    #[error("the roots in {} cannot be used: {cause}; it must hold PEM certificates", path.display())]
    Roots {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        cause: String,
    },
}

// === impl PeerRule ===

impl PeerRule {
    /// Peers that a predicate accepts.
    pub fn new(accepts: impl Fn(&SpiffeId) -> bool + Send + Sync + 'static) -> Self {
        Self(Arc::new(accepts))
    }

    /// All agents of a trust domain, which leaves out the applications' own SVIDs.
    #[must_use]
    pub fn agents_of(trust_domain: TrustDomain) -> Self {
        Self::new(move |id| {
            AgentId::try_from(id.clone()).is_ok_and(|agent| agent.trust_domain() == trust_domain)
        })
    }

    /// One identity.
    #[must_use]
    pub fn exactly(expected: SpiffeId) -> Self {
        Self::new(move |id| *id == expected)
    }

    /// Whether a peer is accepted.
    #[must_use]
    pub fn accepts(&self, id: &SpiffeId) -> bool {
        (self.0)(id)
    }
}

impl fmt::Debug for PeerRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PeerRule")
    }
}

/// aws-lc-rs with the hybrid post-quantum key exchange first.
#[must_use]
pub fn provider() -> Arc<CryptoProvider> {
    let mut provider = aws_lc_rs::default_provider();
    provider.kx_groups = vec![
        aws_lc_rs::kx_group::X25519MLKEM768,
        aws_lc_rs::kx_group::X25519,
        aws_lc_rs::kx_group::SECP256R1,
    ];
    Arc::new(provider)
}

/// Everything that a peer is checked against, at the moment of its handshake.
struct PeerCheck {
    bundle: Box<dyn Fn() -> Bundle + Send + Sync>,
    revocations: watch::Receiver<Arc<Revocations>>,
    rule: PeerRule,
    clock: Clock,
    provider: Arc<CryptoProvider>,
}

impl PeerCheck {
    fn check(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
    ) -> Result<(), rustls::Error> {
        let chain: Vec<CertificateDer<'_>> = std::iter::once(end_entity)
            .chain(intermediates)
            .map(|certificate| CertificateDer::from(certificate.as_ref()))
            .collect();
        let revocations = Arc::clone(&self.revocations.borrow());
        let peer = verify_chain(&chain, &(self.bundle)(), &revocations, (self.clock)())
            .map_err(refusal)?;
        if !self.rule.accepts(&peer.id) {
            return Err(refusal(VerifyError::NotAccepted(peer.id)));
        }
        Ok(())
    }

    fn check_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

impl fmt::Debug for PeerCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PeerCheck")
    }
}

fn refusal(error: VerifyError) -> rustls::Error {
    rustls::Error::InvalidCertificate(match error {
        VerifyError::Revoked(_) => CertificateError::Revoked,
        other => CertificateError::Other(OtherError(Arc::new(other))),
    })
}

fn only_tls13() -> rustls::Error {
    rustls::Error::General("only TLS 1.3 is spoken here".to_owned())
}

#[derive(Debug)]
struct PeerVerifier(PeerCheck);

impl ClientCertVerifier for PeerVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.0.check(end_entity, intermediates).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(only_tls13())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.check_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.schemes()
    }
}

impl ServerCertVerifier for PeerVerifier {
    // The server's name is its SPIFFE ID, which the rule knows; DNS has no say.
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.0.check(end_entity, intermediates).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(only_tls13())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.check_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.schemes()
    }
}

/// Presents whatever SVID the source holds when the handshake happens.
#[derive(Debug)]
struct Presented(Arc<SvidSource>);

impl Presented {
    fn certified(&self) -> Option<Arc<CertifiedKey>> {
        match self.0.current() {
            Ok(identity) => Some(Arc::clone(&identity.certified)),
            Err(error) => {
                tracing::warn!(%error, "a TLS handshake was refused");
                None
            }
        }
    }
}

impl ResolvesServerCert for Presented {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.certified()
    }
}

impl ResolvesClientCert for Presented {
    fn resolve(
        &self,
        _root_hint_subjects: &[&[u8]],
        _schemes: &[SignatureScheme],
    ) -> Option<Arc<CertifiedKey>> {
        self.certified()
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// Presents one SVID.
#[derive(Debug)]
struct Fixed(Arc<CertifiedKey>);

impl ResolvesClientCert for Fixed {
    fn resolve(
        &self,
        _root_hint_subjects: &[&[u8]],
        _schemes: &[SignatureScheme],
    ) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

impl ResolvesServerCert for Fixed {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }
}

fn peer_verifier(
    source: &Arc<SvidSource>,
    revocations: watch::Receiver<Arc<Revocations>>,
    rule: PeerRule,
) -> Arc<PeerVerifier> {
    let believed = Arc::clone(source);
    Arc::new(PeerVerifier(PeerCheck {
        clock: source.clock(),
        bundle: Box::new(move || believed.bundle()),
        revocations,
        rule,
        provider: provider(),
    }))
}

/// A server that shows the source's SVID and talks only to peers that the rule accepts.
///
/// # Errors
/// When rustls refuses the configuration.
pub fn server_config(
    source: &Arc<SvidSource>,
    revocations: watch::Receiver<Arc<Revocations>>,
    rule: PeerRule,
) -> Result<ServerConfig, TlsError> {
    let config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(peer_verifier(source, revocations, rule))
        .with_cert_resolver(Arc::new(Presented(Arc::clone(source))));
    Ok(without_resumption(config))
}

/// A server that shows the source's SVID to anyone: for those who have none yet, such as who comes
/// to the CA for the first one. It has to learn in another way who asks.
///
/// # Errors
/// When rustls refuses the configuration.
pub fn open_server_config(source: &Arc<SvidSource>) -> Result<ServerConfig, TlsError> {
    let config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(Presented(Arc::clone(source))));
    Ok(without_resumption(config))
}

fn without_resumption(mut config: ServerConfig) -> ServerConfig {
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.max_early_data_size = 0;
    config
}

/// A client that shows the source's SVID and talks only to servers that the rule accepts.
///
/// # Errors
/// When rustls refuses the configuration.
pub fn client_config(
    source: &Arc<SvidSource>,
    revocations: watch::Receiver<Arc<Revocations>>,
    rule: PeerRule,
) -> Result<ClientConfig, TlsError> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(peer_verifier(source, revocations, rule))
        .with_client_cert_resolver(Arc::new(Presented(Arc::clone(source))));
    as_spiffe_client(&mut config);
    Ok(config)
}

/// The same client, showing this very SVID and not the next: what is signed for a connection has to be
/// signed by the SVID that the connection shows.
#[must_use]
pub fn presenting(config: &ClientConfig, identity: &Identity) -> ClientConfig {
    let mut config = config.clone();
    config.client_auth_cert_resolver = Arc::new(Fixed(Arc::clone(&identity.certified)));
    config
}

/// The same server, showing this very SVID and not the next, for the same reason.
#[must_use]
pub fn showing(config: &ServerConfig, identity: &Identity) -> ServerConfig {
    let mut config = config.clone();
    config.cert_resolver = Arc::new(Fixed(Arc::clone(&identity.certified)));
    config
}

/// A client that shows nothing and talks only to servers that the rule accepts: for who has no SVID
/// yet.
///
/// # Errors
/// When rustls refuses the configuration.
pub fn anonymous_client_config(
    bundle: watch::Receiver<Bundle>,
    revocations: watch::Receiver<Arc<Revocations>>,
    rule: PeerRule,
    clock: Clock,
) -> Result<ClientConfig, TlsError> {
    let verifier = PeerVerifier(PeerCheck {
        bundle: Box::new(move || bundle.borrow().clone()),
        revocations,
        rule,
        clock,
        provider: provider(),
    });
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    as_spiffe_client(&mut config);
    Ok(config)
}

fn as_spiffe_client(config: &mut ClientConfig) {
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    // A SPIFFE ID is not a DNS name, so there is nothing to put into SNI.
    config.enable_sni = false;
}

/// A client for servers of the open web (TLS 1.2 or 1.3, their DNS name checked).
///
/// # Errors
/// When the roots cannot be read.
pub fn https_client_config(roots: &Roots) -> Result<ClientConfig, TlsError> {
    let config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(root_store(roots)?)
        .with_no_client_auth();
    Ok(config)
}

fn root_store(roots: &Roots) -> Result<RootCertStore, TlsError> {
    let path = match roots {
        Roots::WebPki => {
            return Ok(RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() });
        }
        Roots::Pem(path) => path,
    };
    let unusable = |cause: String| TlsError::Roots { path: path.clone(), cause };
    let text = fs::read(path).map_err(|error| unusable(error.to_string()))?;
    let mut store = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&text) {
        let certificate = certificate.map_err(|error| unusable(error.to_string()))?;
        store.add(certificate).map_err(|error| unusable(error.to_string()))?;
    }
    if store.is_empty() {
        return Err(unusable("there is no certificate in it".to_owned()));
    }
    Ok(store)
}

/// Who the peer of an established connection is. The handshake has verified the certificate; this
/// only reads it, so it must not be given certificates from anywhere else.
///
/// # Errors
/// When there is no certificate.
pub fn peer_identity(
    certificates: Option<&[CertificateDer<'_>]>,
) -> Result<PeerIdentity, VerifyError> {
    let leaf = certificates.and_then(<[_]>::first).ok_or(VerifyError::NoCertificate)?;
    let leaf = Leaf::parse(leaf)?;
    Ok(PeerIdentity { id: leaf.id, serial: leaf.serial, not_after: leaf.not_after })
}

/// Resolves when an open connection must end: its peer was revoked, or its SVID has expired.
pub async fn peer_ended(
    peer: &PeerIdentity,
    mut revocations: watch::Receiver<Arc<Revocations>>,
    clock: Clock,
) -> VerifyError {
    loop {
        if revocations.borrow_and_update().covers(&peer.id, &peer.serial) {
            return VerifyError::Revoked(peer.id.clone());
        }
        let now: Timestamp = clock();
        if now >= peer.not_after {
            return VerifyError::Expired(peer.not_after);
        }
        tokio::select! {
            () = tokio::time::sleep(peer.not_after.since(now)) => {}
            changed = revocations.changed() => if changed.is_err() {
                // Nobody tells of revocations any more: the peer can no longer be vouched for.
                return VerifyError::NotAccepted(peer.id.clone());
            }
        }
    }
}
