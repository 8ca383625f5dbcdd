//! Whether `watch` has found what was made, and nothing else.

use lockwatch_tests::{
    trial::{
        Ended,
        event::{Event, Stall},
        lockup::{self, Line},
        report::Finding,
        verdict,
    },
    truth::{Hung, LockedUp, Ready, Tid},
};

use super::{
    listener::Heard,
    truths::{Made, What},
};

fn deadlocks_of(stall: &Stall) -> impl Iterator<Item = &Finding> {
    stall
        .findings
        .iter()
        .filter(|finding| finding.detector == "deadlock")
}

/// Every deadlock that is reported is one of these, and each of these is reported.
pub(crate) fn deadlocks(watched: &Ended, made: &[Made]) {
    let truths: Vec<&Ready> = made
        .iter()
        .filter_map(|made| match &made.what {
            What::Deadlock(truth) => Some(&**truth),
            _ => None,
        })
        .collect();
    let known = ["watching", "stall", "stall_ended", "summary"];
    let is_known = |line: &&str| {
        let value: serde_json::Value = serde_json::from_str(line).unwrap();
        known.iter().any(|event| value["event"] == *event)
    };
    let events: Vec<Event> = watched
        .stdout
        .lines()
        .filter(is_known)
        .map(|line| Event::read(line).unwrap())
        .collect();
    let stalls: Vec<&Stall> = events
        .iter()
        .filter_map(|event| match event {
            Event::Stall(stall) => Some(&**stall),
            _ => None,
        })
        .collect();
    for truth in &truths {
        let is_this = |stall: &&&Stall| {
            let lock = stall.lock.as_ref();
            lock.is_some_and(|lock| lock.name == truth.lock.name)
        };
        let reports = stalls.iter().filter(is_this).count();
        assert!(reports > 0, "no stall of {} was reported", truth.lock.name);
    }
    let mut seen = vec![0; truths.len()];
    let mut wrong = Vec::new();
    for (stall, finding) in stalls
        .iter()
        .flat_map(|stall| deadlocks_of(stall).map(|finding| (*stall, finding)))
    {
        let is_this = |truth: &&Ready| {
            let cycle = truth.cycle.as_ref();
            cycle.is_some_and(|cycle| verdict::is_ring(finding, cycle))
        };
        match truths.iter().position(is_this) {
            Some(number) => seen[number] += 1,
            None => wrong.push(format!("{finding:?} in {stall:#?}")),
        }
    }
    let is_ended = matches!(events.last(), Some(Event::Summary { .. }));
    assert!(is_ended, "watch ended early: {}", watched.stderr);
    eprintln!(
        "soak: {} reports of stalls, those of the deadlocks {seen:?}, peak {} MiB",
        stalls.len(),
        watched.peak_rss_kib >> 10
    );
    assert!(
        wrong.is_empty(),
        "called deadlocks and are none:\n{}\ntruths: {truths:#?}",
        wrong.join("\n")
    );
    assert!(
        seen.iter().all(|count| *count > 0),
        "not all deadlocks were found: {seen:?}\ntruths: {truths:#?}\nlast words: {}",
        watched.stderr
    );
}

/// Every lockup that is told is one of these, once; every task that is said to hang was made
/// to, or needed the CPU that was locked up then.
pub(crate) fn hangs(heard: &[Heard], made: &[Made]) {
    let mut wrong = Vec::new();
    let mut locked_up = Vec::new();
    let mut hung = Vec::new();
    for heard in heard {
        let line = serde_json::from_str(&heard.line)
            .unwrap_or_else(|error| panic!("{error}: {}", heard.line));
        let Line::Finding(finding) = line else {
            continue;
        };
        eprintln!("found: {}", finding.sentence);
        let since_ns = heard.at_ns.saturating_sub(finding.age_ns);
        let is_right = match &*finding.detector {
            "soft-lockup" => lockup_of(made, &finding, since_ns).is_some(),
            "hung-task" => made
                .iter()
                .any(|made| made.explains(&finding.tasks, since_ns, heard.at_ns)),
            _ => false,
        };
        if !is_right {
            wrong.push(finding);
        } else if finding.reason == "found" && finding.detector == "soft-lockup" {
            locked_up.push(finding);
        } else {
            hung.push(finding);
        }
    }
    assert!(wrong.is_empty(), "this is not so: {wrong:#?}");
    for made in made {
        match &made.what {
            What::Lockup(truth) => assert_eq!(locked_up.len(), 1, "of {truth:#?}: {locked_up:#?}"),
            What::Hang(truth) => {
                let is_it = |finding: &&lockup::Finding| {
                    finding.reason == "found" && tasks_of(finding) == tasks(truth)
                };
                let count = hung.iter().map(|finding| &**finding).filter(is_it).count();
                assert_eq!(count, 1, "of {truth:#?}: {hung:#?}");
            }
            What::Deadlock(_) => {}
        }
    }
}

fn lockup_of<'m>(
    made: &'m [Made],
    finding: &lockup::Finding,
    since_ns: u64,
) -> Option<&'m LockedUp> {
    let lockup = finding.lockup.as_ref()?;
    made.iter().find_map(|made| match &made.what {
        What::Lockup(truth)
            if since_ns >= made.since_ns
                && since_ns <= made.until_ns
                && lockup.complaints(truth, &finding.stacks).is_empty() =>
        {
            Some(&**truth)
        }
        _ => None,
    })
}

fn tasks_of(finding: &lockup::Finding) -> Vec<Tid> {
    let mut tasks = finding.tasks.clone();
    tasks.sort();
    tasks
}

fn tasks(truth: &Hung) -> Vec<Tid> {
    let mut tasks: Vec<Tid> = truth.tasks.iter().map(|task| task.tid).collect();
    tasks.sort();
    tasks
}
