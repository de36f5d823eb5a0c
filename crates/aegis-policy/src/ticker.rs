//! The clock behind deadlines: one thread that advances the engine's epoch each millisecond, and
//! sleeps while nothing is evaluated, so that an idle process stays idle.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, Thread},
    time::Duration,
};

use wasmtime::Engine;

const TICK: Duration = Duration::from_millis(1);
/// After this many ticks without an evaluation the thread parks.
const IDLE_TICKS: u32 = 200;

#[derive(Debug, Default)]
struct Shared {
    used: AtomicBool,
    parked: AtomicBool,
    stopped: AtomicBool,
}

/// The running clock; dropping it ends the thread.
#[derive(Debug)]
pub(crate) struct Ticker {
    shared: Arc<Shared>,
    thread: Thread,
}

impl Ticker {
    /// Starts the thread.
    pub(crate) fn start(engine: Engine) -> std::io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        let handle = thread::Builder::new().name("policy-clock".into()).spawn(move || {
            let mut idle = 0;
            while !theirs.stopped.load(Ordering::SeqCst) {
                thread::sleep(TICK);
                engine.increment_epoch();
                idle = if theirs.used.swap(false, Ordering::SeqCst) { 0 } else { idle + 1 };
                if idle < IDLE_TICKS {
                    continue;
                }
                theirs.parked.store(true, Ordering::SeqCst);
                // An evaluation that came between the two saw no parked thread to wake.
                if !theirs.used.load(Ordering::SeqCst) && !theirs.stopped.load(Ordering::SeqCst) {
                    thread::park();
                }
                theirs.parked.store(false, Ordering::SeqCst);
                idle = 0;
            }
        })?;
        Ok(Self { shared, thread: handle.thread().clone() })
    }

    /// Called before each evaluation: makes sure that the clock runs while it does.
    pub(crate) fn touch(&self) {
        // The store is skipped where it would change nothing, so that threads do not share a line.
        if !self.shared.used.load(Ordering::SeqCst) {
            self.shared.used.store(true, Ordering::SeqCst);
        }
        if self.shared.parked.load(Ordering::SeqCst) {
            self.thread.unpark();
        }
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::SeqCst);
        self.thread.unpark();
    }
}
