//! One binary: build, coordinator, worker, mount, and what looks at them.
fn main() {}
