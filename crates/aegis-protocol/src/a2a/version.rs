//! Which version a client speaks (specification §3.6).

/// A version of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// 0.3: assumed where none is named.
    V0_3,
    /// 1.0.
    V1_0,
}

impl Version {
    /// The version that a client names. An empty name is 0.3; the patch number does not count.
    #[must_use]
    pub fn of(text: &str) -> Option<Self> {
        let mut parts = text.splitn(3, '.');
        let version = match (parts.next(), parts.next()) {
            (Some(""), None) => return Some(Self::V0_3),
            (Some("0"), Some("3")) => Self::V0_3,
            (Some("1"), Some("0")) => Self::V1_0,
            _ => return None,
        };
        let patch = parts.next().unwrap_or("0");
        let number = !patch.is_empty() && patch.bytes().all(|b| b.is_ascii_digit());
        number.then_some(version)
    }

    /// Its name, as clients send it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::V0_3 => "0.3",
            Self::V1_0 => "1.0",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_known_versions_are_versions() {
        for text in ["", "0.3", "0.3.0", "0.3.12"] {
            assert_eq!(Version::of(text), Some(Version::V0_3), "{text}");
        }
        for text in ["1.0", "1.0.1"] {
            assert_eq!(Version::of(text), Some(Version::V1_0), "{text}");
        }
        for text in ["1", "2.0", "1.1", "0.2.6", "1.0.", "1.0.x", "1.0.1.1", " 1.0", "v1.0", "0.30"]
        {
            assert_eq!(Version::of(text), None, "{text}");
        }
    }
}
