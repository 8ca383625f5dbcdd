use super::*;
use crate::{
    graph::chain::chains,
    report::example::{self, SEC},
    survey::Survey,
};

fn findings(survey: &Survey, threshold: u64) -> Vec<Finding> {
    check(&Scene {
        locks: &survey.locks,
        chains: &chains(&survey.locks),
        threshold: Nanos(threshold),
    })
}

fn sentences(survey: &Survey) -> Vec<(&'static str, Severity, String)> {
    findings(survey, SEC)
        .into_iter()
        .map(|finding| (finding.detector, finding.severity, finding.sentence))
        .collect()
}

#[test]
fn the_incident_is_a_long_wait_and_a_convoy() {
    assert_eq!(
        sentences(&example::incident()),
        [
            (
                "long-wait",
                Severity::Critical,
                "1,469 tasks have waited for mmap_lock of filebeat[4424] for 1s or longer; \
                 filebeat[4431] longest, for 6m12s"
                    .to_owned()
            ),
            (
                "convoy",
                Severity::Warning,
                "1,468 readers wait for mmap_lock of filebeat[4424] behind writer \
                 filebeat[4431] although the lock is only read-held"
                    .to_owned()
            ),
        ]
    );
}

#[test]
fn short_waits_are_no_findings() {
    assert_eq!(findings(&example::no_stall(), SEC), []);
    assert_eq!(findings(&example::incident(), 400 * SEC), []);
}

#[test]
fn a_write_held_lock_has_no_convoy() {
    let findings = findings(&example::write_held_directory(), SEC);
    assert_eq!(findings.len(), 1);
    assert_eq!(findings[0].detector, "long-wait");
    assert_eq!(findings[0].severity, Severity::Warning);
}

#[test]
fn readers_in_front_are_no_convoy() {
    let mut survey = example::incident();
    survey.locks[0].waiters.swap(0, 1);
    assert!(
        findings(&survey, SEC)
            .iter()
            .all(|finding| finding.detector != "convoy")
    );
}

#[test]
fn an_inconsistent_lock_is_told_first() {
    assert_eq!(
        sentences(&example::several_locks())[0],
        (
            "inconsistent-lock",
            Severity::Critical,
            "the words of i_rwsem of /var/log (ext4, nvme0n1p2) contradict each other or its \
             queue: count 0xfffffffe00000000, owner 0x1"
                .to_owned()
        )
    );
}

#[test]
fn names_are_kebab_case_and_differ() {
    let mut names: Vec<&str> = ALL.iter().map(|detector| detector.name()).collect();
    assert!(
        names
            .iter()
            .all(|name| name.chars().all(|c| c.is_ascii_lowercase() || c == '-'))
    );
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), ALL.len());
}
