//! The writer's part in importing: which entries continue their chains, in one group commit.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

use super::Writer;
use crate::import::{Foreign, Import, ImportError};
use crate::store::{Batch, Row, SourceHead, StoreError};
use crate::tile;

/// The most foreign entries in one transaction.
const MAX_IMPORTED: usize = 4_096;
/// How many sources' chains are remembered.
const MAX_CHAINS: usize = 65_536;

/// Where the chains of other sources stand, as the store has them.
pub(super) type Chains = HashMap<Arc<str>, SourceHead>;

fn failed(error: StoreError) -> ImportError {
    ImportError::Store(Arc::new(error))
}

impl Writer {
    /// Commits what other journals have sent and answers each.
    pub(super) async fn import(&mut self, imports: Vec<Import>) {
        let mut waiting = imports;
        while !waiting.is_empty() {
            let (mut now, mut later) = (Vec::new(), Vec::new());
            let (mut sources, mut entries) = (HashSet::new(), 0);
            for import in waiting {
                // One of each source: a second one is judged by what the first has left in the store.
                let first = entries < MAX_IMPORTED && sources.insert(Arc::clone(&import.source));
                entries += import.entries.len();
                if first { now.push(import) } else { later.push(import) }
            }
            self.import_at_once(now).await;
            waiting = later;
        }
    }

    async fn import_at_once(&mut self, imports: Vec<Import>) {
        let mut answers = Vec::with_capacity(imports.len());
        let mut heads = Vec::new();
        let mut accepted: Vec<(&Arc<str>, &[Foreign])> = Vec::new();
        for import in &imports {
            let answer = self.fitting(import).await.map(|(entries, head)| {
                let sequence = head.sequence;
                if !entries.is_empty() {
                    accepted.push((&import.source, entries));
                    heads.push((Arc::clone(&import.source), head));
                }
                sequence
            });
            answers.push(answer);
        }
        if let Err(error) = self.append_foreign(&accepted).await {
            tracing::error!(%error, "foreign audit entries were not recorded");
            let error = Arc::new(error);
            // Also those who sent nothing new: what they were told may rest on a stale chain.
            answers.fill_with(|| Err(ImportError::Store(Arc::clone(&error))));
        } else {
            if self.chains.len() > MAX_CHAINS {
                self.chains.clear();
            }
            self.chains.extend(heads);
        }
        drop(accepted);
        for (import, answer) in imports.into_iter().zip(answers) {
            let _ = import.reply.send(answer);
        }
    }

    /// The entries that are new, and where their chain stands with them.
    async fn fitting<'i>(
        &mut self,
        import: &'i Import,
    ) -> Result<(&'i [Foreign], SourceHead), ImportError> {
        let source_name = || import.source.to_string();
        if *import.source == *self.source {
            let why = "it is this journal's own".to_owned();
            return Err(ImportError::Malformed { source_name: source_name(), why });
        }
        self.refresh().await.map_err(failed)?;
        let mut head = match self.chains.get(&import.source) {
            Some(head) => head.clone(),
            None => self.reader.source(&import.source).await.map_err(failed)?,
        };
        let known = import.entries.iter().take_while(|e| e.entry.sequence <= head.sequence).count();
        let (known, new) = import.entries.split_at(known);
        self.same(&import.source, known).await?;
        for foreign in new {
            let sequence = foreign.entry.sequence;
            if sequence != head.sequence + 1 {
                let (held, offered) = (head.sequence, sequence);
                return Err(ImportError::Gap { source_name: source_name(), held, offered });
            }
            if foreign.entry.parent_hash != head.leaf {
                return Err(ImportError::Fork { source_name: source_name(), sequence });
            }
            let closed = foreign.entry.kind == crate::entry::Kind::JournalClosed;
            head = SourceHead { sequence, leaf: foreign.leaf, closed };
        }
        Ok((new, head))
    }

    /// Whether entries that are held already are the same.
    async fn same(&self, source: &Arc<str>, known: &[Foreign]) -> Result<(), ImportError> {
        let (Some(first), Some(last)) = (known.first(), known.last()) else { return Ok(()) };
        let (from, to) = (first.entry.sequence, last.entry.sequence);
        let held = self.reader.chain(source, from, to).await.map_err(failed)?;
        let held: HashMap<u64, Vec<u8>> = held.into_iter().collect();
        for foreign in known {
            let sequence = foreign.entry.sequence;
            if held.get(&sequence).map(Vec::as_slice) != Some(foreign.leaf.as_bytes().as_slice()) {
                return Err(ImportError::Fork { source_name: source.to_string(), sequence });
            }
        }
        Ok(())
    }

    async fn append_foreign(
        &mut self,
        accepted: &[(&Arc<str>, &[Foreign])],
    ) -> Result<(), StoreError> {
        if accepted.is_empty() {
            return Ok(());
        }
        // What is announced below stands behind everything before it.
        self.settle().map_err(Arc::unwrap_or_clone)?;
        let mut tree = self.tree.clone();
        let from = tree.frontier.size();
        let (mut rows, mut tiles, mut salts) = (Vec::new(), Vec::new(), Vec::new());
        for (source, entries) in accepted {
            for foreign in *entries {
                let (index, leaf) = (tree.frontier.size(), foreign.leaf);
                tree.frontier.push(leaf);
                tree.edge.push(leaf, &mut |tile, hashes| tiles.push((tile, tile::join(hashes))));
                salts.extend(foreign.salt.map(|salt| (index, salt)));
                rows.push(Row {
                    index,
                    source: Some(&***source),
                    sequence: foreign.entry.sequence,
                    leaf,
                    body: Cow::Borrowed(&foreign.body),
                    columns: (&foreign.entry).into(),
                });
            }
        }
        let head = tree.head();
        let count = rows.len() as u64;
        let write = Batch { from, head, rows, tiles, salts };
        let started = Instant::now();
        if let Err(error) = self.store.commit(&write).await.and_then(|()| self.store.sync()) {
            self.failed(&error);
            return Err(error);
        }
        self.tree = tree;
        self.head.send_replace(head);
        self.counters.batch(count, started.elapsed());
        Ok(())
    }
}
