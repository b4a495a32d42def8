//! The coordinator: gRPC services, durable state, driver of the scheduler.
