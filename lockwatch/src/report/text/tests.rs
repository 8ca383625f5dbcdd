use insta::assert_snapshot;

use super::*;
use crate::{
    daemon::ServesEvidence,
    lock::Confidence,
    report::example::{self, MS, SEC},
    survey::Survey,
    task::Nanos,
};

fn report(survey: &Survey) -> Report {
    example::report(survey, SEC)
}

fn text(survey: &Survey, width: usize, color: bool) -> String {
    let mut out = Vec::new();
    write_report(&mut out, &report(survey), Style { width, color }).unwrap();
    String::from_utf8(out).unwrap()
}

/// The text at 80 and at 120 columns; no line may be longer.
fn at_both_widths(survey: &Survey) -> String {
    let mut both = String::new();
    for width in [80, 120] {
        let text = text(survey, width, false);
        for line in text.lines() {
            assert!(page::width(line) <= width, "too wide: {line}");
            assert_eq!(line.trim_end(), line, "space at the end");
        }
        both.push_str(&format!("{:-<width$}\n{text}", format!("{width} columns ")));
    }
    both
}

#[test]
fn incident() {
    assert_snapshot!(at_both_widths(&example::incident()));
}

#[test]
fn write_held_directory() {
    assert_snapshot!(at_both_widths(&example::write_held_directory()));
}

#[test]
fn held_before() {
    assert_snapshot!(at_both_widths(&example::held_before()));
}

#[test]
fn unknown_holder() {
    assert_snapshot!(at_both_widths(&example::unknown_holder()));
}

#[test]
fn partly_known_readers() {
    assert_snapshot!(at_both_widths(&example::partly_known_readers()));
}

#[test]
fn several_possible() {
    assert_snapshot!(at_both_widths(&example::several_possible()));
}

#[test]
fn granted_reader() {
    assert_snapshot!(at_both_widths(&example::granted_reader()));
}

#[test]
fn no_stall() {
    assert_snapshot!(at_both_widths(&example::no_stall()));
}

#[test]
fn hostile_comm() {
    assert_snapshot!(at_both_widths(&example::hostile_comm()));
}

#[test]
fn several_locks() {
    assert_snapshot!(at_both_widths(&example::several_locks()));
}

#[test]
fn cycle() {
    assert_snapshot!(at_both_widths(&example::cycle()));
}

#[test]
fn idle_daemon() {
    assert_snapshot!(at_both_widths(&example::idle_daemon()));
}

#[test]
fn a_circle_that_is_no_deadlock_only_seems_to_be_one() {
    let mut survey = example::daemon_in_its_own_directory();
    let sure = text(&survey, 200, false);
    assert!(sure.contains("DEADLOCK") && sure.contains(": each waits for the next"));
    survey.daemons[0].threads[0].serves = Some(Confidence::Likely);
    let likely = text(&survey, 200, false);
    assert!(!likely.contains("DEADLOCK") && likely.contains(": each seems to wait for the next"));
}

#[test]
fn daemon_in_its_own_directory() {
    assert_snapshot!(at_both_widths(&example::daemon_in_its_own_directory()));
}

#[test]
fn killing_the_writer_before_a_reader_of_the_circle_is_a_way_out_where_it_is_one() {
    let circle = || {
        let mut survey = example::incident();
        let lock = &mut survey.locks[0];
        lock.waiters[0].killable = true;
        lock.waiters[2].task = lock.holders[0].task.clone();
        survey
    };
    let way = "killing writer filebeat[4431] lets the readers behind it through and opens the \
               circle; risk: a killed process loses what it was doing";
    assert!(text(&circle(), 200, false).contains(way));
    type Change = fn(&mut Survey);
    let changes: [(&str, Change); 5] = [
        ("it cannot be killed", |survey| {
            survey.locks[0].waiters[0].killable = false;
        }),
        ("another writer is between them", |survey| {
            survey.locks[0].waiters[1].mode = LockMode::Write;
        }),
        ("the queue is by priority", |survey| {
            survey.locks[0].by_priority = true;
        }),
        ("the lock is write-held", |survey| {
            survey.locks[0].state = LockState::WriteHeld;
        }),
        ("too many readers are before it", |survey| {
            let lock = &mut survey.locks[0];
            let other = lock.waiters[300].task.clone();
            lock.waiters[300].task = std::mem::replace(&mut lock.waiters[2].task, other);
        }),
    ];
    for (what, change) in changes {
        let mut survey = circle();
        change(&mut survey);
        let text = text(&survey, 200, false);
        assert!(text.contains("DEADLOCK"), "{what}: {text}");
        assert!(!text.contains("killing writer"), "{what}");
    }
}

#[test]
fn a_daemon_of_which_it_is_unknown_who_serves_reads_well_in_parentheses() {
    let mut survey = example::daemon_in_its_own_directory();
    let threads = &mut survey.daemons[0].threads;
    threads[0].serves = Some(Confidence::Possible);
    threads[0].evidence = ServesEvidence::OneOfSeveral;
    let one = text(&survey, 300, false);
    let words = "(daemon sharefs[900], which may or may not have the request)";
    assert!(one.contains(words), "{one}");
    let threads = &mut survey.daemons[0].threads;
    let mut other = threads[0].clone();
    other.task.key.tid = Tid(901);
    threads.push(other);
    let two = text(&survey, 300, false);
    let words = "(daemon sharefs[900], of whose 2 threads it is unknown which has the request)";
    assert!(two.contains(words), "{two}");
}

#[test]
fn a_queue_of_many_names_counts_the_others() {
    let mut survey = example::incident();
    let waiters = &mut survey.locks[0].waiters;
    for (number, comm) in ["cron", "sshd"].into_iter().enumerate() {
        waiters[100 + number].task.comm = comm.into();
    }
    let text = text(&survey, 300, false);
    let names = "collectd ×1,412, top ×31, ps ×12 and 4 other names  in proc_pid_cmdline_read";
    assert!(text.contains(names), "{text}");
}

#[test]
fn hung_incident() {
    assert_snapshot!(at_both_widths(&example::hung_incident()));
}

#[test]
fn hung_without_locks() {
    assert_snapshot!(at_both_widths(&example::hung_without_locks()));
}

#[test]
fn hung_client() {
    assert_snapshot!(at_both_widths(&example::hung_client()));
}

#[test]
fn what_the_kernel_said_of_hanging_tasks_is_beside_it() {
    for survey in [example::hung_incident(), example::hung_client()] {
        let mut report = report(&survey);
        for finding in &mut report.findings {
            finding.second_opinion = Some("the kernel said nothing".to_owned());
        }
        let mut out = Vec::new();
        let style = Style {
            width: 120,
            color: false,
        };
        write_report(&mut out, &report, style).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert_eq!(text.matches("the kernel said nothing").count(), 1, "{text}");
    }
}

#[test]
fn sleeps_below_the_threshold_are_not_told() {
    let mut survey = example::hung_without_locks();
    for sleeper in &mut survey.sleepers {
        sleeper.asleep = Nanos(119 * SEC);
    }
    let report = report(&survey);
    assert!(!report.has_stall() && report.hung.is_empty());
    let text = text(&survey, 120, false);
    assert!(text.starts_with("no task has waited for a lock"), "{text}");
}

#[test]
fn colours_change_nothing_but_colours() {
    for survey in [example::incident(), example::hostile_comm()] {
        let plain = text(&survey, 100, false);
        let coloured = text(&survey, 100, true);
        assert!(coloured.contains("\x1b["));
        assert!(!plain.contains('\x1b'));
        assert_eq!(anstream::adapter::strip_str(&coloured).to_string(), plain);
    }
}

#[test]
fn locks_beyond_the_limit_are_counted() {
    let mut survey = example::write_held_directory();
    let lock = survey.locks[0].clone();
    for number in 1..15_u32 {
        let mut lock = lock.clone();
        lock.address.0 += u64::from(number) * 0x1000;
        lock.holders.clear();
        for waiter in &mut lock.waiters {
            waiter.task.key.tid.0 += 100 * number;
        }
        survey.locks.push(lock);
    }
    let text = text(&survey, 120, false);
    assert!(text.starts_with("15 locks with stalls, 45 tasks blocked\n"));
    assert!(
        text.contains("\n… and 5 more, 15 tasks blocked (use --format json)\n"),
        "{text}"
    );
}

#[test]
fn one_look_is_said_to_be_one() {
    let mut survey = example::incident();
    survey.looks = 1;
    assert!(text(&survey, 120, false).contains("one look only"));
}

#[test]
fn a_lower_threshold_makes_a_stall() {
    let survey = example::no_stall();
    assert!(example::report(&survey, MS).has_stall());
    assert!(!report(&survey).has_stall());
}

#[test]
fn unknown_root() {
    assert_snapshot!(at_both_widths(&example::unknown_root()));
}

#[test]
fn soft_lockup_of_task() {
    assert_snapshot!(at_both_widths(&example::soft_lockup_of_task()));
}

#[test]
fn soft_lockup_in_softirq() {
    assert_snapshot!(at_both_widths(&example::soft_lockup_in_softirq()));
}

#[test]
fn piled_up_timers() {
    assert_snapshot!(at_both_widths(&example::piled_up_timers()));
}

#[test]
fn hard_lockup() {
    assert_snapshot!(at_both_widths(&example::hard_lockup()));
}

#[test]
fn a_locked_cpu_is_a_stall_without_any_lock() {
    let mut survey = example::hard_lockup();
    assert!(report(&survey).has_stall());
    survey.lockups.clear();
    assert!(!report(&survey).has_stall());
}

#[test]
fn the_word_of_the_kernel_is_shown_with_the_cpu_it_is_about() {
    let mut report = report(&example::hard_lockup());
    report.lockups[0].second_opinion = Some("the kernel says the same".to_owned());
    let mut out = Vec::new();
    let style = Style {
        width: 80,
        color: false,
    };
    write_report(&mut out, &report, style).unwrap();
    let text = String::from_utf8(out).unwrap();
    assert!(
        text.contains("\n  kernel   the kernel says the same\n"),
        "{text}"
    );
}
