//! Waits for sleeping locks by the functions in which the kernel makes a task wait:
//! for kernels without the contention tracepoints (before 5.19).
//!
//! Which functions is the loader's decision, by plan: each pair of programs here serves
//! any one. All of them have the lock as their first parameter and run only where it is
//! contended. A task leaves a function by way of the program at its end only if it
//! entered it while that was attached: ends of older waits are not seen.

use core::ffi::c_void;

use aya_ebpf::{
    EbpfContext,
    helpers::{bpf_get_current_pid_tgid, generated::bpf_get_current_task},
    macros::{fentry, fexit, kprobe},
    programs::{FEntryContext, FExitContext, ProbeContext},
};
use lockwatch_ebpf::stream::{self as abi, WaitSite, flags, outcome};

use super::{
    access::Word,
    argument::word,
    counts,
    global::global,
    waits::{self, At},
};

#[unsafe(no_mangle)]
static WAIT_SITES: [WaitSite; abi::WAIT_SITES] = [WaitSite {
    flags: 0,
    parameters: 0,
    outcome: 0,
    _pad: 0,
}; abi::WAIT_SITES];

/// Largest errno that a pointer can stand for (include/linux/err.h).
const MAX_ERRNO: u64 = 4095;
/// What is said of a lock that was not acquired where the kernel gives no errno.
const EAGAIN: i32 = -11;

macro_rules! site {
    ($index:literal, $begin:ident, $end:ident, $begin_kprobe:ident) => {
        /// fentry. Cost: 0.2 µs. Keeps an open wait; emits `WAIT_BEGIN` if configured.
        #[fentry]
        fn $begin(ctx: FEntryContext) -> i32 {
            let mut wait_flags = global!(WAIT_SITES[$index].flags);
            if wait_flags & BY_ARGUMENT == BY_ARGUMENT {
                let reader: u64 = ctx.arg(1);
                wait_flags &= if reader & 0xff == 0 {
                    !flags::READ
                } else {
                    !flags::WRITE
                };
            }
            begin(ctx.arg(0), wait_flags)
        }

        /// fexit. Cost: 0.1 µs. Drops the open wait; emits `WAIT_END` if the wait was as
        /// long as configured.
        #[fexit]
        fn $end(ctx: FExitContext) -> i32 {
            let returned = match global!(WAIT_SITES[$index].parameters) {
                1 => word::<8>(&ctx),
                2 => word::<16>(&ctx),
                3 => word::<24>(&ctx),
                4 => word::<32>(&ctx),
                _ => 0,
            };
            let result = match global!(WAIT_SITES[$index].outcome) {
                outcome::ZERO => returned as i32,
                outcome::POINTER if returned >= MAX_ERRNO.wrapping_neg() => returned as i32,
                outcome::TRUE if returned as u32 & 0xff == 0 => EAGAIN,
                _ => 0,
            };
            end(ctx.as_ptr(), ctx.arg(0), result)
        }

        /// kprobe, where fentry is refused. Cost: 0.2 µs. Keeps an open wait, whose end
        /// nothing here sees; emits `WAIT_BEGIN` if configured.
        #[kprobe]
        fn $begin_kprobe(ctx: ProbeContext) -> u32 {
            let (Some(lock), reader) = (ctx.arg::<u64>(0), ctx.arg::<u64>(1).unwrap_or(0)) else {
                return 0;
            };
            let mut wait_flags = global!(WAIT_SITES[$index].flags);
            if wait_flags & BY_ARGUMENT == BY_ARGUMENT {
                wait_flags &= if reader & 0xff == 0 {
                    !flags::READ
                } else {
                    !flags::WRITE
                };
            }
            begin(lock, wait_flags);
            0
        }
    };
}

const BY_ARGUMENT: u32 = flags::READ | flags::WRITE;

site!(0, wait_begin_0, wait_end_0, wait_kprobe_0);
site!(1, wait_begin_1, wait_end_1, wait_kprobe_1);
site!(2, wait_begin_2, wait_end_2, wait_kprobe_2);
site!(3, wait_begin_3, wait_end_3, wait_kprobe_3);
site!(4, wait_begin_4, wait_end_4, wait_kprobe_4);
site!(5, wait_begin_5, wait_end_5, wait_kprobe_5);
site!(6, wait_begin_6, wait_end_6, wait_kprobe_6);
site!(7, wait_begin_7, wait_end_7, wait_kprobe_7);
site!(8, wait_begin_8, wait_end_8, wait_kprobe_8);
site!(9, wait_begin_9, wait_end_9, wait_kprobe_9);
site!(10, wait_begin_10, wait_end_10, wait_kprobe_10);
site!(11, wait_begin_11, wait_end_11, wait_kprobe_11);
site!(12, wait_begin_12, wait_end_12, wait_kprobe_12);
site!(13, wait_begin_13, wait_end_13, wait_kprobe_13);
site!(14, wait_begin_14, wait_end_14, wait_kprobe_14);
site!(15, wait_begin_15, wait_end_15, wait_kprobe_15);

/// A function of its own, as is [`end`]: four dozen programs end in them.
#[inline(never)]
fn begin(lock: u64, wait_flags: u32) -> i32 {
    let ids = bpf_get_current_pid_tgid();
    let tgid = (ids >> 32) as u32;
    if waits::is_wanted(tgid) {
        let key = waits::key(lock, ids);
        // SAFETY: no preconditions. Not typed: that can be had from 5.11 on only.
        let current = Word(unsafe { bpf_get_current_task() });
        waits::begin(&key, At::Hash, current, tgid, wait_flags);
    }
    0
}

#[inline(never)]
fn end(ctx: *mut c_void, lock: u64, result: i32) -> i32 {
    let key = waits::key(lock, bpf_get_current_pid_tgid());
    waits::end(
        &Context(ctx),
        &key,
        At::Hash,
        counts::FIRST_ARGUMENT,
        result,
    );
    0
}

/// The context of a program, handed on.
struct Context(*mut c_void);

impl EbpfContext for Context {
    fn as_ptr(&self) -> *mut c_void {
        self.0
    }
}
