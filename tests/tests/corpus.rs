//! Replays what fuzzers found and what was written for them, without a fuzzer.

use std::fs;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};

use tests::fuzzed::TARGETS;

/// Files and octets that a checkout is asked to carry.
const MAX_FILES: usize = 600;
const MAX_OCTETS: usize = 1 << 20;

fn fuzz() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("fuzz")
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name());
    let mut names: Vec<String> = entries.map(|name| name.into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn every_file_of_a_corpus_keeps_the_promises_of_its_target() {
    let mut broken = Vec::new();
    for (target, function) in TARGETS {
        let corpus = fuzz().join("corpus").join(target);
        for name in names(&corpus) {
            let octets = fs::read(corpus.join(&name)).unwrap();
            if catch_unwind(|| function(&octets)).is_err() {
                broken.push(format!("{target}/{name}"));
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

#[test]
fn every_target_has_a_program_and_a_small_corpus() {
    let mut targets = TARGETS.map(|(target, _)| target.to_owned());
    targets.sort();
    let programs: Vec<String> = targets.iter().map(|target| format!("{target}.rs")).collect();
    assert_eq!(names(&fuzz().join("targets")), programs);
    assert_eq!(names(&fuzz().join("corpus")), targets);
    let (mut files, mut octets) = (0, 0);
    for target in targets {
        let corpus = fuzz().join("corpus").join(target);
        for name in names(&corpus) {
            files += 1;
            octets += fs::read(corpus.join(name)).unwrap().len();
        }
    }
    assert!(files <= MAX_FILES && octets <= MAX_OCTETS, "{files} files, {octets} octets");
}
