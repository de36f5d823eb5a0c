//! A batch as the redo log has it: its length, a checksum, and all that the database is to hold of it.
//!
//! The checksum tells a frame that was written whole from one that a crash cut. It is no protection against
//! whoever writes the file: that is what the tree's signed heads are for.

use std::borrow::Cow;

use aegis_core::Digest;

use crate::checkpoint::Head;
use crate::salt::Salt;
use crate::store::{Batch, Columns, Row};
use crate::tile::Tile;

/// The payload's length, 4 bytes, and its checksum, 8 bytes.
const HEADER: usize = 12;
/// In place of a length: there is no text.
const ABSENT: u32 = u32::MAX;

/// A frame that was written whole.
#[derive(Clone, Copy, Debug)]
pub(super) struct Framed<'a> {
    payload: &'a [u8],
    /// The size of the log before it and with it.
    pub(super) from: u64,
    pub(super) size: u64,
}

fn checksum(payload: &[u8]) -> [u8; 8] {
    let [a, b, c, d, e, f, g, h, ..] = *Digest::of(payload).as_bytes();
    [a, b, c, d, e, f, g, h]
}

/// The frame of a batch whose rows without a source are of `own`; `None` if it is longer than a frame can be.
pub(super) fn encode(batch: &Batch<'_>, own: &str) -> Option<Vec<u8>> {
    let bodies: usize = batch.rows.iter().map(|row| row.body.len() + 512).sum();
    let mut out = Writer(Vec::with_capacity(HEADER + 128 + bodies));
    out.0.extend_from_slice(&[0; HEADER]);
    out.number(batch.from);
    out.number(batch.head.size);
    out.digest(&batch.head.root);
    for count in [batch.rows.len(), batch.tiles.len(), batch.salts.len()] {
        out.number(count as u64);
    }
    for row in &batch.rows {
        out.number(row.index);
        out.text(Some(row.source.unwrap_or(own)));
        out.number(row.sequence);
        out.digest(&row.leaf);
        let columns = &row.columns;
        out.0.extend_from_slice(&columns.timestamp.to_le_bytes());
        for text in [
            Some(columns.kind),
            Some(columns.result),
            columns.agent_id,
            columns.reason,
            columns.server,
            columns.tool,
            columns.decision_id,
        ] {
            out.text(text);
        }
        out.bytes(&row.body);
    }
    for (tile, hashes) in &batch.tiles {
        for number in [u64::from(tile.level), tile.index, tile.width] {
            out.number(number);
        }
        out.bytes(hashes);
    }
    for (index, salt) in &batch.salts {
        out.number(*index);
        out.0.extend_from_slice(salt.as_bytes());
    }
    out.finish()
}

struct Writer(Vec<u8>);

impl Writer {
    fn number(&mut self, number: u64) {
        self.0.extend_from_slice(&number.to_le_bytes());
    }

    fn digest(&mut self, digest: &Digest) {
        self.0.extend_from_slice(digest.as_bytes());
    }

    /// What is too long for its length makes the whole frame too long.
    fn bytes(&mut self, bytes: &[u8]) {
        let length = u32::try_from(bytes.len()).unwrap_or(ABSENT);
        self.0.extend_from_slice(&length.to_le_bytes());
        self.0.extend_from_slice(bytes);
    }

    fn text(&mut self, text: Option<&str>) {
        match text {
            Some(text) => self.bytes(text.as_bytes()),
            None => self.0.extend_from_slice(&ABSENT.to_le_bytes()),
        }
    }

    fn finish(self) -> Option<Vec<u8>> {
        let mut frame = self.0;
        let (header, payload) = frame.split_at_mut_checked(HEADER)?;
        let length = u32::try_from(payload.len()).ok()?.to_le_bytes();
        for (to, from) in header.iter_mut().zip(length.iter().chain(&checksum(payload))) {
            *to = *from;
        }
        Some(frame)
    }
}

impl<'a> Framed<'a> {
    /// The frame at the beginning of `bytes` and what follows it; `None` when there is no whole one.
    pub(super) fn read(bytes: &'a [u8]) -> Option<(Self, &'a [u8])> {
        let (header, rest) = bytes.split_at_checked(HEADER)?;
        let (length, sum) = header.split_first_chunk::<4>()?;
        let (payload, rest) =
            rest.split_at_checked(usize::try_from(u32::from_le_bytes(*length)).ok()?)?;
        if payload.is_empty() || sum != checksum(payload) {
            return None;
        }
        Some((Self::of(payload)?, rest))
    }

    /// A frame that [`encode`] made and that has not left this process since.
    pub(super) fn own(frame: &'a [u8]) -> Option<Self> {
        Self::of(frame.get(HEADER..)?)
    }

    fn of(payload: &'a [u8]) -> Option<Self> {
        let mut input = Input(payload);
        Some(Self { payload, from: input.number()?, size: input.number()? })
    }

    /// What the database is to hold of it.
    pub(super) fn batch(&self) -> Option<Batch<'a>> {
        let mut input = Input(self.payload);
        let from = input.number()?;
        let head = Head { size: input.number()?, root: input.digest()? };
        let counts = [input.number()?, input.number()?, input.number()?];
        let [rows, tiles, salts] = counts.map(|count| 0..count);
        Some(Batch {
            from,
            head,
            rows: rows.map(|_| input.row()).collect::<Option<_>>()?,
            tiles: tiles.map(|_| input.tile()).collect::<Option<_>>()?,
            salts: salts.map(|_| input.salt()).collect::<Option<_>>()?,
        })
    }
}

struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*taken)
    }

    fn number(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn digest(&mut self) -> Option<Digest> {
        self.array().map(Digest::from_bytes)
    }

    fn of_length(&mut self, length: u32) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(usize::try_from(length).ok()?)?;
        self.0 = rest;
        Some(taken)
    }

    fn bytes(&mut self) -> Option<&'a [u8]> {
        let length = u32::from_le_bytes(self.array()?);
        self.of_length(length)
    }

    fn text(&mut self) -> Option<Option<&'a str>> {
        match u32::from_le_bytes(self.array()?) {
            ABSENT => Some(None),
            length => std::str::from_utf8(self.of_length(length)?).ok().map(Some),
        }
    }

    fn row(&mut self) -> Option<Row<'a>> {
        Some(Row {
            index: self.number()?,
            source: self.text()?,
            sequence: self.number()?,
            leaf: self.digest()?,
            columns: Columns {
                timestamp: i64::from_le_bytes(self.array()?),
                kind: self.text()??,
                result: self.text()??,
                agent_id: self.text()?,
                reason: self.text()?,
                server: self.text()?,
                tool: self.text()?,
                decision_id: self.text()?,
            },
            body: Cow::Borrowed(self.bytes()?),
        })
    }

    fn tile(&mut self) -> Option<(Tile, Vec<u8>)> {
        let level = u32::try_from(self.number()?).ok()?;
        let tile = Tile { level, index: self.number()?, width: self.number()? };
        Some((tile, self.bytes()?.to_vec()))
    }

    fn salt(&mut self) -> Option<(u64, Salt)> {
        Some((self.number()?, Salt::from_bytes(self.array()?)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn batch<'a>(body: &'a [u8], tool: Option<&'static str>) -> Batch<'a> {
        let digest = Digest::of(b"leaf");
        let row = |index, source| Row {
            index,
            source,
            sequence: index + 1,
            leaf: digest,
            body: Cow::Borrowed(body),
            columns: Columns {
                timestamp: -5,
                kind: "decision",
                result: "allow",
                agent_id: None,
                reason: Some(""),
                server: Some("files"),
                tool,
                decision_id: None,
            },
        };
        Batch {
            from: 7,
            head: Head { size: 9, root: digest },
            rows: vec![row(7, None), row(8, Some("far"))],
            tiles: vec![(Tile { level: 1, index: 3, width: 256 }, vec![1, 2, 3])],
            salts: vec![(8, Salt::from_bytes([4; 32]))],
        }
    }

    proptest! {
        #[test]
        fn what_was_written_is_read(body in prop::collection::vec(any::<u8>(), 0..300), named: bool) {
            let wanted = batch(&body, named.then_some("read_file"));
            let mut bytes = encode(&wanted, "own").unwrap();
            bytes.extend_from_slice(b"rest");
            let (frame, rest) = Framed::read(&bytes).unwrap();
            prop_assert_eq!((frame.from, frame.size, rest), (7, 9, b"rest".as_slice()));
            let mut wanted = wanted;
            wanted.rows[0].source = Some("own");
            prop_assert_eq!(format!("{:?}", frame.batch().unwrap()), format!("{wanted:?}"));
        }

        #[test]
        fn a_frame_cut_or_changed_is_none(cut in 0_usize..400, flip in 0_usize..400) {
            let bytes = encode(&batch(b"body", None), "own").unwrap();
            prop_assert!(Framed::read(&bytes[..cut.min(bytes.len() - 1)]).is_none());
            let mut bytes = bytes;
            let at = flip % bytes.len();
            bytes[at] ^= 1;
            prop_assert!(Framed::read(&bytes).is_none());
        }

        #[test]
        fn any_bytes_are_refused_in_order(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Some((frame, _)) = Framed::read(&bytes) {
                let _ = frame.batch();
            }
            let _ = Framed { payload: &bytes, from: 0, size: 0 }.batch();
        }
    }
}
