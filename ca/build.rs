//! Generates the Workload API from its protobuf definition, without needing `protoc`.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message as _;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto/workload.proto");
    let descriptors = protox::compile(["workload.proto"], ["proto"])?;
    // Served by gRPC reflection.
    let file = PathBuf::from(env::var("OUT_DIR")?).join("workload.bin");
    fs::write(file, descriptors.encode_to_vec())?;
    tonic_prost_build::configure().build_client(false).compile_fds(descriptors)?;
    Ok(())
}
