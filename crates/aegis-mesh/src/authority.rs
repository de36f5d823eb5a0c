//! The CA's client: keys are made here and never leave; the CA signs them for whom the pod's token
//! says that this is.
//!
//! It talks only to `spiffe://<trust domain>/aegis/ca`, vouched for by the first roots and then by
//! what that CA says is to be believed. The token is read anew for every request, because it is
//! renewed under our feet.

use std::{collections::BTreeSet, error::Error, fmt, path::PathBuf, sync::Arc, time::Duration};

use aegis_api::authority::proto::{
    FollowTrustRequest, IssueJwtRequest, IssueRequest, Trust, authority_client::AuthorityClient,
};
use aegis_core::{Timestamp, TrustDomain};
use aegis_identity::{
    Bundle, BundleError, Clock, Fetched, PeerRule, Revocations, Serial, SvidError, SvidFetcher,
    SvidSource, TlsError, X509Svid, tls::anonymous_client_config, verify_chain,
};
use futures::future::BoxFuture;
use rcgen::{CertificateParams, DistinguishedName, KeyPair};
use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status, transport::Channel};

use crate::{backoff::Backoff, channel, component};

/// How long the CA may take to answer.
const PATIENCE: Duration = Duration::from_secs(15);
/// The largest message of the CA: a bundle and what is revoked.
const MAX_MESSAGE_BYTES: usize = 16 << 20;
/// A fleet whose authorities were replaced asks for new SVIDs within this time, not at once.
const SPREAD: Duration = Duration::from_secs(2);

/// Where the CA is and how to know it.
#[derive(Clone)]
pub struct AuthorityConfig {
    /// The trust domain that the CA issues for.
    pub trust_domain: TrustDomain,
    /// Where it is: `host:port`.
    pub address: String,
    /// Whom to believe at first; see [`first_roots`].
    pub roots: Bundle,
    /// The file with the token that says who this is.
    pub token: PathBuf,
    /// Whether to ask for the application's own SVID too.
    pub application: bool,
    /// Tells the time.
    pub clock: Clock,
}

impl fmt::Debug for AuthorityConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuthorityConfig")
            .field("trust_domain", &self.trust_domain.as_str())
            .field("address", &self.address)
            .field("token", &self.token)
            .field("application", &self.application)
            .finish_non_exhaustive()
    }
}

/// Why the CA's answer cannot be had or used.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// The first roots.
    #[error("the first roots are neither a SPIFFE bundle nor PEM certificates: {0}")]
    Roots(String),
    /// TLS.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The token cannot be read.
    #[error("the token for the CA cannot be read from {}: {cause}", path.display())]
    Token {
        /// Where it should be.
        path: PathBuf,
        /// What the system says.
        cause: std::io::Error,
    },
    /// No key can be made.
    #[error("a key cannot be made: {0}")]
    Key(#[from] rcgen::Error),
    /// The CA cannot be reached, or refuses.
    #[error("the CA at {address} does not issue: {}", reason(status))]
    Refused {
        /// Where it is.
        address: String,
        /// What it says.
        status: Box<Status>,
    },
    /// It answers too late.
    #[error("the CA at {0} has not answered within 15 seconds")]
    Late(String),
    /// What it issued is no SVID of ours.
    #[error(transparent)]
    Svid(#[from] SvidError),
    /// What it says is to be believed is no bundle.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// An answer that lacks something.
    #[error("the CA's answer has no {0}")]
    Lacks(&'static str),
}

/// A status in words, with what lies beneath it: "transport error" alone helps nobody.
fn reason(status: &Status) -> String {
    let mut words = format!("{} ({})", status.message(), status.code());
    let mut source = status.source();
    while let Some(error) = source {
        let more = error.to_string();
        if !words.contains(&more) {
            words = format!("{words}: {more}");
        }
        source = error.source();
    }
    words
}

/// Reads the roots that a process is given: a SPIFFE bundle in JSON, or certificates in PEM.
///
/// # Errors
/// When they are neither, or hold nobody.
pub fn first_roots(trust_domain: &TrustDomain, text: &str) -> Result<Bundle, AuthorityError> {
    let unusable = |cause: String| AuthorityError::Roots(cause);
    let bundle = if text.trim_start().starts_with('{') {
        Bundle::from_jwks(trust_domain.clone(), text.as_bytes())
            .map_err(|error| unusable(error.to_string()))?
    } else {
        let certificates: Result<Vec<CertificateDer<'static>>, _> =
            CertificateDer::pem_slice_iter(text.as_bytes()).collect();
        let certificates = certificates.map_err(|error| unusable(error.to_string()))?;
        Bundle::new(trust_domain.clone(), certificates, Vec::new(), 0, Duration::from_secs(300))
            .map_err(|error| unusable(error.to_string()))?
    };
    if bundle.certificates().next().is_none() {
        return Err(unusable("there is no certificate in them".to_owned()));
    }
    Ok(bundle)
}

/// The CA as its clients see it. Cheap to clone; every clone is the same client.
#[derive(Clone)]
pub struct Authority(Arc<Inner>);

struct Inner {
    config: AuthorityConfig,
    channel: Channel,
    bundle: watch::Sender<Bundle>,
    revocations: watch::Sender<Arc<Revocations>>,
    application: watch::Sender<Option<X509Svid>>,
    following: watch::Sender<bool>,
    renew: Notify,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Authority").field(&self.0.config).finish()
    }
}

/// A key that was made here, and the request that goes to the CA.
struct Fresh {
    key: KeyPair,
    request: Vec<u8>,
}

impl Fresh {
    /// A P-256 key, and a request that asks for nothing but its signature.
    fn new() -> Result<Self, rcgen::Error> {
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let request = params.serialize_request(&key)?.der().to_vec();
        Ok(Self { key, request })
    }

    fn svid(&self, chain: Vec<Vec<u8>>) -> Result<X509Svid, SvidError> {
        let chain = chain.into_iter().map(CertificateDer::from).collect();
        let svid = X509Svid::new(chain, self.key.serialize_der().into())?;
        // Certificates for another key are of no use, and somebody else's.
        svid.certified_key()?;
        Ok(svid)
    }
}

impl Authority {
    /// A client; it connects when it is asked for something. Needs a tokio runtime.
    ///
    /// # Errors
    /// When TLS cannot be configured.
    pub fn new(config: AuthorityConfig) -> Result<Self, AuthorityError> {
        let (bundle, believed) = watch::channel(config.roots.clone());
        let (revocations, revoked) = watch::channel(Arc::default());
        let id = component(&config.trust_domain, "ca")
            .map_err(|error| AuthorityError::Roots(error.to_string()))?;
        let clock = Arc::clone(&config.clock);
        let rule = PeerRule::exactly(id);
        let tls = anonymous_client_config(believed, revoked.clone(), rule, Arc::clone(&clock))?;
        let channel = channel::connecting(&config.address, tls, revoked, clock);
        Ok(Self(Arc::new(Inner {
            config,
            channel,
            bundle,
            revocations,
            application: watch::Sender::new(None),
            following: watch::Sender::new(false),
            renew: Notify::new(),
        })))
    }

    /// Who is revoked.
    #[must_use]
    pub fn revocations(&self) -> watch::Receiver<Arc<Revocations>> {
        self.0.revocations.subscribe()
    }

    /// Whom to believe.
    #[must_use]
    pub fn bundle(&self) -> watch::Receiver<Bundle> {
        self.0.bundle.subscribe()
    }

    /// The application's own SVID, renewed together with this process's; none before the first, or
    /// when it is not asked for.
    #[must_use]
    pub fn application(&self) -> watch::Receiver<Option<X509Svid>> {
        self.0.application.subscribe()
    }

    /// Whether changes of what is to be believed arrive at the moment.
    #[must_use]
    pub fn following(&self) -> watch::Receiver<bool> {
        self.0.following.subscribe()
    }

    fn client(&self) -> AuthorityClient<Channel> {
        AuthorityClient::new(self.0.channel.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES)
    }

    async fn token(&self) -> Result<String, AuthorityError> {
        let path = self.0.config.token.clone();
        match tokio::fs::read_to_string(&path).await {
            Ok(token) => Ok(token.trim().to_owned()),
            Err(cause) => Err(AuthorityError::Token { path, cause }),
        }
    }

    fn refused(&self, status: Status) -> AuthorityError {
        let address = self.0.config.address.clone();
        AuthorityError::Refused { address, status: Box::new(status) }
    }

    async fn in_time<T>(
        &self,
        answer: impl Future<Output = Result<tonic::Response<T>, Status>>,
    ) -> Result<T, AuthorityError> {
        match tokio::time::timeout(PATIENCE, answer).await {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            Ok(Err(status)) => Err(self.refused(status)),
            Err(_) => Err(AuthorityError::Late(self.0.config.address.clone())),
        }
    }

    async fn issue(&self) -> Result<Fetched, AuthorityError> {
        let own = Fresh::new()?;
        let application = self.0.config.application.then(Fresh::new).transpose()?;
        let request = IssueRequest {
            token: self.token().await?,
            request: own.request.clone(),
            workload_request: application
                .as_ref()
                .map(|fresh| fresh.request.clone())
                .unwrap_or_default(),
        };
        let mut client = self.client();
        let issued = self.in_time(client.issue(request)).await?;
        let svid = own.svid(issued.chain)?;
        let application = application.map(|fresh| fresh.svid(issued.workload_chain)).transpose()?;
        let trust = issued.trust.ok_or(AuthorityError::Lacks("trust"))?;
        // What is followed is newer than an answer that was on its way.
        if !*self.0.following.borrow() {
            self.believe(&trust)?;
        }
        self.0.application.send_replace(application);
        Ok(Fetched { svid, bundle: self.0.bundle.borrow().clone() })
    }

    /// Asks for a JWT-SVID for the application. Returns it and when it expires.
    ///
    /// # Errors
    /// When the CA cannot be reached or refuses.
    pub async fn issue_jwt(
        &self,
        audience: Vec<String>,
    ) -> Result<(String, Timestamp), AuthorityError> {
        let request = IssueJwtRequest { token: self.token().await?, audience };
        let mut client = self.client();
        let issued = self.in_time(client.issue_jwt(request)).await?;
        Ok((issued.token, Timestamp::from_micros(issued.expires_at)))
    }

    fn believe(&self, trust: &Trust) -> Result<(), AuthorityError> {
        let bundle = Bundle::from_jwks(self.0.config.trust_domain.clone(), &trust.bundle)?;
        if bundle.certificates().next().is_none() {
            return Err(AuthorityError::Lacks("authority in its bundle"));
        }
        let ids = trust.revoked_ids.iter().filter_map(|id| match id.parse() {
            Ok(id) => Some(id),
            // It names nobody who could connect.
            Err(error) => {
                tracing::warn!(%error, "the CA revokes what is no SPIFFE ID");
                None
            }
        });
        let revoked = Revocations {
            serials: trust.revoked_serials.iter().map(|bytes| Serial::from_bytes(bytes)).collect(),
            ids: ids.collect::<BTreeSet<_>>(),
        };
        self.0.revocations.send_if_modified(|held| {
            let changed = **held != revoked;
            if changed {
                *held = Arc::new(revoked);
            }
            changed
        });
        self.0.bundle.send_if_modified(|held| {
            let changed = *held != bundle;
            *held = bundle;
            changed
        });
        Ok(())
    }

    /// Follows what is to be believed until `stop`, and tells `source` of it. While the CA is away,
    /// what it said last stays in force.
    pub async fn follow(&self, source: &SvidSource, stop: CancellationToken) {
        let mut backoff = Backoff::new();
        loop {
            let ended = tokio::select! {
                () = stop.cancelled() => return,
                ended = self.one_stream(source, &mut backoff) => ended,
            };
            self.0.following.send_replace(false);
            match ended {
                Ok(()) => tracing::info!("the CA has ended the stream of what is to be believed"),
                Err(error) => {
                    tracing::warn!(%error, "the CA is not followed; what it said last stays in force");
                }
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(backoff.next()) => {}
            }
        }
    }

    async fn one_stream(
        &self,
        source: &SvidSource,
        backoff: &mut Backoff,
    ) -> Result<(), AuthorityError> {
        let request = FollowTrustRequest { token: self.token().await? };
        let mut client = self.client();
        let mut stream = self.in_time(client.follow_trust(request)).await?;
        while let Some(trust) = stream.message().await.map_err(|status| self.refused(status))? {
            self.0.following.send_replace(true);
            self.believe(&trust)?;
            let bundle = self.0.bundle.borrow().clone();
            source.believe(bundle.clone());
            backoff.reset();
            self.renew_if_foreign(source, &bundle);
        }
        Ok(())
    }

    /// An SVID whose authority is believed no more is of no use to anybody: a new one is due.
    fn renew_if_foreign(&self, source: &SvidSource, bundle: &Bundle) {
        let Ok(identity) = source.current() else { return };
        let revocations = Arc::clone(&self.0.revocations.borrow());
        let now = (self.0.config.clock)();
        if verify_chain(identity.svid.chain(), bundle, &revocations, now).is_err() {
            self.0.renew.notify_one();
        }
    }

    /// Whether a failure is the CA's word that this process is nobody, rather than its absence.
    #[must_use]
    pub fn is_refusal(error: &AuthorityError) -> bool {
        matches!(error, AuthorityError::Refused { status, .. }
            if matches!(status.code(), Code::PermissionDenied | Code::Unauthenticated))
    }
}

impl SvidFetcher for Authority {
    fn fetch(&self) -> BoxFuture<'_, Result<Fetched, Box<dyn Error + Send + Sync>>> {
        Box::pin(async { Ok(self.issue().await?) })
    }

    fn changed(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            self.0.renew.notified().await;
            tokio::time::sleep(SPREAD.saturating_mul(rand::random_range(0..=1000)) / 1000).await;
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roots_that_are_nobody_are_refused() {
        let domain: TrustDomain = "acme.example".parse().unwrap();
        for text in ["", "{}", "{\"keys\":[]}", "-----BEGIN CERTIFICATE-----\n", "hello"] {
            let error = first_roots(&domain, text).unwrap_err();
            assert!(matches!(error, AuthorityError::Roots(_)), "{text}: {error}");
        }
    }
}
