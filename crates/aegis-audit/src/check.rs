//! Checks that one entry needs nobody else for: its bytes against the stored leaf hash, and what
//! they say against the columns by which the entry is found.
//!
//! Everything is compared where it lies; nothing is copied but what the chain needs afterwards.

use std::borrow::Cow;
use std::fmt;

use aegis_core::{Digest, Timestamp};
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::entry::{ENTRY_VERSION, Kind};
use crate::store::{Columns, unsigned};
use crate::tree;
use crate::verify::VerifyError;

/// An entry as it lies in the store.
#[derive(Debug)]
pub(crate) struct Item<'a> {
    pub(crate) index: u64,
    pub(crate) body: &'a [u8],
    /// What the store says beside the bytes, where it has columns.
    pub(crate) row: Option<Claims<'a>>,
}

/// The columns of an entry.
#[derive(Debug)]
pub(crate) struct Claims<'a> {
    pub(crate) leaf: &'a [u8],
    pub(crate) source: &'a str,
    pub(crate) sequence: u64,
    pub(crate) columns: Columns<'a>,
}

/// What an entry says of itself, as far as verification needs it.
#[derive(Deserialize)]
struct Facts<'a> {
    #[serde(borrow, default)]
    action: ActionFacts<'a>,
    agent_id: Option<Cow<'a, str>>,
    decision_id: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    detail: DetailFacts<'a>,
    #[serde(borrow)]
    kind: Cow<'a, str>,
    parent_hash: Digest,
    reason: Option<Cow<'a, str>>,
    #[serde(borrow)]
    result: Cow<'a, str>,
    sequence: u64,
    #[serde(borrow)]
    source: Cow<'a, str>,
    #[serde(borrow)]
    timestamp: Cow<'a, str>,
    version: u64,
}

#[derive(Deserialize, Default)]
struct ActionFacts<'a> {
    #[serde(borrow, default)]
    server: Word<'a>,
    #[serde(borrow, default)]
    tool: Word<'a>,
}

#[derive(Deserialize, Default)]
struct DetailFacts<'a> {
    #[serde(borrow, default)]
    gap: Word<'a>,
}

/// A member that is indexed when it is a string and ignored when it is anything else.
#[derive(Default)]
struct Word<'a>(Option<Cow<'a, str>>);

impl Word<'_> {
    fn text(&self) -> Option<&str> {
        self.0.as_deref()
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Word<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(WordVisitor)
    }
}

/// Takes a string, borrowed where it holds no escapes; passes over anything else.
struct WordVisitor;

impl<'de> Visitor<'de> for WordVisitor {
    type Value = Word<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Word(Some(Cow::Borrowed(text))))
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Word(Some(Cow::Owned(text.to_owned()))))
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
        Ok(Word(None))
    }

    fn visit_u64<E>(self, _: u64) -> Result<Self::Value, E> {
        Ok(Word(None))
    }

    fn visit_i64<E>(self, _: i64) -> Result<Self::Value, E> {
        Ok(Word(None))
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
        Ok(Word(None))
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(Word(None))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
        while items.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Word(None))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Self::Value, A::Error> {
        while members.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Word(None))
    }
}

/// What hashing and parsing one entry gives; these need nothing of its neighbours.
#[derive(Debug)]
pub(crate) struct Checked {
    pub(crate) leaf: Digest,
    pub(crate) source: String,
    pub(crate) sequence: u64,
    pub(crate) parent: Digest,
    pub(crate) gap: bool,
}

/// Checks an entry by itself.
pub(crate) fn check(item: &Item<'_>) -> Result<Checked, VerifyError> {
    let wrong = |why: String| {
        let claimed = item.row.as_ref().map_or(("?", 0), |row| (row.source, row.sequence));
        let (origin, sequence) = (claimed.0.to_owned(), claimed.1);
        VerifyError::Entry { index: item.index, origin, sequence, why }
    };
    let leaf = tree::leaf_hash(item.body);
    if item.row.as_ref().is_some_and(|row| row.leaf != leaf.as_bytes()) {
        return Err(wrong("its bytes do not have the recorded leaf hash".into()));
    }
    let facts: Facts<'_> =
        serde_json::from_slice(item.body).map_err(|e| wrong(format!("it is not an entry: {e}")))?;
    if facts.version != ENTRY_VERSION {
        return Err(wrong(format!(
            "it has version {}, which this program does not know",
            facts.version
        )));
    }
    if let Some(row) = &item.row
        && let Some(column) = differing(&facts, row)
    {
        return Err(wrong(format!("the column `{column}` says something else than the entry")));
    }
    Ok(Checked {
        leaf,
        sequence: facts.sequence,
        parent: facts.parent_hash,
        gap: facts.kind == Kind::Gap.as_str() || facts.detail.gap.text().is_some(),
        source: facts.source.into_owned(),
    })
}

/// The first column that does not repeat what the entry says.
fn differing(facts: &Facts<'_>, row: &Claims<'_>) -> Option<&'static str> {
    let columns = &row.columns;
    let time = Timestamp::from_micros(unsigned(columns.timestamp)).to_string();
    [
        ("source", facts.source == row.source),
        ("sequence", facts.sequence == row.sequence),
        ("timestamp", facts.timestamp == time),
        ("kind", facts.kind == columns.kind),
        ("result", facts.result == columns.result),
        ("agent_id", facts.agent_id.as_deref() == columns.agent_id),
        ("reason", facts.reason.as_deref() == columns.reason),
        ("server", facts.action.server.text() == columns.server),
        ("tool", facts.action.tool.text() == columns.tool),
        ("decision_id", facts.decision_id.as_deref() == columns.decision_id),
    ]
    .into_iter()
    .find_map(|(name, same)| (!same).then_some(name))
}
