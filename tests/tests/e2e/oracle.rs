//! Precise reuse against executions from scratch, on random edits. What that is, and how a longer run is made, stands in
//! `distbuild_tests::oracle`.

use distbuild_tests::oracle::Oracle;
use distbuild_tests::oracle::project::EditedProject;

fn edit(project: EditedProject, edits: usize) {
    let mut oracle = Oracle::start(project, 7);
    let steps: Vec<String> = (0..edits).map(|_| oracle.step()).collect();
    let tally = oracle.finish();
    assert!(tally.is_clean(), "{tally:#?}\nafter {steps:#?}");
    assert!(tally.ran <= tally.minimum + tally.edits, "{tally:#?}\nafter {steps:#?}");
    assert!(tally.ran < tally.by_action_key, "something is reused: {tally:#?}");
}

#[test]
fn random_edits_of_a_real_project_give_what_an_execution_from_scratch_gives() {
    edit(EditedProject::of("snappy").unwrap(), 6);
}

#[test]
fn random_programs_that_look_at_random_files_give_what_their_execution_gives() {
    edit(EditedProject::of_programs(3, 12), 10);
}
