//! What sidecars of a cluster ask people through the operator, and what is answered.
//!
//! The sidecar's kernel stays the one that decides: what counts as an answer, how many are needed,
//! and that a case is used once. What passes here is a question without arguments and a name.

/// The generated messages and the service.
#[expect(
    missing_docs,
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    reason = "generated code"
)]
pub mod proto {
    tonic::include_proto!("aegis.approvals.v1");
}
