//! Files that are to be build graphs.

use distbuild_proto::DigestFunction;
use distbuild_proto::graph::{Graph, GraphErrors, JobIndex, RawGraph};

/// Bytes are refused with errors that people can read, or are a graph in topological order that survives its way to the
/// coordinator.
///
/// # Panics
/// One of these does not hold.
pub fn check(bytes: &[u8]) {
    match Graph::from_json(bytes) {
        Ok(graph) => {
            check_order(&graph);
            check_messages(&graph);
        }
        Err(errors) => check_errors(&errors),
    }
}

/// Each job stands after its dependencies, and is found where the file has it and by its name.
fn check_order(graph: &Graph) {
    let mut seen = vec![false; graph.jobs().len()];
    for index in graph.file_order() {
        assert!(!std::mem::replace(&mut seen[index.get()], true), "a job stands in one place");
    }
    assert!(seen.into_iter().all(|seen| seen));
    for (index, job) in graph.iter() {
        assert!(job.deps().iter().all(|dep| *dep < index));
        assert_eq!(graph.job(index).name(), job.name());
        assert_eq!(graph.file_order()[job.number()], index);
        let id = job.declared_id().map(|id| id.to_string());
        assert_eq!(graph.find(id.as_deref().unwrap_or(job.name())), Some(index));
    }
}

/// A graph read from the messages of its jobs, in any order, has the same records.
fn check_messages(graph: &Graph) {
    let messages: Vec<_> = graph.file_order().iter().map(|job| graph.to_wire(*job)).collect();
    for backwards in [false, true] {
        let mut raw = RawGraph::new(graph.salt());
        let mut push = |message| raw.push(message);
        if backwards {
            messages.iter().rev().cloned().for_each(&mut push);
        } else {
            messages.iter().cloned().for_each(&mut push);
        }
        let again = Graph::validate(raw).unwrap_or_else(|errors| panic!("as messages: {errors}"));
        for (_, job) in graph.iter() {
            let same = job.declared_id().map_or_else(|| job.name().to_owned(), |id| id.to_string());
            let same = again.find(&same).map(|index: JobIndex| again.job(index));
            let record = |job: &distbuild_proto::graph::Job| {
                job.record(DigestFunction::Blake3, None).as_bytes().to_vec()
            };
            assert_eq!(same.map(record), Some(record(job)), "job {:?}", job.name());
        }
    }
}

/// There is one at least, not too many are listed, and each is one line.
fn check_errors(errors: &GraphErrors) {
    assert!(!errors.is_empty());
    assert!(errors.listed().len() <= errors.total().min(GraphErrors::LISTED));
    for error in errors.listed() {
        let text = error.to_string();
        assert!(!text.is_empty() && !text.contains('\n'), "{text:?}");
    }
    assert!(!errors.to_string().is_empty());
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::mutation;

    const PIECES: &[&str] = &[
        "{",
        "}",
        "[",
        "]",
        ",",
        ":",
        "\"",
        "null",
        "true",
        "1e999",
        "-1",
        "18446744073709551616",
        "\\u0000",
        "\\ud800",
        "{{",
        "}}",
        "{{OUTPUT_DIR}}",
        "{{DEP:",
        "{{DEP:a}}",
        "%2F",
        "..",
        "/",
        "**",
        "[!",
        "{a,b}",
        "\"deps\"",
        "\"id\"",
        "\"env\"",
        "\"cmds\"",
        "\"exec\"",
        "\"inputs\"",
        "\"name\"",
        "\"salt\"",
        "\"timeout_ms\"",
    ];

    #[test]
    fn the_examples_are_graphs() {
        for (name, bytes) in mutation::seeds("graph") {
            let errors = Graph::from_json(&bytes).err();
            assert_eq!(errors.map(|errors| errors.to_string()), None, "{name}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20_000))]

        #[test]
        fn a_file_is_a_graph_that_survives_its_way_or_refused_with_errors_of_one_line(
            bytes in mutation::inputs("graph", PIECES),
        ) {
            check(&bytes);
        }
    }
}
