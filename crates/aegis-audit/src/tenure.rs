//! Whose turn it is to write a log that several processes could write.
//!
//! Opening a log for writing fences whoever wrote before; two processes that would both open it would
//! take it from each other without end. So a replica first takes the tenure, and stands by while
//! another has it. In Postgres that is an advisory lock of a session: it ends with its holder's
//! connection, which the server notices within seconds also when the holder's machine is gone. It
//! needs a session of its own: a pooler in between must pool sessions, not transactions.
//!
//! The tenure is a courtesy between replicas. What keeps a log whole is the fence.
//! Of SQLite there is nothing to take: its file's lock decides, and opening tells.

use std::time::Duration;

use sqlx::postgres::PgConnection;
use sqlx::{Connection as _, Executor as _};

use crate::postgres::connect;
use crate::store::{Location, StoreError};

/// Any number that nobody else uses for a lock; the second half is of the log's schema.
const LOCK: i32 = 0x6165_6769;
/// How long the server may take for an answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often the holder makes sure that it still is.
const EVERY: Duration = Duration::from_secs(1);

/// The turn to write a log. It ends when this is dropped.
#[derive(Debug)]
pub struct Tenure {
    place: Location,
    /// Whose session holds the lock; none for SQLite, and while the server is away.
    session: Option<PgConnection>,
}

impl Tenure {
    /// Takes the turn; `None` while another process has it.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn take(place: &Location) -> Result<Option<Self>, StoreError> {
        let Location::Postgres(url) = place else {
            return Ok(Some(Self { place: place.clone(), session: None }));
        };
        let session = in_time(place, take(url, place)).await?;
        Ok(session.map(|session| Self { place: place.clone(), session: Some(session) }))
    }

    /// Resolves once another process has the turn. While the database is away nobody has it, and this
    /// one takes it again if it is the first to come back.
    pub async fn lost(&mut self) {
        let Location::Postgres(url) = self.place.clone() else {
            return std::future::pending().await;
        };
        loop {
            tokio::time::sleep(EVERY).await;
            if let Some(session) = &mut self.session {
                let failed = |error: sqlx::Error| StoreError::database(&self.place, &error);
                let answer = async { session.ping().await.map_err(failed) };
                let Err(error) = in_time(&self.place, answer).await else { continue };
                tracing::warn!(%error, "the turn to write is in doubt");
                self.session = None;
            }
            match in_time(&self.place, take(&url, &self.place)).await {
                Ok(Some(session)) => self.session = Some(session),
                Ok(None) => return,
                Err(error) => tracing::warn!(%error, "the database is away"),
            }
        }
    }

    /// Gives the turn back, so that the next can have it at once.
    pub async fn give_back(self) {
        if let Some(session) = self.session {
            let _ = session.close().await;
        }
    }
}

async fn in_time<T>(
    place: &Location,
    answer: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    tokio::time::timeout(PATIENCE, answer).await.unwrap_or_else(|_| {
        let why = format!("it has not answered within {} seconds", PATIENCE.as_secs());
        Err(StoreError::Unavailable { place: place.to_string(), why })
    })
}

async fn take(url: &str, place: &Location) -> Result<Option<PgConnection>, StoreError> {
    let failed = |error: sqlx::Error| StoreError::database(place, &error);
    let mut session = connect(url, place).await?;
    // A holder whose machine has vanished is noticed within 11 seconds, not in two hours.
    let notice = "SET tcp_keepalives_idle = 5; SET tcp_keepalives_interval = 2; \
                  SET tcp_keepalives_count = 3";
    session.execute(notice).await.map_err(failed)?;
    // Servers before 14 do not know it, and end no idle session.
    let _ = session.execute("SET idle_session_timeout = 0").await;
    let sql = "SELECT pg_try_advisory_lock($1, hashtext(current_schema()))";
    let taken: bool =
        sqlx::query_scalar(sql).bind(LOCK).fetch_one(&mut session).await.map_err(failed)?;
    if taken {
        return Ok(Some(session));
    }
    let _ = session.close().await;
    Ok(None)
}
