//! The scheduler as a pure state machine.
