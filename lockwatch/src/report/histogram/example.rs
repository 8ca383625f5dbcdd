//! Counts of a host as there are many, for tests.

use super::{Counted, Name, Source};
use crate::{
    latency::{Caller, CountsLost, Distribution, Measure, SeriesKey},
    lock::{LockClass, LockKind, LockMode},
    task::Nanos,
};

/// Waits for mmap_lock for read.
pub(crate) const MMAP_READS: u64 = 4_000 + 900 + 45 + 3;

/// Many short waits and a few long ones: `count` of about `middle` ns, spread by a factor of
/// `spread` to both sides.
fn around(middle: f64, spread: f64, count: u64) -> Distribution {
    let mut distribution = Distribution::default();
    for number in 0..count {
        // Evenly in -1..1, and cubed: dense in the middle.
        let place = (2 * number + 1) as f64 / count as f64 - 1.0;
        let time = middle * spread.powf(place.powi(3));
        distribution.record(Nanos(time as u64));
    }
    distribution
}

fn of(
    measure: Measure,
    class: LockClass,
    kind: LockKind,
    mode: LockMode,
    caller: Caller,
    distribution: Distribution,
) -> (Name, Distribution) {
    let key = SeriesKey {
        measure,
        class,
        kind,
        mode,
        caller,
    };
    (Name::Key(key), distribution)
}

fn function(name: &str) -> Caller {
    Caller::Function(name.to_owned())
}

/// What was counted.
pub(crate) fn counted() -> Counted {
    use LockKind::{Mutex, Rwsem};
    use LockMode::{Read, Write};
    use Measure::{Hold, Wait};
    let mmap = || LockClass::MmapLock;
    let inode = || LockClass::InodeRwsem;
    let symbol = |name: &str| LockClass::Symbol(name.to_owned());
    let fault = around(40_000.0, 60.0, 4_000);
    let proc = around(90_000_000.0, 20.0, 900);
    let series = vec![
        of(
            Wait,
            mmap(),
            Rwsem,
            Read,
            function("do_user_addr_fault"),
            fault,
        ),
        of(
            Wait,
            mmap(),
            Rwsem,
            Read,
            function("proc_pid_cmdline_read"),
            proc,
        ),
        of(
            Wait,
            mmap(),
            Rwsem,
            Read,
            Caller::Short,
            around(600.0, 2.0, 45),
        ),
        of(
            Wait,
            mmap(),
            Rwsem,
            Read,
            function("a_function_with_a_name_that_is_too_long_for_a_line"),
            around(2e6, 1.5, 2),
        ),
        of(
            Wait,
            mmap(),
            Rwsem,
            Read,
            function("__x64_sys_getrusage"),
            around(1e6, 1.0, 1),
        ),
        of(
            Wait,
            mmap(),
            Rwsem,
            Write,
            function("__vm_munmap"),
            around(3e6, 300.0, 250),
        ),
        of(
            Wait,
            inode(),
            Rwsem,
            Write,
            function("ext4_buffered_write_iter"),
            around(700_000.0, 30.0, 1_200),
        ),
        of(
            Wait,
            symbol("cgroup_mutex"),
            Mutex,
            Write,
            function("cgroup_kn_lock_live"),
            around(20_000.0, 3.0, 12),
        ),
        of(
            Wait,
            LockClass::Unknown,
            Mutex,
            Write,
            Caller::Unknown,
            around(5_000.0, 2.0, 4),
        ),
        of(
            Wait,
            LockClass::KernelData,
            Mutex,
            Write,
            Caller::Unknown,
            around(9_000.0, 2.0, 3),
        ),
        of(
            Hold,
            mmap(),
            Rwsem,
            Write,
            function("__vm_munmap"),
            around(2_500_000.0, 200.0, 40),
        ),
    ];
    let at = |second: i64| jiff::Timestamp::from_second(1_764_135_000 + second).ok();
    Counted {
        source: Source::Log,
        hosts: ["web1".to_owned()].into(),
        span: at(0).zip(at(3_600)),
        degraded: vec!["waits.hlog: line 7 is cut off".to_owned()],
        lost: CountsLost { waits: 3, holds: 0 },
        series,
    }
}
