//! Protocol versions and the two eras they form.

/// The revision of the modern era.
pub const MODERN_VERSION: &str = "2026-07-28";

/// Every revision that Aegis governs, newest first: what a client is offered instead of an unknown one.
pub const SUPPORTED_VERSIONS: [&str; 5] =
    [MODERN_VERSION, "2025-11-25", "2025-06-18", "2025-03-26", "2024-11-05"];

/// How a message's sender speaks MCP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Era {
    /// A session opened with `initialize`.
    Legacy(LegacyVersion),
    /// Self-contained requests: revision 2026-07-28.
    Modern,
}

/// The revisions of the legacy era.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum LegacyVersion {
    /// 2024-11-05
    V2024_11_05,
    /// 2025-03-26
    V2025_03_26,
    /// 2025-06-18
    V2025_06_18,
    /// 2025-11-25
    V2025_11_25,
}

impl LegacyVersion {
    /// What a message without a version header speaks (2025-11-25, basic/transports: "the server
    /// SHOULD assume protocol version 2025-03-26").
    pub const ASSUMED: Self = Self::V2025_03_26;

    /// The revision's name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::V2024_11_05 => "2024-11-05",
            Self::V2025_03_26 => "2025-03-26",
            Self::V2025_06_18 => "2025-06-18",
            Self::V2025_11_25 => "2025-11-25",
        }
    }
}

impl Era {
    /// The era of a version, if Aegis knows it.
    #[must_use]
    pub fn of_version(version: &str) -> Option<Self> {
        Some(match version {
            MODERN_VERSION => Self::Modern,
            "2025-11-25" => Self::Legacy(LegacyVersion::V2025_11_25),
            "2025-06-18" => Self::Legacy(LegacyVersion::V2025_06_18),
            "2025-03-26" => Self::Legacy(LegacyVersion::V2025_03_26),
            "2024-11-05" => Self::Legacy(LegacyVersion::V2024_11_05),
            _ => return None,
        })
    }

    /// The version's name.
    #[must_use]
    pub const fn version(self) -> &'static str {
        match self {
            Self::Modern => MODERN_VERSION,
            Self::Legacy(version) => version.as_str(),
        }
    }

    /// Whether this is the modern era.
    #[must_use]
    pub const fn is_modern(self) -> bool {
        matches!(self, Self::Modern)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_and_eras_agree() {
        for version in SUPPORTED_VERSIONS {
            assert_eq!(Era::of_version(version).unwrap().version(), version);
        }
        for version in ["2026-07-29", "", "DRAFT", "2025-11-25 "] {
            assert_eq!(Era::of_version(version), None);
        }
    }
}
