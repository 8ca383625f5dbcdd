use insta::assert_snapshot;

use super::*;
use crate::{
    lock::Confidence,
    report::example::{self, MS, SEC},
    survey::Survey,
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
