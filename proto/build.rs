//! Compiles the schema without `protoc`.

use std::env;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    const SCHEMA: &str = "schema/isthmus/v1/isthmus.proto";
    println!("cargo:rerun-if-changed={SCHEMA}");
    let descriptors = protox::compile([SCHEMA], ["schema"])?;
    if env::var_os("CARGO_FEATURE_GRPC").is_some() {
        tonic_prost_build::configure().compile_fds(descriptors)?;
    } else {
        prost_build::Config::new().compile_fds(descriptors)?;
    }
    Ok(())
}
