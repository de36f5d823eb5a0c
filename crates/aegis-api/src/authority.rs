//! What the CA of a cluster answers: SVIDs for the pod that a token was made for.

/// The generated messages and the service.
#[expect(
    missing_docs,
    clippy::too_many_lines,
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    reason = "generated code"
)]
pub mod proto {
    tonic::include_proto!("aegis.authority.v1");
}

/// The audience of the tokens that the CA takes.
pub const AUDIENCE: &str = "aegis-ca";
