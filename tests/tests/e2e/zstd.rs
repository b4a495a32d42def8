//! A second real project: zstd on two worker processes, as the example lays it out.

use distbuild_tests::{Farm, example};

#[test]
fn zstd_is_built_right_on_two_workers_and_then_cached() {
    let farm = Farm::start(2);
    let project = example::zstd();

    let cold = farm.build(&project.graph()).succeed();
    assert_eq!((cold.jobs("total"), cold.jobs("executed")), (35, 35));
    assert!(cold.stdout.contains(" works: "), "what was compressed came back: {}", cold.stdout);
    let (declared, opened) = (cold.bytes("declared"), cold.bytes("opened"));
    assert!(opened < declared, "nobody opens the legacy formats: {opened} of {declared} bytes");
    let sent = cold.bytes("sent_by_client");
    assert!(sent * 100 <= opened * 105, "sent {sent} of {opened} opened bytes");

    let cached = farm.build(&project.graph()).succeed();
    assert_eq!((cached.jobs("cached"), cached.jobs("executed")), (35, 0));
    assert_eq!(cached.stdout, cold.stdout);
}
