//! How journals are shipped to the ledger of a cluster.
//!
//! A journal's source is its owner's SPIFFE ID and an incarnation; the ledger takes its entries in
//! the order of their sequence, each once, and says how far it is. What the ledger has acknowledged
//! is durable there.

/// The generated messages and the service.
#[expect(
    missing_docs,
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    reason = "generated code"
)]
pub mod proto {
    tonic::include_proto!("aegis.journal.v1");
}

/// The most entries of one shipment.
pub const MAX_ENTRIES: usize = 512;
