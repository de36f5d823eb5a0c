//! An X.509-SVID that this process may use: its chain and its private key.
//!
//! The key lives in memory only, is overwritten when dropped, and never appears in `Debug`.

use std::{fmt, str::FromStr, sync::Arc};

use aegis_core::{SpiffeId, Timestamp};
use rustls::{
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer},
    sign::CertifiedKey,
};
use zeroize::Zeroizing;

use crate::verify::{Leaf, VerifyError};

/// A certificate's serial number: lower-case hex without leading zero bytes.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Serial(Arc<str>);

/// An X.509-SVID with its private key. Cheap to clone.
#[derive(Clone)]
pub struct X509Svid {
    id: SpiffeId,
    chain: Arc<[CertificateDer<'static>]>,
    key: Arc<Zeroizing<Vec<u8>>>,
    serial: Serial,
    not_before: Timestamp,
    not_after: Timestamp,
}

/// Why bytes are not an SVID of ours.
#[derive(Debug, thiserror::Error)]
pub enum SvidError {
    /// The leaf is not an X.509-SVID.
    #[error(transparent)]
    Leaf(#[from] VerifyError),
    /// The key is not a PKCS#8 key that TLS can use, or belongs to another certificate.
    #[error("the private key of {id} cannot be used: {cause}")]
    Key {
        /// Whose key.
        id: SpiffeId,
        /// What rustls says.
        cause: rustls::Error,
    },
    /// Not a serial number.
    #[error("`{0}` is not a serial number: expected up to 40 hex digits")]
    Serial(String),
}

// === impl Serial ===

impl Serial {
    /// From the big-endian bytes of a certificate.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Self {
        let start = bytes.iter().position(|b| *b != 0).unwrap_or(bytes.len());
        Self(hex::encode(bytes.get(start..).unwrap_or_default()).into())
    }

    /// The hex digits.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Serial {
    type Err = SvidError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // RFC 5280 §4.1.2.2: at most 20 bytes. Tools print serials with colons and capitals too.
        let digits: String = text.chars().filter(|c| *c != ':').collect();
        match hex::decode(&digits) {
            Ok(bytes) if bytes.len() <= 20 && bytes.iter().any(|b| *b != 0) => {
                Ok(Self::from_bytes(&bytes))
            }
            _ => Err(SvidError::Serial(text.chars().take(80).collect())),
        }
    }
}

impl serde::Serialize for Serial {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Serial {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

// === impl X509Svid ===

impl X509Svid {
    /// From a chain (leaf first) and a PKCS#8 key. Checks the leaf's form, not who signed it.
    ///
    /// # Errors
    /// When the chain is empty or its leaf is not an X.509-SVID.
    pub fn new(
        chain: Vec<CertificateDer<'static>>,
        pkcs8: Zeroizing<Vec<u8>>,
    ) -> Result<Self, SvidError> {
        let leaf = Leaf::parse(chain.first().ok_or(VerifyError::NoCertificate)?)?;
        Ok(Self {
            id: leaf.id,
            serial: leaf.serial,
            not_before: leaf.not_before,
            not_after: leaf.not_after,
            chain: chain.into(),
            key: Arc::new(pkcs8),
        })
    }

    /// Whose SVID this is.
    #[must_use]
    pub const fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// The certificates, leaf first, without the root.
    #[must_use]
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// The certificates concatenated, as the Workload API sends them.
    #[must_use]
    pub fn chain_der(&self) -> Vec<u8> {
        self.chain.iter().flat_map(|certificate| certificate.iter().copied()).collect()
    }

    /// The private key, PKCS#8 DER. Handle with care: it is the identity.
    #[must_use]
    pub fn key_pkcs8(&self) -> &[u8] {
        &self.key
    }

    /// The leaf's serial number.
    #[must_use]
    pub const fn serial(&self) -> &Serial {
        &self.serial
    }

    /// Not valid before.
    #[must_use]
    pub const fn not_before(&self) -> Timestamp {
        self.not_before
    }

    /// Not valid after.
    #[must_use]
    pub const fn not_after(&self) -> Timestamp {
        self.not_after
    }

    /// Whether the SVID may be presented at `now`.
    #[must_use]
    pub fn is_valid_at(&self, now: Timestamp) -> bool {
        self.not_before <= now && now < self.not_after
    }

    /// The form that rustls presents.
    ///
    /// # Errors
    /// When the key cannot sign for TLS or belongs to another certificate.
    pub fn certified_key(&self) -> Result<CertifiedKey, SvidError> {
        let key_error = |cause| SvidError::Key { id: self.id.clone(), cause };
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key.as_slice()));
        let key = aws_lc_rs::sign::any_supported_type(&key).map_err(key_error)?;
        let certified = CertifiedKey::new(self.chain.to_vec(), key);
        certified.keys_match().map_err(key_error)?;
        Ok(certified)
    }
}

impl fmt::Debug for X509Svid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("X509Svid")
            .field("id", &self.id.as_str())
            .field("serial", &self.serial.as_str())
            .field("not_after", &self.not_after.to_string())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn serials_have_one_text() {
        let serial = Serial::from_bytes(&[0, 0xab, 0x01]);
        assert_eq!(serial.as_str(), "ab01");
        assert_eq!("00:AB:01".parse::<Serial>().unwrap(), serial);
        for text in ["", "00", "xyz", "abc", &"ab".repeat(21)] {
            assert!(text.parse::<Serial>().is_err(), "{text}");
        }
    }
}
