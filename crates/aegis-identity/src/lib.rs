//! Who is at the other end: SPIFFE identities, trust bundles and the TLS that carries them.
//!
//! Everything here is about *holding* and *checking* identities; issuing them is the CA's work.
//! Refuses by default: an SVID that is expired, foreign, malformed, revoked or not accepted by the
//! caller's predicate is an error, and an endpoint without a valid SVID of its own does not answer.

pub mod bundle;
pub mod clock;
pub mod delegation;
pub mod grant;
pub mod jws;
pub mod jwt;
pub mod manifest;
pub mod revocation;
pub mod source;
pub mod svid;
pub mod tls;
pub mod verify;

pub use bundle::{Bundle, BundleError};
pub use clock::{Clock, system_clock};
pub use delegation::{Delegation, lend, verify_delegation};
pub use grant::{VerifiedGrant, sign_grant, verify_grant};
pub use jws::SignError;
pub use jwt::{JwtClaims, JwtError, JwtKey, JwtSigner, JwtSvid};
pub use manifest::{VerifiedManifest, sign_manifest, verify_manifest};
pub use revocation::Revocations;
pub use source::{Fetched, Identity, SvidFetcher, SvidSource};
pub use svid::{Serial, SvidError, X509Svid};
pub use tls::{PeerRule, TlsError};
pub use verify::{PeerIdentity, VerifyError, verify_chain};

use std::time::Duration;

/// How far two clocks may differ before a validity period is taken at its word.
pub const CLOCK_SKEW: Duration = Duration::from_secs(30);
