//! The ledger over HTTP: checkpoint, tiles and entry bundles as c2sp.org/tlog-tiles names them, proofs
//! as `.tlog-proof`, queries as JSON, health and metrics.
//!
//! It only reads. Whoever appends holds a [`aegis_audit::Journal`]; this router can stand in the same
//! process (`aegis up`) or in one of its own beside a database. It decides nothing about who may
//! read: it is mounted behind what does, and the binary listens on loopback unless told otherwise.

use std::sync::Arc;

use aegis_audit::query::MAX_PAGE;
use aegis_audit::tile::{self, Resource, TILE_WIDTH};
use aegis_audit::{Filter, Journal, Reader, Statistics, StoreError, Stored, checkpoint};
use axum::extract::{Path, Query, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

pub mod fetch;
mod front;
mod metrics;
pub mod seed;
pub mod serve;
pub mod ship;
pub mod trust;
pub mod verify;

/// What the router serves from.
#[derive(Clone, Debug)]
pub struct Ledger {
    reader: Reader,
    journal: Option<Journal>,
    metrics: Arc<metrics::Metrics>,
}

impl Ledger {
    /// A ledger that reads a log some other process writes.
    ///
    /// # Errors
    /// When the metrics cannot be set up.
    pub fn of_reader(reader: Reader) -> anyhow::Result<Self> {
        Ok(Self { reader, journal: None, metrics: Arc::new(metrics::Metrics::new()?) })
    }

    /// A ledger beside the journal of its own process, whose counters it shows too.
    ///
    /// # Errors
    /// When the metrics cannot be set up.
    pub fn of_journal(journal: Journal) -> anyhow::Result<Self> {
        let metrics = Arc::new(metrics::Metrics::new()?);
        let commits = metrics.commits();
        journal.time_commits(move |took| commits.observe(took.as_secs_f64()));
        Ok(Self { reader: journal.reader().clone(), journal: Some(journal), metrics })
    }

    /// Where its metrics are registered, for what else the process counts.
    #[must_use]
    pub fn registry(&self) -> &prometheus::Registry {
        self.metrics.registry()
    }

    /// Whether the log can be read now.
    pub(crate) async fn answers(&self) -> bool {
        self.reader.head().await.is_ok()
    }

    fn statistics(&self) -> Option<Statistics> {
        self.journal.as_ref().map(Journal::statistics)
    }
}

/// Every route of the ledger.
pub fn router(ledger: Ledger) -> Router {
    Router::new()
        .route("/checkpoint", get(get_checkpoint))
        .route("/tile/{*path}", get(get_tile))
        .route("/v1/entries", get(get_entries))
        .route("/v1/entries/{index}", get(get_entry))
        .route("/v1/proof/{index}", get(get_proof))
        .route("/v1/consistency/{old}/{new}", get(get_consistency))
        .route("/v1/key", get(get_key))
        .route("/healthz", get(get_health))
        .route("/metrics", get(get_metrics))
        .with_state(ledger)
}

/// Why a request got no answer.
enum Failure {
    NotFound(String),
    BadRequest(String),
    Store(StoreError),
    Internal(String),
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let (status, text) = match self {
            Self::NotFound(text) => (StatusCode::NOT_FOUND, text),
            Self::BadRequest(text) => (StatusCode::BAD_REQUEST, text),
            Self::Store(error) => {
                // The message names the log's place, which is the operator's business, not a reader's.
                tracing::error!(%error, "the ledger cannot read its log");
                (StatusCode::SERVICE_UNAVAILABLE, "the log cannot be read now".to_owned())
            }
            Self::Internal(text) => (StatusCode::INTERNAL_SERVER_ERROR, text),
        };
        (status, Json(json!({ "error": text }))).into_response()
    }
}

type Answer = Result<Response, Failure>;

/// Bytes with their type and how long they may be kept.
fn bytes(kind: &'static str, cache: &'static str, body: impl Into<axum::body::Body>) -> Response {
    let mut response = Response::new(body.into());
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static(cache));
    response
}

const TEXT: &str = "text/plain; charset=utf-8";
const OCTETS: &str = "application/octet-stream";
const FRESH: &str = "no-cache";
const IMMUTABLE: &str = "private, max-age=31536000, immutable";

async fn get_checkpoint(State(ledger): State<Ledger>) -> Answer {
    let note = ledger.reader.checkpoint().await?;
    let note = note.ok_or_else(|| Failure::NotFound("there is no checkpoint yet".into()))?;
    Ok(bytes(TEXT, FRESH, note))
}

async fn get_tile(State(ledger): State<Ledger>, Path(path): Path<String>) -> Answer {
    let absent = || Failure::NotFound("there is no such tile".into());
    let resource = Resource::parse(&format!("tile/{path}")).ok_or_else(absent)?;
    // Only what a checkpoint covers is served: the rest could still be fenced off.
    let note = ledger.reader.checkpoint().await?.ok_or_else(absent)?;
    let size = checkpoint::parse(&note).map_err(|e| Failure::Internal(e.to_string()))?.head.size;
    let (level, index, width) = match resource {
        Resource::Tile(tile) => (tile.level, tile.index, tile.width),
        Resource::Entries(index, width) => (0, index, width),
    };
    if width > tile::width_at(level, index, size) {
        return Err(absent());
    }
    let body = match resource {
        Resource::Tile(tile) => ledger.reader.tile(tile).await?.map(|hashes| tile::join(&hashes)),
        Resource::Entries(index, width) => ledger.reader.bundle(index, width).await?,
    };
    Ok(bytes(OCTETS, IMMUTABLE, body.ok_or_else(absent)?))
}

/// An entry as the query returns it.
#[derive(Serialize)]
struct Shown {
    index: u64,
    leaf_hash: String,
    entry: Value,
}

fn shown(stored: &Stored) -> Result<Shown, Failure> {
    let entry = serde_json::from_slice(&stored.body)
        .map_err(|e| Failure::Internal(format!("entry {} is damaged: {e}", stored.index)))?;
    Ok(Shown { index: stored.index, leaf_hash: stored.leaf.to_string(), entry })
}

/// The query parameters; each name and word is checked, so that a misspelt filter is an error and
/// not a wider answer.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Parameters {
    agent: Option<String>,
    kind: Option<String>,
    result: Option<String>,
    reason: Option<String>,
    tool: Option<String>,
    server: Option<String>,
    decision_id: Option<String>,
    since: Option<String>,
    until: Option<String>,
    text: Option<String>,
    order: Option<String>,
    after: Option<u64>,
    limit: Option<u32>,
}

fn word<T: std::str::FromStr>(value: Option<String>) -> Result<Option<T>, Failure>
where
    T::Err: std::fmt::Display,
{
    value
        .map(|text| text.parse().map_err(|e: T::Err| Failure::BadRequest(e.to_string())))
        .transpose()
}

impl TryFrom<Parameters> for Filter {
    type Error = Failure;

    fn try_from(from: Parameters) -> Result<Self, Failure> {
        let oldest_first = match from.order.as_deref() {
            None | Some("newest") => false,
            Some("oldest") => true,
            Some(_) => return Err(Failure::BadRequest("order is `newest` or `oldest`".into())),
        };
        if from.limit.is_some_and(|limit| !(1..=MAX_PAGE).contains(&limit)) {
            return Err(Failure::BadRequest(format!("limit is 1 to {MAX_PAGE}")));
        }
        Ok(Self {
            agent: from.agent,
            kind: word(from.kind)?,
            result: word(from.result)?,
            reason: from.reason,
            tool: from.tool,
            server: from.server,
            decision_id: from.decision_id,
            since: word(from.since)?,
            until: word(from.until)?,
            text: from.text,
            oldest_first,
            after: from.after,
            limit: from.limit,
        })
    }
}

async fn get_entries(
    State(ledger): State<Ledger>,
    parameters: Result<Query<Parameters>, axum::extract::rejection::QueryRejection>,
) -> Answer {
    let Query(parameters) = parameters.map_err(|e| Failure::BadRequest(e.body_text()))?;
    let page = ledger.reader.query(&parameters.try_into()?).await?;
    let entries = page.entries.iter().map(shown).collect::<Result<Vec<_>, _>>()?;
    Ok(Json(json!({ "entries": entries, "next": page.next })).into_response())
}

fn index(text: &str) -> Result<u64, Failure> {
    text.parse().map_err(|_| Failure::BadRequest("an index is a decimal number".into()))
}

async fn get_entry(State(ledger): State<Ledger>, Path(at): Path<String>) -> Answer {
    let absent = || Failure::NotFound("there is no such entry".into());
    let stored = ledger.reader.entry(index(&at)?).await?.ok_or_else(absent)?;
    // The canonical bytes as they are: what the leaf hash is over.
    Ok(bytes("application/json", IMMUTABLE, stored.body))
}

async fn get_proof(State(ledger): State<Ledger>, Path(at): Path<String>) -> Answer {
    let proof = ledger.reader.prove(index(&at)?, false).await?;
    let proof =
        proof.ok_or_else(|| Failure::NotFound("no checkpoint covers such an entry yet".into()))?;
    Ok(bytes(TEXT, FRESH, proof.to_text()))
}

async fn get_consistency(
    State(ledger): State<Ledger>,
    Path((old, new)): Path<(String, String)>,
) -> Answer {
    let (old, new) = (index(&old)?, index(&new)?);
    let size = ledger.reader.head().await?.size;
    if old == 0 || old > new || new > size {
        return Err(Failure::BadRequest(format!("sizes are 1 to {size}, the older one first")));
    }
    let proof = ledger.reader.consistency(old, new).await?;
    let hashes: Vec<String> = proof.iter().map(ToString::to_string).collect();
    Ok(Json(json!({ "old": old, "new": new, "proof": hashes })).into_response())
}

async fn get_key(State(ledger): State<Ledger>) -> Answer {
    Ok(bytes(TEXT, FRESH, format!("{}\n", ledger.reader.verifier().await?)))
}

async fn get_health(State(ledger): State<Ledger>) -> Answer {
    let head = ledger.reader.head().await?;
    Ok(Json(json!({ "status": "ok", "entries": head.size })).into_response())
}

async fn get_metrics(State(ledger): State<Ledger>) -> Answer {
    let head = ledger.reader.head().await?;
    let signed = match ledger.reader.checkpoint().await? {
        Some(note) => checkpoint::parse(&note).map_or(0, |checkpoint| checkpoint.head.size),
        None => 0,
    };
    let text = ledger
        .metrics
        .render(head.size, signed, ledger.statistics())
        .map_err(|e| Failure::Internal(e.to_string()))?;
    Ok(bytes("text/plain; version=0.0.4; charset=utf-8", FRESH, text))
}

const _: () = assert!(TILE_WIDTH == 256, "the tile API is defined for 256 hashes");
