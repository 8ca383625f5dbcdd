//! How long waits and holds were, counted in the task that waited or held.

use core::{ffi::c_void, mem::MaybeUninit};

use aya_ebpf::{
    EbpfContext,
    bindings::BPF_NOEXIST,
    helpers::{
        bpf_get_current_pid_tgid,
        generated::{
            bpf_get_current_cgroup_id, bpf_get_current_comm, bpf_get_smp_processor_id,
            bpf_get_stack, bpf_probe_read_kernel,
        },
    },
    macros::map,
    maps::{HashMap, PerCpuArray},
};
use lockwatch_ebpf::{
    counts::{
        CLASS_IS_ADDRESS, CLASSES, ClassRule, Count, CountConfig, CountKey, HELD, LOCK_CODE,
        NO_CODE, TRACERS_MAX, WANTED as WANTED_MAX, Wanted, bucket_of, caller, lost,
    },
    stream::{Code, flags},
    survey::COMM_LEN,
};

use super::global::{self, global};

#[unsafe(no_mangle)]
static COUNT_CONFIG: CountConfig = CountConfig {
    callers_from_ns: 0,
    on: 0,
    own_tgid: 0,
    tracers: 0,
    _pad: 0,
};

/// Code of the locks themselves, and what asks for them on behalf of others; none is behind
/// an empty one.
#[unsafe(no_mangle)]
static LOCK_CODE_AT: [Code; LOCK_CODE] = [NO_CODE; LOCK_CODE];

/// What contains a lock; rule n is class n + 1.
#[unsafe(no_mangle)]
static CLASS_RULES: [ClassRule; CLASSES] = [ClassRule::ABSENT; CLASSES];

/// Where the kernel's own data lies: a lock there is a class of its own.
#[unsafe(no_mangle)]
static KERNEL_IMAGE: Code = Code { start: 0, len: 0 };

#[unsafe(no_mangle)]
static WANTED: Wanted = Wanted::NONE;

/// Preallocated, so that an insert never calls the allocator; of the size that the loader
/// says. Nothing is ever removed. Not per CPU: a wait is dear already, and 256 copies are
/// dearer than an atomic addition.
#[map]
static COUNTS: HashMap<CountKey, Count> = HashMap::with_max_entries(1, 0);

/// Pages with code of tracers' trampolines, by number: where a lock function is hooked at its
/// return, it is called from there. User space enters them, once all is attached.
#[map]
static TRACERS: HashMap<u64, u8> = HashMap::with_max_entries(TRACERS_MAX, 0);

#[map]
static COUNTS_LOST: PerCpuArray<u64> = PerCpuArray::with_max_entries(lost::COUNT, 0);

/// Frames in which the caller is looked for: this program's own, the tracer's, and those of
/// the lock come first.
const FRAMES: usize = 16;

/// True if anything is counted; what depends on it is dropped by the verifier else.
#[inline(always)]
pub(crate) fn are_on() -> bool {
    global!(COUNT_CONFIG.on) != 0
}

/// The lock is the first argument of the traced function. There it is a typed pointer, with
/// which verifiers allow no arithmetic (5.10–7.3): its address has to be read.
pub(crate) const FIRST_ARGUMENT: u64 = 0;

/// Counts a wait or a hold of the running task that is just over and was this long. `how`:
/// its flags, and `HELD`. `class`: that of the lock if it is known, or 0. `lock`: its address,
/// or [`FIRST_ARGUMENT`].
#[inline(always)]
pub(crate) fn count(ctx: &impl EbpfContext, lock: u64, class: u64, how: u32, ns: u64) {
    if are_on() {
        count_one(ctx.as_ptr(), lock, class, how, ns);
    }
}

/// A function of its own: two dozen programs end in it.
#[inline(never)]
fn count_one(ctx: *mut c_void, lock: u64, class: u64, how: u32, ns: u64) {
    let lock = if lock == FIRST_ARGUMENT {
        word(ctx as u64)
    } else {
        lock
    };
    // Waits of ours have been told apart before, by what is kept of them.
    let is_ours = how & HELD != 0 && is_of(global!(COUNT_CONFIG.own_tgid));
    if is_ours || !is_task_wanted() {
        return;
    }
    let class = hidden(if class == 0 {
        class_of(lock, how)
    } else {
        class
    });
    let caller = if ns < global!(COUNT_CONFIG.callers_from_ns) {
        caller::SHORT
    } else {
        caller_of(ctx)
    };
    let caller = hidden(caller);
    if !is_class_wanted(class) || !is_caller_wanted(caller) {
        return;
    }
    let key = CountKey {
        class,
        caller,
        // A mutex may have been spun for first: the same wait.
        how: how & !(flags::SPIN | flags::SPINS_INSIDE),
        bucket: bucket_of(ns),
    };
    let once = Count {
        count: 1,
        sum_ns: ns,
    };
    // Another CPU may insert it in between: then it is there at the second look.
    if !add(&key, ns) && COUNTS.insert(key, once, BPF_NOEXIST.into()).is_err() && !add(&key, ns) {
        count_lost(if how & HELD == 0 {
            lost::WAITS
        } else {
            lost::HOLDS
        });
    }
}

/// False if the map has no such entry.
#[inline(always)]
fn add(key: &CountKey, ns: u64) -> bool {
    let Some(entry) = COUNTS.get_ptr_mut(key) else {
        return false;
    };
    // SAFETY: an entry of the map, which is never removed; additions are atomic.
    unsafe {
        atomic_add(&raw mut (*entry).count, 1);
        atomic_add(&raw mut (*entry).sum_ns, ns);
    }
    true
}

/// # Safety
/// `at` must be valid, and aligned.
#[inline(always)]
pub(crate) unsafe fn atomic_add(at: *mut u64, by: u64) {
    // As assembly: an atomic of the compiler's would want the old value, which takes Linux 5.12.
    // SAFETY: the caller's promise.
    unsafe {
        core::arch::asm!("lock *(u64 *)({at} + 0) += {by}", at = in(reg) at, by = in(reg) by);
    }
}

/// The number of a lock's class; 0 if nothing tells.
#[inline(always)]
pub(crate) fn class_of(lock: u64, how: u32) -> u64 {
    if lock.wrapping_sub(global!(KERNEL_IMAGE.start)) < global!(KERNEL_IMAGE.len) {
        return lock;
    }
    macro_rules! try_rules {
        ($($index:literal)*) => {
            $(if global!(CLASS_RULES[$index].mask) != 0
                && how & global!(CLASS_RULES[$index].mask) == global!(CLASS_RULES[$index].flags)
                && matches(
                    lock,
                    global!(CLASS_RULES[$index].lock),
                    global!(CLASS_RULES[$index].pointer),
                    global!(CLASS_RULES[$index].hop),
                    global!(CLASS_RULES[$index].back),
                    global!(CLASS_RULES[$index].same),
                )
            {
                return $index + 1;
            })*
        };
    }
    try_rules!(0 1 2 3 4 5 6 7 8 9);
    0
}

#[inline(always)]
fn matches(lock: u64, offset: u64, pointer: u64, hop: u64, back: u64, same: u64) -> bool {
    let base = lock.wrapping_sub(offset);
    let mut found = word(base.wrapping_add(pointer));
    if hop != ClassRule::NONE {
        // Most of what is there in other objects is no address, and need not be tried.
        found = if found >= CLASS_IS_ADDRESS {
            word(found.wrapping_add(hop))
        } else {
            0
        };
    }
    if same != ClassRule::NONE {
        found != 0 && found == word(base.wrapping_add(same))
    } else {
        found == base.wrapping_add(back)
    }
}

/// The word of kernel memory at an address; 0 if there is none.
#[inline(always)]
pub(crate) fn word(at: u64) -> u64 {
    let mut value = 0u64;
    // SAFETY: reads as much as the local has room for; a bad address gives an error.
    unsafe { bpf_probe_read_kernel((&raw mut value).cast::<c_void>(), 8, at as *const c_void) };
    value
}

/// A return address in the first function behind those of the lock on this task's stack.
#[inline(always)]
fn caller_of(ctx: *mut c_void) -> u64 {
    let mut frames = MaybeUninit::<[u64; FRAMES]>::uninit();
    // SAFETY: the buffer is as long as said; what is behind the result's length is zeroed.
    let len = unsafe {
        bpf_get_stack(
            ctx,
            frames.as_mut_ptr().cast(),
            size_of::<[u64; FRAMES]>() as u32,
            0,
        )
    };
    if len <= 0 {
        return caller::UNKNOWN;
    }
    let frames = frames.as_ptr().cast::<u64>();
    let mut is_in_lock = false;
    for index in 0..FRAMES {
        // SAFETY: in bounds; the kernel has written to all of it.
        let at = unsafe { frames.add(index).read_volatile() };
        if at == 0 {
            break;
        }
        if is_in_lock_code(at) {
            is_in_lock = true;
        } else if is_in_lock && !is_in_tracer(at) {
            return at;
        }
    }
    caller::UNKNOWN
}

/// A return address may lie one byte behind the function's last call. A function of its own,
/// or the compiler keeps all of the table in registers; and without branches, each of which a
/// verifier would follow to the end.
#[inline(never)]
fn is_in_lock_code(return_address: u64) -> bool {
    let at = return_address.wrapping_sub(1);
    let mut is_in = 0;
    for code in &LOCK_CODE_AT {
        let code = global::read(code);
        if code.len == 0 {
            break;
        }
        is_in |= is_less(at.wrapping_sub(code.start), code.len);
    }
    is_in != 0
}

/// 1 if `left < right`: what a subtraction borrows.
#[inline(always)]
fn is_less(left: u64, right: u64) -> u64 {
    ((!left & right) | ((!left | right) & left.wrapping_sub(right))) >> 63
}

/// The same, but no verifier knows which: it would go on apart for each constant that a value
/// may be.
#[inline(always)]
fn hidden(value: u64) -> u64 {
    // SAFETY: no preconditions. No CPU has such a number.
    value + u64::from(unsafe { bpf_get_smp_processor_id() } >> 31)
}

#[inline(always)]
fn is_in_tracer(at: u64) -> bool {
    global!(COUNT_CONFIG.tracers) != 0 && TRACERS.get_ptr(at >> 12).is_some()
}

/// True if the running task is of this thread group.
#[inline(always)]
fn is_of(tgid: u32) -> bool {
    (bpf_get_current_pid_tgid() >> 32) as u32 == tgid
}

/// True for the tasks that were asked for, if any were.
#[inline(always)]
fn is_task_wanted() -> bool {
    let mut is_wanted = true;
    if global!(WANTED.pid_count) != 0 {
        let ids = bpf_get_current_pid_tgid();
        is_wanted = is_one(global!(WANTED.pid_count), |index| {
            let pid = global::read(&WANTED.pids[index]);
            pid == ids as u32 || pid == (ids >> 32) as u32
        });
    }
    if global!(WANTED.cgroup_count) != 0 {
        // SAFETY: no preconditions.
        let id = unsafe { bpf_get_current_cgroup_id() };
        is_wanted &= is_one(global!(WANTED.cgroup_count), |index| {
            global::read(&WANTED.cgroups[index]) == id
        });
    }
    if global!(WANTED.comm_count) != 0 {
        let mut comm = [0u64; COMM_LEN / 8];
        // SAFETY: the length is that of the buffer.
        unsafe { bpf_get_current_comm(comm.as_mut_ptr().cast(), COMM_LEN as u32) };
        is_wanted &= is_one(global!(WANTED.comm_count), |index| {
            let wanted = global::read(&WANTED.comms[index]);
            wanted[0] == comm[0] && wanted[1] == comm[1]
        });
    }
    is_wanted
}

#[inline(always)]
fn is_class_wanted(class: u64) -> bool {
    let count = global!(WANTED.class_count);
    count == 0 || is_one(count, |index| global::read(&WANTED.classes[index]) == class)
}

#[inline(always)]
fn is_caller_wanted(return_address: u64) -> bool {
    let count = global!(WANTED.caller_count);
    count == 0
        || is_one(count, |index| {
            let code = global::read(&WANTED.callers[index]);
            return_address.wrapping_sub(1).wrapping_sub(code.start) < code.len
        })
}

#[inline(always)]
fn is_one(count: u32, is_it: impl Fn(usize) -> bool) -> bool {
    for index in 0..WANTED_MAX {
        if index as u32 >= count {
            return false;
        }
        if is_it(index) {
            return true;
        }
    }
    false
}

#[inline(always)]
pub(crate) fn count_lost(which: u32) {
    if let Some(value) = COUNTS_LOST.get_ptr_mut(which) {
        // SAFETY: this CPU's own slot.
        unsafe { *value += 1 };
    }
}
