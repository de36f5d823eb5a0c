//! Generates the services from their protobuf definitions, without needing `protoc`.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message as _;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    let files = [
        "approvals.proto",
        "authority.proto",
        "distribution.proto",
        "journal.proto",
        "trust.proto",
    ];
    let descriptors = protox::compile(files, ["proto"])?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    // SPIFFE's own, which others have clients of.
    let descriptors = protox::compile(["workload.proto"], ["proto"])?;
    let file = PathBuf::from(env::var("OUT_DIR")?).join("workload.bin");
    fs::write(file, descriptors.encode_to_vec())?;
    tonic_prost_build::configure().build_client(false).compile_fds(descriptors)?;
    Ok(())
}
