//! Generates the wire types from `proto/distbuild/v1/*.proto`, with no `protoc` on the machine.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = ["tree", "observed", "graph", "blobs", "pieces", "builds", "workers"]
        .map(|name| format!("proto/distbuild/v1/{name}.proto"));
    for file in &files {
        println!("cargo:rerun-if-changed={file}");
    }
    let descriptors = protox::compile(&files, ["proto"])?;
    tonic_prost_build::configure().bytes(".").compile_fds(descriptors)?;
    Ok(())
}
