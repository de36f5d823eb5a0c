//! The redo log: two small files beside a SQLite database in which a batch is durable before the database has it.
//!
//! A batch costs one write and one `fdatasync` here, and its callers hear of it then. A thread of its own
//! ([`crate::mover`]) moves what has come within [`crate::mover::WINDOW`] into the database in one transaction, which
//! costs hardly more for many batches than for one. When the current file is long, the writer goes on at the beginning
//! of the other one, once the database has durably all that stood there. A crash leaves batches here that the
//! database lacks; whoever opens the log next moves them first ([`left`]), be it a writer or a reader.
//!
//! What stands behind the last batch of a file is of no account: zeros, a batch that a crash cut, or older batches,
//! which do not continue the log where they stand.

mod frame;

use std::collections::VecDeque;
use std::fs::{File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use aegis_core::Digest;
use parking_lot::{Condvar, Mutex};
use tokio::sync::watch;

use crate::file::{beside, sync_folder};
use crate::redo::frame::Framed;
use crate::store::{Batch, StoreError};

/// What the files are called, behind the database's name.
pub(crate) const ENDINGS: [&str; 2] = [".redo0", ".redo1"];
/// From which length on the writer goes on in the other file.
const LONG: u64 = 4 << 20;
/// Files grow by this much at once: writing within a file costs the disk less than making it longer.
const GROWTH: u64 = 128 << 10;
/// Bytes that wait to be moved, beyond which the writer waits too.
const MAX_UNMOVED: usize = 32 << 20;
/// How long a reader waits for the database to have what was acknowledged. It is there within milliseconds
/// unless the disk is full.
const PATIENCE: Duration = Duration::from_secs(5);

/// What a file begins with, and the digest of the log's verifier key behind it.
const MAGIC: &[u8; 8] = b"AegRedo1";
const HEADER: usize = MAGIC.len() + 32;

fn header(verifier: &str) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    let log = Digest::of(verifier.as_bytes());
    let bytes = MAGIC.iter().chain(log.as_bytes());
    header.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
    header
}

/// One of the two files.
#[derive(Debug)]
struct Slot {
    path: PathBuf,
    file: Arc<File>,
    /// Where the next batch goes.
    end: u64,
    /// How long the file is.
    length: u64,
    /// Its batches that the database does not have yet.
    unmoved: usize,
    /// The database has batches of it that the disk may not have there yet.
    unsynced: bool,
}

/// A batch on its way into the database.
#[derive(Debug)]
pub(crate) struct Waiting {
    bytes: Vec<u8>,
    slot: usize,
    pub(crate) size: u64,
}

impl Waiting {
    /// What the database is to hold of it.
    pub(crate) fn batch(&self) -> Option<Batch<'_>> {
        Framed::own(&self.bytes)?.batch()
    }
}

#[derive(Debug)]
struct State {
    slots: [Slot; 2],
    current: usize,
    /// Written, and not synced yet.
    written: Vec<Waiting>,
    /// Durable, and not taken by the mover yet.
    durable: VecDeque<Waiting>,
    /// Of all batches that the database does not have.
    bytes: usize,
    /// Somebody waits for the database to have everything.
    urgent: bool,
    /// Why the last attempt to move failed.
    failure: Option<StoreError>,
    /// Why it is not known what the files have; nothing is written until they are cleared.
    unsure: Option<StoreError>,
    /// The mover is to end.
    ended: bool,
    /// The mover has ended.
    gone: bool,
}

/// How far the database is.
#[derive(Clone, Copy, Debug)]
struct Progress {
    size: u64,
    /// How often moving has failed.
    failures: u64,
}

/// The redo log of a database that this process writes.
#[derive(Debug)]
pub(crate) struct Redo {
    place: String,
    verifier: String,
    /// The journal's own source.
    own: String,
    state: Mutex<State>,
    changed: Condvar,
    /// The size of the log with the last durable batch.
    durable: AtomicU64,
    moved: watch::Sender<Progress>,
}

/// What the mover is to do next.
pub(crate) enum Turn {
    Move(Vec<Waiting>),
    End,
}

impl Redo {
    /// Begins with two empty files: what had been left in them is in the database ([`left`]), which has `size` entries.
    pub(crate) fn open(
        database: &Path,
        verifier: &str,
        own: &str,
        size: u64,
    ) -> Result<Self, StoreError> {
        let slot = |ending| -> Result<Slot, StoreError> {
            let path = beside(database, ending);
            let failed = |e: io::Error| StoreError::file(&path, &e);
            let mut options = OpenOptions::new();
            options.create(true).truncate(true).read(true).write(true).mode(0o600);
            let file = options.open(&path).map_err(failed)?;
            file.set_permissions(Permissions::from_mode(0o600)).map_err(failed)?;
            file.write_all_at(&header(verifier), 0).map_err(failed)?;
            file.sync_all().map_err(failed)?;
            let (end, length) = (HEADER as u64, HEADER as u64);
            Ok(Slot { path, file: Arc::new(file), end, length, unmoved: 0, unsynced: false })
        };
        let [first, second] = ENDINGS;
        let slots = [slot(first)?, slot(second)?];
        sync_folder(database).map_err(|e| StoreError::file(database, &e))?;
        Ok(Self {
            place: database.display().to_string(),
            verifier: verifier.to_owned(),
            own: own.to_owned(),
            state: Mutex::new(State {
                slots,
                current: 0,
                written: Vec::new(),
                durable: VecDeque::new(),
                bytes: 0,
                urgent: false,
                failure: None,
                unsure: None,
                ended: false,
                gone: false,
            }),
            changed: Condvar::new(),
            durable: AtomicU64::new(size),
            moved: watch::Sender::new(Progress { size, failures: 0 }),
        })
    }

    /// Writes a batch, or nothing. It is durable after [`Redo::sync`].
    pub(crate) fn write(&self, batch: &Batch<'_>) -> Result<(), StoreError> {
        let bytes = frame::encode(batch, &self.own).ok_or_else(|| StoreError::Unavailable {
            place: self.place.clone(),
            why: "a batch of entries is longer than 4 GiB".to_owned(),
        })?;
        let mut state = self.state.lock();
        loop {
            if let Some(unsure) = &state.unsure {
                return Err(unsure.clone());
            }
            // On a full disk more of what cannot be moved would take the room that moving it needs.
            let hopeless = matches!(
                state.failure,
                Some(StoreError::Fenced { .. } | StoreError::DiskFull { .. })
            );
            if state.bytes <= MAX_UNMOVED && !hopeless {
                break;
            }
            if let Some(failure) = self.stuck(&state) {
                return Err(failure);
            }
            self.changed.wait(&mut state);
        }
        let other = 1 - state.current;
        if state.slot().end > LONG && state.slots.get(other).is_some_and(Slot::is_free) {
            // What comes next must not be on the disk without what stands here.
            if let Err(error) = state.slot().sync() {
                state.unsure = Some(error.clone());
                self.changed.notify_all();
                return Err(error);
            }
            state.current = other;
            state.slot().end = HEADER as u64;
        }
        state.slot().append(&bytes)?;
        state.bytes += bytes.len();
        let slot = state.current;
        state.written.push(Waiting { bytes, slot, size: batch.head.size });
        Ok(())
    }

    /// Makes durable what was written before.
    pub(crate) fn sync(&self) -> Result<(), StoreError> {
        let mut state = self.state.lock();
        let count = state.written.len();
        let files: Vec<_> = state
            .slots
            .iter()
            .enumerate()
            .filter(|(index, _)| state.written.iter().any(|waiting| waiting.slot == *index))
            .map(|(_, slot)| (slot.path.clone(), Arc::clone(&slot.file)))
            .collect();
        drop(state);
        let synced = files.into_iter().try_for_each(|(path, file)| {
            file.sync_data().map_err(|error| StoreError::file(&path, &error))
        });
        state = self.state.lock();
        if let Err(error) = synced {
            state.unsure = Some(error.clone());
            self.changed.notify_all();
            return Err(error);
        }
        let durable: Vec<_> = state.written.drain(..count).collect();
        if let Some(last) = durable.last() {
            self.durable.store(last.size, Ordering::Release);
        }
        state.durable.extend(durable);
        self.changed.notify_all();
        Ok(())
    }

    fn has(&self, size: u64) -> bool {
        self.moved.borrow().size >= size
    }

    /// Why nothing will be moved for now.
    fn stuck(&self, state: &State) -> Option<StoreError> {
        let gone = || StoreError::Unavailable {
            place: self.place.clone(),
            why: "the thread that fills its tables has ended".to_owned(),
        };
        state.failure.clone().or_else(|| state.gone.then(gone))
    }

    /// Has the mover try at once, and waits until the database has all that is durable.
    pub(crate) fn drain(&self) -> Result<(), StoreError> {
        let mut state = self.state.lock();
        state.failure = None;
        while !self.has(self.durable.load(Ordering::Acquire)) {
            if let Some(failure) = self.stuck(&state) {
                return Err(failure);
            }
            state.urgent = true;
            self.changed.notify_all();
            self.changed.wait(&mut state);
        }
        Ok(())
    }

    /// Waits until the database has the first `size` entries, or all that are durable now if those are fewer.
    pub(crate) async fn caught_up(&self, size: u64) -> Result<(), StoreError> {
        let size = size.min(self.durable.load(Ordering::Acquire));
        if self.has(size) {
            return Ok(());
        }
        let mut moved = self.moved.subscribe();
        let failures = moved.borrow().failures;
        self.state.lock().urgent = true;
        self.changed.notify_all();
        let there = moved.wait_for(|now| now.size >= size || now.failures > failures);
        let in_time = tokio::time::timeout(PATIENCE, there).await.is_ok();
        if self.has(size) {
            return Ok(());
        }
        let late = || StoreError::Unavailable {
            place: self.place.clone(),
            why: format!("its tables lag behind what is durable (in time: {in_time})"),
        };
        Err(self.stuck(&self.state.lock()).unwrap_or_else(late))
    }

    /// Whether the files may have something else than they should.
    pub(crate) fn is_unsure(&self) -> bool {
        self.state.lock().unsure.is_some()
    }

    /// Forgets everything: the database has durably all that counts. What was written and not synced is gone for good.
    pub(crate) fn clear(&self) -> Result<(), StoreError> {
        let mut state = self.state.lock();
        for index in 0..state.slots.len() {
            if let Some(Err(error)) =
                state.slots.get_mut(index).map(|slot| slot.clear(&self.verifier))
            {
                state.unsure = Some(error.clone());
                return Err(error);
            }
        }
        let dropped: usize = state.written.drain(..).map(|waiting| waiting.bytes.len()).sum();
        state.bytes -= dropped;
        state.unsure = None;
        Ok(())
    }

    /// Removes the files: the database has durably all that counts.
    pub(crate) fn remove(&self) {
        for slot in &self.state.lock().slots {
            if let Err(error) = std::fs::remove_file(&slot.path) {
                tracing::debug!(%error, path = %slot.path.display(), "left an empty redo log in place");
            }
        }
    }

    /// Ends the mover; what it has not moved stays in the files.
    pub(crate) fn end(&self) {
        self.state.lock().ended = true;
        self.changed.notify_all();
    }

    /// For the mover: it has ended, in order or not.
    pub(crate) fn is_over(&self) {
        self.state.lock().gone = true;
        self.moved.send_modify(|progress| progress.failures += 1);
        self.changed.notify_all();
    }

    /// For the mover: waits for batches, and then until `due` for more, unless somebody waits.
    pub(crate) fn turn(&self, due: Instant) -> Turn {
        let mut state = self.state.lock();
        loop {
            let hurry = state.urgent || state.ended || Instant::now() >= due;
            if !state.durable.is_empty() && hurry {
                return Turn::Move(state.durable.drain(..).collect());
            }
            if state.ended {
                return Turn::End;
            }
            if state.durable.is_empty() {
                state.urgent = false;
                self.changed.wait(&mut state);
            } else {
                self.changed.wait_until(&mut state, due);
            }
        }
    }

    /// For the mover: the database has these batches. Whether a file waits for the database to be synced.
    pub(crate) fn moved(&self, batches: &[Waiting]) -> bool {
        let mut state = self.state.lock();
        for waiting in batches {
            state.bytes -= waiting.bytes.len();
            if let Some(slot) = state.slots.get_mut(waiting.slot) {
                slot.unmoved -= 1;
                slot.unsynced = true;
            }
        }
        state.failure = None;
        if let Some(last) = batches.last() {
            self.moved.send_modify(|progress| progress.size = last.size);
        }
        self.changed.notify_all();
        let other = 1 - state.current;
        state.slots.get(other).is_some_and(|slot| slot.unmoved == 0 && slot.unsynced)
    }

    /// For the mover: the disk has all that the database had when it moved something last.
    pub(crate) fn synced(&self) {
        for slot in &mut self.state.lock().slots {
            slot.unsynced &= slot.unmoved > 0;
        }
    }

    /// For the mover: it did not work. Waits for `pause`, or until somebody waits for the next attempt, or for the
    /// end; whether it is the end.
    pub(crate) fn failed(&self, error: StoreError, pause: Duration) -> bool {
        let mut state = self.state.lock();
        state.failure = Some(error);
        state.urgent = false;
        self.moved.send_modify(|progress| progress.failures += 1);
        self.changed.notify_all();
        let until = Instant::now() + pause;
        while !state.ended && !state.urgent {
            if self.changed.wait_until(&mut state, until).timed_out() {
                break;
            }
        }
        state.ended
    }
}

impl State {
    #[expect(clippy::indexing_slicing, reason = "`current` is 0 or 1, of two")]
    fn slot(&mut self) -> &mut Slot {
        &mut self.slots[self.current]
    }
}

impl Slot {
    fn is_free(&self) -> bool {
        self.unmoved == 0 && !self.unsynced
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        let failed = |e: io::Error| StoreError::file(&self.path, &e);
        let end = self.end + bytes.len() as u64;
        if end > self.length {
            // Zeros at the end are no frame. Where there is no room for them there may be for the batch.
            let length = end.next_multiple_of(GROWTH);
            let zeros = vec![0; usize::try_from(length - end).unwrap_or(0)];
            if self.file.write_all_at(&zeros, end).is_ok() {
                self.length = length;
            }
        }
        self.file.write_all_at(bytes, self.end).map_err(failed)?;
        self.end = end;
        self.length = self.length.max(end);
        self.unmoved += 1;
        Ok(())
    }

    fn sync(&self) -> Result<(), StoreError> {
        self.file.sync_data().map_err(|e| StoreError::file(&self.path, &e))
    }

    fn clear(&mut self, verifier: &str) -> Result<(), StoreError> {
        let failed = |e: io::Error| StoreError::file(&self.path, &e);
        self.file.set_len(0).map_err(failed)?;
        self.file.write_all_at(&header(verifier), 0).map_err(failed)?;
        self.file.sync_all().map_err(failed)?;
        (self.end, self.length) = (HEADER as u64, HEADER as u64);
        (self.unmoved, self.unsynced) = (0, false);
        Ok(())
    }
}

/// What a process that ended without closing the log has left in its redo log.
#[derive(Debug, Default)]
pub(crate) struct Left {
    files: Vec<Vec<u8>>,
}

/// Reads what was left. Empty where there is no redo log.
pub(crate) fn left(database: &Path) -> Result<Left, StoreError> {
    let mut files = Vec::new();
    for ending in ENDINGS {
        let path = beside(database, ending);
        match std::fs::read(&path) {
            Ok(bytes) => files.push(bytes),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(StoreError::file(&path, &e)),
        }
    }
    Ok(Left { files })
}

impl Left {
    /// The batches that stand one after another at the beginning of each file, in the order of the log.
    fn frames(&self) -> Vec<Framed<'_>> {
        let mut frames = Vec::new();
        for bytes in &self.files {
            let mut rest = bytes.get(HEADER..).unwrap_or_default();
            let mut next = None;
            while let Some((frame, behind)) = Framed::read(rest) {
                if next.is_some_and(|next| next != frame.from) {
                    break;
                }
                next = Some(frame.size);
                frames.push(frame);
                rest = behind;
            }
        }
        frames.sort_by_key(|frame| frame.from);
        frames
    }

    /// How long the log is with what was left.
    pub(crate) fn size(&self) -> u64 {
        self.frames().last().map_or(0, |frame| frame.size)
    }

    /// The batches that a database of `size` entries lacks.
    ///
    /// # Errors
    /// When they are of another log, do not continue this one, or cannot be read.
    pub(crate) fn beyond(
        &self,
        database: &Path,
        verifier: &str,
        size: u64,
    ) -> Result<Vec<Batch<'_>>, StoreError> {
        let place = || database.display().to_string();
        let mut next = size;
        let mut batches = Vec::new();
        for frame in self.frames().into_iter().filter(|frame| frame.size > size) {
            if frame.from != next {
                let why = format!(
                    "the database ends before entry {next} and its redo log goes on with entry {}",
                    frame.from
                );
                return Err(StoreError::Rollback { place: place(), why });
            }
            next = frame.size;
            let unreadable = || StoreError::Corrupt {
                place: place(),
                why: format!("its redo log has no readable batch at entry {}", frame.from),
            };
            let batch = frame.batch().ok_or_else(unreadable)?;
            if batch.head.size != batch.from + batch.rows.len() as u64 {
                return Err(unreadable());
            }
            batches.push(batch);
        }
        let ours = header(verifier);
        let foreign = |bytes: &Vec<u8>| !bytes.is_empty() && !bytes.starts_with(&ours);
        if !batches.is_empty() && self.files.iter().any(foreign) {
            let why = "the redo log beside it is another log's".to_owned();
            return Err(StoreError::Corrupt { place: place(), why });
        }
        Ok(batches)
    }
}
