//! Manifests between sidecars (IATP): before anything else passes on a connection, each side shows who
//! answers for its agent, what that may ever do and by which policies it decides, signed by the SVID
//! that the connection shows and for that connection alone.
//!
//! Each manifest is a frame: its length in four bytes, then itself; a length of zero refuses the other's.
//! The client speaks first. What it claims is looked at with each request again, because what is
//! registered changes while a connection is open: it never counts for more than that. What is out of date
//! is shown anew on the next connection: the caller gives an older one no further call, the callee ends
//! it with its next answer.

use std::{io, sync::Arc};

use aegis_core::{
    AgentId, Digest, Sponsor, Timestamp,
    capability::Capability,
    decision::Reason,
    manifest::{Known, MANIFEST_LIFE, Manifest, ManifestError},
};
use aegis_identity::{
    CLOCK_SKEW, Clock, VerifiedManifest, X509Svid,
    manifest::{MAX_MANIFEST_BYTES, Side, certificate, channel},
    sign_manifest, verify_manifest,
};
use aegis_kernel::{Kernel, Principal, ShownManifest};
use rustls::{ConnectionCommon, pki_types::CertificateDer};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::{client, server};

/// The protocol between sidecars: each shows its manifest, then HTTP/1.1 of governed agents.
pub const MESH_PROTOCOL: &[u8] = b"aegis-mesh/2";
/// The same without manifests. Spoken only where these are not required.
pub const BARE_MESH_PROTOCOL: &[u8] = b"aegis-mesh/1";

/// What becomes of a peer without a manifest that holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum ManifestMode {
    /// Nothing passes
    #[default]
    Required,
    /// What passes says so in its record
    Recorded,
}

/// What this side shows, and how it looks at what is shown to it.
pub(crate) struct Manifests {
    kernel: Arc<Kernel>,
    agent: AgentId,
    clock: Clock,
    mode: ManifestMode,
}

/// What of this side's manifest is worth showing anew when it changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Facts {
    sponsor: Sponsor,
    capabilities: Arc<[Capability]>,
    policies: Digest,
}

/// What was shown on a connection.
#[derive(Clone, Debug)]
pub(crate) struct Met {
    /// By the peer.
    theirs: Result<VerifiedManifest, ManifestError>,
    /// By this side; nothing where the peer speaks the protocol without manifests.
    shown: Option<Facts>,
    /// Until when both hold.
    until: Timestamp,
}

/// Why a request of a peer is refused before it is judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unfit {
    pub(crate) reason: Reason,
    /// What is wrong, and with which of the things that it has shown.
    pub(crate) problem: Option<(&'static str, &'static str)>,
}

impl From<ManifestError> for Unfit {
    fn from(problem: ManifestError) -> Self {
        Self { reason: Reason::ManifestRefused, problem: Some(("manifest", problem.code())) }
    }
}

/// What both ends of a connection know of it.
struct Ends {
    ours: Digest,
    theirs: Digest,
    leaf: CertificateDer<'static>,
}

impl Ends {
    fn of<D>(session: &ConnectionCommon<D>, side: Side) -> io::Result<Self> {
        let other = if side == Side::Client { Side::Server } else { Side::Client };
        let leaf = session.peer_certificates().and_then(<[_]>::first);
        Ok(Self {
            ours: channel(session, side).map_err(io::Error::other)?,
            theirs: channel(session, other).map_err(io::Error::other)?,
            leaf: leaf.ok_or_else(|| io::Error::other("the peer has shown no SVID"))?.clone(),
        })
    }
}

impl Manifests {
    pub(crate) const fn new(
        kernel: Arc<Kernel>,
        agent: AgentId,
        clock: Clock,
        mode: ManifestMode,
    ) -> Self {
        Self { kernel, agent, clock, mode }
    }

    /// What is spoken between sidecars.
    pub(crate) fn protocols(&self) -> Vec<Vec<u8>> {
        match self.mode {
            ManifestMode::Required => vec![MESH_PROTOCOL.to_vec()],
            ManifestMode::Recorded => vec![MESH_PROTOCOL.to_vec(), BARE_MESH_PROTOCOL.to_vec()],
        }
    }

    /// Whether that is one of them.
    pub(crate) fn speaks(&self, protocol: Option<&[u8]>) -> bool {
        protocol.is_some_and(|one| self.protocols().iter().any(|own| own == one))
    }

    fn facts(&self) -> Option<Facts> {
        let state = self.kernel.state();
        let registered = state.registry.find(&self.agent)?;
        Some(Facts {
            sponsor: registered.sponsor.clone(),
            capabilities: Arc::clone(&registered.capabilities),
            policies: self.kernel.engine().policies().digest(),
        })
    }

    /// This side's manifest for a connection, until when it holds, and what it says.
    fn own(&self, svid: &X509Svid, channel: Digest) -> io::Result<(String, Timestamp, Facts)> {
        let state = self.kernel.state().serial;
        let facts = self.facts().ok_or(ManifestError::Unregistered).map_err(io::Error::other)?;
        let now = (self.clock)();
        let leaf = svid.chain().first().ok_or_else(|| io::Error::other("there is no SVID"))?;
        let manifest = Manifest {
            agent: self.agent.clone(),
            sponsor: facts.sponsor.clone(),
            capabilities: facts.capabilities.to_vec(),
            policies: facts.policies,
            state,
            svid: certificate(leaf),
            channel,
            issued_at: now,
            expires_at: now.plus(MANIFEST_LIFE).min(svid.not_after()),
        };
        let token = sign_manifest(svid, &manifest).map_err(io::Error::other)?;
        Ok((token, manifest.expires_at, facts))
    }

    /// Whether what the peer has shown holds, as far as this side knows.
    fn check(&self, shown: &VerifiedManifest) -> Result<(), ManifestError> {
        let manifest = shown.manifest();
        if !manifest.is_current((self.clock)(), CLOCK_SKEW) {
            return Err(ManifestError::Expired);
        }
        let state = self.kernel.state();
        let registered = state.registry.find(&manifest.agent);
        let registered = registered.map(|known| (&known.sponsor, &*known.capabilities));
        manifest.agrees_with(&Known { registered, state: state.serial })
    }

    fn verified(&self, token: &str, ends: &Ends) -> Result<VerifiedManifest, ManifestError> {
        let verified = verify_manifest(token, &ends.leaf, ends.theirs, (self.clock)())?;
        self.check(&verified)?;
        Ok(verified)
    }

    /// Shows this side's manifest to whom it has connected, by the SVID that it has shown, and looks at
    /// the other's.
    ///
    /// # Errors
    /// When the connection breaks, or, as a [`ManifestError`], when one side does not take the other's.
    pub(crate) async fn greet(
        &self,
        stream: &mut client::TlsStream<TcpStream>,
        svid: &X509Svid,
    ) -> io::Result<Met> {
        let session = stream.get_ref().1;
        if session.alpn_protocol() == Some(BARE_MESH_PROTOCOL) {
            return Ok(Met::bare());
        }
        let ends = Ends::of(session, Side::Client)?;
        let (token, until, facts) = self.own(svid, ends.ours)?;
        write(stream, token.as_bytes()).await?;
        let theirs = match read(stream).await? {
            Err(refused) => return Err(io::Error::other(refused)),
            Ok(token) => self.verified(&token, &ends),
        };
        match &theirs {
            Err(problem) if self.mode == ManifestMode::Required => {
                return Err(io::Error::other(*problem));
            }
            Err(problem) => tracing::warn!(%problem, "a callee has shown no manifest that holds"),
            Ok(_) => {}
        }
        Ok(Met::new(theirs, facts, until))
    }

    /// Looks at the manifest of who has connected, and shows this side's.
    ///
    /// # Errors
    /// Why the peer is refused; it has been told.
    pub(crate) async fn welcome(
        &self,
        stream: &mut server::TlsStream<TcpStream>,
        svid: &X509Svid,
    ) -> Result<Met, ManifestError> {
        let session = stream.get_ref().1;
        if session.alpn_protocol() == Some(BARE_MESH_PROTOCOL) {
            return Ok(Met::bare());
        }
        let ends = Ends::of(session, Side::Server).map_err(|_| ManifestError::Channel)?;
        let theirs = match read(stream).await {
            Ok(Ok(token)) => self.verified(&token, &ends),
            // What follows is no frame either.
            Ok(Err(ManifestError::TooLarge)) => {
                return refuse(stream, ManifestError::TooLarge).await;
            }
            Ok(Err(ManifestError::Refused)) => Err(ManifestError::Absent),
            Ok(Err(problem)) => Err(problem),
            Err(_) => return Err(ManifestError::Absent),
        };
        if let Err(problem) = theirs
            && self.mode == ManifestMode::Required
        {
            return refuse(stream, problem).await;
        }
        match self.own(svid, ends.ours) {
            Ok((token, until, facts)) => match write(stream, token.as_bytes()).await {
                Ok(()) => Ok(Met::new(theirs, facts, until)),
                Err(_) => Err(ManifestError::Absent),
            },
            Err(error) => {
                tracing::warn!(%error, "this side has no manifest to show");
                refuse(stream, ManifestError::Unregistered).await
            }
        }
    }

    /// The caller of a request on a connection, as far as what was shown there still holds: it then holds
    /// no more than it has shown.
    pub(crate) fn standing(&self, met: &Met, mut caller: Principal) -> Result<Principal, Unfit> {
        let held = met.theirs.as_ref().map_err(|problem| *problem);
        match held.and_then(|shown| self.check(shown).map(|()| shown)) {
            Ok(shown) => {
                let manifest = shown.manifest();
                let (digest, policies) = (shown.digest(), manifest.policies);
                caller.manifest = Some(Ok(ShownManifest { digest, policies }));
                let nothing = Unfit { reason: Reason::CapabilityMissing, problem: None };
                caller.within(&manifest.capabilities).ok_or(nothing)
            }
            Err(problem) if self.mode == ManifestMode::Required => Err(problem.into()),
            Err(problem) => {
                caller.manifest = Some(Err(problem));
                Ok(caller)
            }
        }
    }

    /// Whether this side would show now what it has shown there.
    pub(crate) fn is_current(&self, met: &Met) -> bool {
        met.shown.is_none() || met.shown == self.facts()
    }

    /// Resolves when this side would show something else than it has shown there.
    pub(crate) async fn outdated(&self, met: &Met) {
        let mut changes = self.kernel.changes();
        while self.is_current(met) {
            if changes.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
}

impl Met {
    fn new(
        theirs: Result<VerifiedManifest, ManifestError>,
        shown: Facts,
        until: Timestamp,
    ) -> Self {
        let theirs_until = theirs.as_ref().ok().map(|shown| shown.manifest().expires_at);
        let until = theirs_until.unwrap_or(until).min(until);
        Self { theirs, shown: Some(shown), until }
    }

    /// Nothing was.
    fn bare() -> Self {
        let until = Timestamp::from_micros(u64::MAX);
        Self { theirs: Err(ManifestError::Absent), shown: None, until }
    }

    /// Until when both manifests hold.
    pub(crate) const fn until(&self) -> Timestamp {
        self.until
    }
}

/// Tells the peer that its manifest is refused. What it has sent besides is not read.
async fn refuse<S: AsyncWrite + Unpin>(
    stream: &mut S,
    problem: ManifestError,
) -> Result<Met, ManifestError> {
    let _ = write(stream, b"").await;
    let _ = stream.shutdown().await;
    Err(problem)
}

async fn write<S: AsyncWrite + Unpin>(stream: &mut S, token: &[u8]) -> io::Result<()> {
    let length = u32::try_from(token.len()).map_err(io::Error::other)?;
    stream.write_all(&length.to_be_bytes()).await?;
    stream.write_all(token).await?;
    stream.flush().await
}

async fn read<S: AsyncRead + Unpin>(stream: &mut S) -> io::Result<Result<String, ManifestError>> {
    let length = stream.read_u32().await?;
    let bounded = usize::try_from(length).is_ok_and(|length| length <= MAX_MANIFEST_BYTES);
    if length == 0 {
        return Ok(Err(ManifestError::Refused));
    }
    if !bounded {
        return Ok(Err(ManifestError::TooLarge));
    }
    // What was only announced takes no memory.
    let mut bytes = Vec::new();
    let read = stream.take(length.into()).read_to_end(&mut bytes).await?;
    if u32::try_from(read) != Ok(length) {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(String::from_utf8(bytes).map_err(|_| ManifestError::Malformed))
}
