use super::*;

fn logged(comm: &str, tid: u32) -> LoggedTask {
    LoggedTask {
        tid: Tid(tid),
        comm: comm.to_owned(),
    }
}

fn hung_task(comm: &str, tid: u32, seconds: u64) -> Said {
    Said::HungTask {
        task: logged(comm, tid),
        io_wait: false,
        longer_than: Nanos(seconds * SECOND),
    }
}

fn blocked(task: LoggedTask, lock: &str, owner: Option<LoggedTask>, as_reader: bool) -> Said {
    Said::Blocker {
        task,
        lock: lock.to_owned(),
        owner,
        as_reader,
    }
}

fn by_text(text: &str) -> Option<Said> {
    said(text.as_bytes())
}

/// The formats of kernel/hung_task.c and kernel/watchdog*.c with something put in, and what
/// they say.
#[test]
fn every_spelling() {
    let soft = |cpu, seconds: u64, comm, tid| Said::SoftLockup {
        cpu,
        stuck: Nanos(seconds * SECOND),
        task: logged(comm, tid),
    };
    let hard = |cpu, seen_by| Said::HardLockup { cpu, seen_by };
    let lines = [
        // 5.10 to 7.0.
        (
            "INFO: task dd:812 blocked for more than 120 seconds.",
            hung_task("dd", 812, 120),
        ),
        // 7.1 on.
        (
            "INFO: task dd:812 blocked in I/O wait for more than 122 seconds.",
            Said::HungTask {
                task: logged("dd", 812),
                io_wait: true,
                longer_than: Nanos(122 * SECOND),
            },
        ),
        // 6.16 on.
        (
            "INFO: task a:1 is blocked on a mutex likely owned by task b:2.",
            blocked(logged("a", 1), "mutex", Some(logged("b", 2)), false),
        ),
        (
            "INFO: task a:1 is blocked on a mutex, but the owner is not found.",
            blocked(logged("a", 1), "mutex", None, false),
        ),
        (
            "INFO: task a:1 blocked on a semaphore likely last held by task b:2",
            blocked(logged("a", 1), "semaphore", Some(logged("b", 2)), false),
        ),
        (
            "INFO: task a:1 is blocked on a semaphore, but the last holder is not found.",
            blocked(logged("a", 1), "semaphore", None, false),
        ),
        // 6.17 on.
        (
            "INFO: task a:1 <writer> blocked on an rw-semaphore likely owned by task b:2 <reader>",
            blocked(logged("a", 1), "rw-semaphore", Some(logged("b", 2)), true),
        ),
        (
            "INFO: task a:1 <reader> blocked on an rw-semaphore likely owned by task kworker/u16:0:12 <writer>",
            blocked(
                logged("a", 1),
                "rw-semaphore",
                Some(logged("kworker/u16:0", 12)),
                false,
            ),
        ),
        (
            "INFO: task a:1 is blocked on an rw-semaphore, but the owner is not found.",
            blocked(logged("a", 1), "rw-semaphore", None, false),
        ),
        // 6.12 on.
        (
            "Future hung task reports are suppressed, see sysctl kernel.hung_task_warnings",
            Said::HungTasksSuppressed,
        ),
        // 5.10 to 7.3.
        (
            "watchdog: BUG: soft lockup - CPU#1 stuck for 22s! [spin:412]",
            soft(1, 22, "spin", 412),
        ),
        // 5.10 and 6.1.
        (
            "NMI watchdog: Watchdog detected hard LOCKUP on cpu 3",
            hard(3, None),
        ),
        // 6.12.
        (
            "watchdog: Watchdog detected hard LOCKUP on cpu 3",
            hard(3, None),
        ),
        // 6.18 on.
        (
            "watchdog: CPU0: Watchdog detected hard LOCKUP on cpu 3",
            hard(3, Some(0)),
        ),
    ];
    for (line, expected) in lines {
        assert_eq!(by_text(line), Some(expected), "{line}");
    }
}

/// Lines that Debian's kernels have printed in virtual machines (tests/tests/
/// vm_second_opinion.rs).
#[test]
fn what_real_kernels_printed() {
    let holder = |tid| Some(logged("lab-holder", tid));
    let lines = [
        // 5.10.0-46.
        (
            "INFO: task lab-w1:116 blocked for more than 2 seconds.",
            hung_task("lab-w1", 116, 2),
        ),
        // 6.12.118, and -rt.
        (
            "INFO: task lab-w3:175 blocked for more than 2 seconds.",
            hung_task("lab-w3", 175, 2),
        ),
        (
            "INFO: task lab-w4:199 blocked for more than 8 seconds.",
            hung_task("lab-w4", 199, 8),
        ),
        // 6.18.15.
        (
            "INFO: task lab-w1:165 <reader> blocked on an rw-semaphore likely owned by task lab-holder:164 <writer>",
            blocked(logged("lab-w1", 165), "rw-semaphore", holder(164), false),
        ),
        // 7.3.4.
        (
            "INFO: task lab-w1:137 blocked for more than 2 seconds.",
            hung_task("lab-w1", 137, 2),
        ),
        (
            "INFO: task lab-w3:139 <writer> blocked on an rw-semaphore likely owned by task lab-holder:136 <writer>",
            blocked(logged("lab-w3", 139), "rw-semaphore", holder(136), false),
        ),
    ];
    for (line, expected) in lines {
        assert_eq!(by_text(line), Some(expected), "{line}");
    }
}

#[test]
fn a_name_may_look_like_anything() {
    let names = [
        "a:5 blocked",
        "x:1] [y:2",
        "in I/O wait",
        " <reader>",
        "task b:2.",
        "] stuck for 9s!",
        ": ",
        "",
    ];
    for name in names {
        let line = format!("INFO: task {name}:77 blocked for more than 2 seconds.");
        assert_eq!(by_text(&line), Some(hung_task(name, 77, 2)), "{line}");
        let line = format!("watchdog: BUG: soft lockup - CPU#0 stuck for 23s! [{name}:77]");
        let Some(Said::SoftLockup { task, .. }) = by_text(&line) else {
            panic!("{line}");
        };
        assert_eq!(task, logged(name, 77), "{line}");
        for other in names {
            let line = format!(
                "INFO: task {name}:77 <reader> blocked on an rw-semaphore likely owned by task {other}:78 <writer>"
            );
            let expected = blocked(
                logged(name, 77),
                "rw-semaphore",
                Some(logged(other, 78)),
                false,
            );
            assert_eq!(by_text(&line), Some(expected), "{line}");
            let line = format!(
                "INFO: task {name}:77 is blocked on a mutex likely owned by task {other}:78."
            );
            let expected = blocked(logged(name, 77), "mutex", Some(logged(other, 78)), false);
            assert_eq!(by_text(&line), Some(expected), "{line}");
        }
    }
}

#[test]
fn what_cannot_be_printed_is_replaced() {
    // A name of ESC [ 2 J, \x5c (a backslash), and a byte that is no UTF-8; and one in UTF-8.
    assert_eq!(
        by_text(r"INFO: task \x1b[2J\x5cx\xff:9 blocked for more than 2 seconds."),
        Some(hung_task("\u{fffd}[2J\\x\u{fffd}", 9, 2))
    );
    assert_eq!(
        by_text(r"INFO: task \xc3\xa4:9 blocked for more than 2 seconds."),
        Some(hung_task("ä", 9, 2))
    );
    // What only looks like an escape.
    assert_eq!(
        by_text(r"INFO: task \x5cx1b\x:9 blocked for more than 2 seconds."),
        Some(hung_task(r"\x1b\x", 9, 2))
    );
}

#[test]
fn what_is_no_such_message_says_nothing() {
    let lines = [
        "",
        "INFO: task ",
        "INFO: task dd:812 blocked for more than 120 seconds",
        "INFO: task dd:812 blocked for more than -1 seconds.",
        "INFO: task dd:812 blocked for more than 99999999999999999999 seconds.",
        "INFO: task dd:-5 blocked for more than 120 seconds.",
        "INFO: task dd blocked for more than 120 seconds.",
        "INFO: task dd:812 blocked forever for more than 120 seconds.",
        "xINFO: task dd:812 blocked for more than 120 seconds.",
        "INFO: task dd:812 blocked for more than 120 seconds. And more.",
        "INFO: task a:1 blocked on an rw-semaphore likely owned by task b:2 <writer>",
        "INFO: task a:1 is blocked on a mutex likely owned by task b:2",
        "INFO: task khungtaskd:1 is up",
        "watchdog: BUG: soft lockup - CPU#1 stuck for 22s!",
        "watchdog: BUG: soft lockup - CPU#+1 stuck for 22s! [spin:412]",
        "BUG: soft lockup - CPU#1 stuck for 22s! [spin:412]",
        "watchdog: Watchdog detected hard LOCKUP on cpu ",
        "watchdog: CPU: Watchdog detected hard LOCKUP on cpu 1",
        "Watchdog detected hard LOCKUP on cpu 1",
        "watchdog: enabled",
        "\"echo 0 > /proc/sys/kernel/hung_task_timeout_secs\" disables this message.",
    ];
    for line in lines {
        assert_eq!(by_text(line), None, "{line}");
    }
}

#[test]
fn a_record_is_taken_apart() {
    let text = b"INFO: task a;b:7 blocked for more than 2 seconds.";
    let with = |head: &str, tail: &str| [head.as_bytes(), text, tail.as_bytes()].concat();
    let expected = Some(Record {
        time_us: 5_140_900,
        text,
    });
    for bytes in [
        with("3,339,5140900,-;", "\n"),
        with("3,339,5140900,-,caller=T64;", "\n"),
        with("3,339,5140900,c;", ""),
        with(
            "3,339,5140900,-;",
            "\n SUBSYSTEM=acpi\n DEVICE=+acpi:PNP0A03:00\n",
        ),
    ] {
        let read = String::from_utf8_lossy(&bytes);
        assert_eq!(record(&bytes), expected, "{read}");
    }
    // Facility 1 is user space; and what is no record.
    for bytes in [
        with("11,339,5140900,-;", "\n"),
        with("3,339,5140900;", "\n"),
        with("3,339,+5140900,-;", "\n"),
        with("3,,5140900,-;", "\n"),
        text.to_vec(),
        Vec::new(),
    ] {
        let read = String::from_utf8_lossy(&bytes);
        assert_eq!(record(&bytes), None, "{read}");
    }
}
