//! The SPIFFE Workload API, as SPIFFE defines it.

/// The generated messages and the service.
#[expect(
    missing_docs,
    clippy::too_many_lines,
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    reason = "generated code"
)]
pub mod proto {
    include!(concat!(env!("OUT_DIR"), "/_.rs"));
}

/// What gRPC reflection tells of it.
pub const FILE_DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/workload.bin"));
