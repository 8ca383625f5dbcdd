//! Who waits for a FUSE daemon, and which of its threads they wait for.

#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

use lockwatch::{
    daemon::{Daemon, ServesEvidence},
    lock::Confidence,
    survey::{Survey, SurveyOptions, Surveyor},
};
use lockwatch_tests::{
    trial::{self, Lab},
    truth::Scenario,
};

fn survey() -> Survey {
    let options = SurveyOptions {
        deadline: trial::bound(trial::PROMISE),
        ..SurveyOptions::default()
    };
    Surveyor::open().unwrap().survey(&options, &[]).unwrap()
}

/// The daemon that serves this mount.
fn daemon_of<'s>(survey: &'s Survey, mount: &str) -> &'s Daemon {
    let mut serve = survey
        .daemons
        .iter()
        .filter(|daemon| daemon.name.ends_with(&format!(" on {mount}")));
    let found = serve.next();
    assert!(serve.next().is_none(), "twice: {:#?}", survey.daemons);
    found.unwrap_or_else(|| {
        let (daemons, degraded) = (&survey.daemons, &survey.degraded);
        panic!("nobody serves {mount}: {daemons:#?} {degraded:#?}")
    })
}

/// The stall's holder waits for the lab's server, whose only thread is named for certain; none
/// of the lab's other threads, which are in the same process, is.
fn names_the_server(scenario: Scenario) {
    let Some(lab) = Lab::raise_or_skip(scenario, 3).unwrap() else {
        return;
    };
    let truth = lab.truth.clone();
    let survey = survey();
    lab.finish().unwrap();

    let daemon = daemon_of(&survey, &truth.mount);
    let (daemons, degraded) = (&survey.daemons, &survey.degraded);
    let holder = truth.holders[0].tid.0;
    let client = daemon
        .clients
        .iter()
        .find(|client| client.task.key.tid.0 as i32 == holder);
    let client = client.unwrap_or_else(|| panic!("{holder} is no client: {daemons:#?}"));
    assert!(client.is_sent && client.stood, "{client:#?}");
    let waiters = truth.waiters.iter().map(|waiter| waiter.tid.0);
    for waiter in waiters {
        let is_client = |daemon: &Daemon| {
            let mut clients = daemon.clients.iter();
            clients.any(|client| client.task.key.tid.0 as i32 == waiter)
        };
        assert!(!daemons.iter().any(is_client), "{waiter} waits for a lock");
    }
    let [thread] = daemon.threads.as_slice() else {
        panic!("not one thread: {daemon:#?}");
    };
    assert_eq!(thread.task.comm, "lab-server", "{daemon:#?}");
    assert_eq!(thread.evidence, ServesEvidence::OnlyThread);
    assert_eq!(thread.serves, Some(Confidence::Certain));
    let number = daemon.number.unwrap();
    assert!(number > 0, "{daemon:#?}");
    assert!(
        degraded.iter().all(|line| !line.contains("FUSE")),
        "{degraded:#?}"
    );
    eprintln!(
        "{}: {} clients, {} of connection {number}, in {:?}",
        daemon.name,
        daemon.clients.len(),
        thread.task,
        survey.duration
    );
}

#[test]
#[ignore = "live: needs root and BPF on the running kernel; run by cargo xtask test"]
fn the_server_that_a_holder_waits_for_is_named_for_a_directory() {
    names_the_server(Scenario::InodeWriteHeld);
}

#[test]
#[ignore = "live: needs root and BPF on the running kernel; run by cargo xtask test"]
fn the_server_that_a_holder_waits_for_is_named_for_a_page_fault() {
    names_the_server(Scenario::MmapReadHeld);
}
