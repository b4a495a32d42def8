//! End-to-end tests, simulation, benchmarks and their testkit.
