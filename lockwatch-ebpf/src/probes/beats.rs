//! Samples of each CPU by its own timer.

use core::{
    ffi::c_void,
    mem,
    sync::atomic::{Ordering, compiler_fence},
};

use aya_ebpf::{
    EbpfContext as _,
    helpers::generated::{
        bpf_get_current_task, bpf_get_smp_processor_id, bpf_get_stack, bpf_ktime_get_ns,
        bpf_probe_read_kernel,
    },
    macros::{map, perf_event, raw_tracepoint},
    maps::{Array, HashMap, PerCpuArray},
    programs::{PerfEventContext, RawTracePointContext},
};
use lockwatch_ebpf::{
    Member,
    beats::{
        Beat, BeatConfig, BeatStack, FRAMES_MAX, MAX_RT_PRIO, NeedResched, STACKS_MAX, Sampled,
        StackKey, mode, resched,
    },
    survey::{COMM_LEN, TaskLayout},
};

use super::{
    access::{Access as _, Word},
    global::global,
};

#[unsafe(no_mangle)]
// SAFETY: plain integers, for which zero means "absent".
static TASK_LAYOUT: TaskLayout = unsafe { mem::zeroed() };

#[unsafe(no_mangle)]
// SAFETY: plain integers; gaps of zero count no time at all.
static BEAT_CONFIG: BeatConfig = unsafe { mem::zeroed() };

/// By number of the CPU; as many as the loader finds possible.
#[map]
static BEATS: Array<Beat> = Array::with_max_entries(1, 0);

/// `CLOCK_MONOTONIC` ns of each CPU's last step towards online or offline. Apart from the
/// beats, for it is another CPU that takes some of those steps.
#[map]
static HOTPLUGGED: Array<u64> = Array::with_max_entries(1, 0);

/// Preallocated: an interrupt must not allocate.
#[map]
static BEAT_STACKS: HashMap<StackKey, BeatStack> = HashMap::with_max_entries(STACKS_MAX, 0);

/// A stack under construction.
#[map]
static STACK: PerCpuArray<BeatStack> = PerCpuArray::with_max_entries(1, 0);

/// Which bit says that a reschedule is pending.
#[map]
static NEED_RESCHED: Array<NeedResched> = Array::with_max_entries(1, 0);

/// `PERF_COUNT_SW_CPU_CLOCK` of one CPU, for all tasks, 5.10+ (kernel/events/core.c,
/// `perf_swevent_hrtimer`).
///
/// Runs in the hard interrupt of a high-resolution timer of that CPU, in idle and nohz CPUs
/// as well. Cost: about 1 µs a sample, some more while a stack is kept. Emits nothing, keeps
/// the CPU's slot.
///
/// Blind: the kernel leaves the program out on a CPU that is inside of another one attached
/// to a kprobe, a plain tracepoint or a perf event, or inside of a system call that changes
/// a map (`bpf_prog_active`); not inside of raw_tp, tp_btf, fentry or fexit programs, on any
/// version from 5.10 on. Code that runs with interrupts off is seen as a gap.
#[perf_event]
fn beat(ctx: PerfEventContext) -> u32 {
    // SAFETY: no preconditions.
    let (cpu, at_ns, task) = unsafe {
        (
            bpf_get_smp_processor_id(),
            bpf_ktime_get_ns(),
            bpf_get_current_task(),
        )
    };
    let Some(beat) = BEATS.get_ptr_mut(cpu) else {
        return 0;
    };
    let config = global!(BEAT_CONFIG);
    let sampled = sample(&ctx, at_ns, task);
    // SAFETY: only this CPU's own timer writes the slot, and it is not interrupted by itself.
    let beat = unsafe { &mut *beat };
    let number = beat.begun.wrapping_add(1);
    // SAFETY: a valid reference. Volatile, and so in this order, which x86 keeps.
    unsafe { (&raw mut beat.begun).write_volatile(number) };
    compiler_fence(Ordering::SeqCst);
    beat.sampled(&sampled, &config);
    let run = *beat.run();
    if run.samples > 1 && run.counted_ns >= config.stacks_after_ns {
        keep_stack(&ctx, cpu, run.since_ns, beat);
    }
    compiler_fence(Ordering::SeqCst);
    // SAFETY: as above.
    unsafe { (&raw mut beat.done).write_volatile(number) };
    0
}

#[inline(always)]
fn sample(ctx: &PerfEventContext, at_ns: u64, task: u64) -> Sampled {
    let task = Word(task);
    macro_rules! field {
        ($name:ident) => {{
            let member = global!(TASK_LAYOUT.$name);
            // SAFETY: the layout describes `task_struct` of this kernel.
            unsafe { task.load(member) }
        }};
    }
    // SAFETY: the context begins with the registers of what was interrupted; the verifier
    // allows whole words of them.
    let (ip, code_segment, sp) = unsafe {
        let regs = &raw const (*ctx.ctx).regs;
        (
            (&raw const (*regs).rip).read_volatile(),
            (&raw const (*regs).cs).read_volatile(),
            (&raw const (*regs).rsp).read_volatile(),
        )
    };
    let tid = field!(pid) as u32;
    let mut sampled = Sampled {
        at_ns,
        task: task.0,
        start_time_ns: field!(start_time),
        switches: field!(nvcsw).wrapping_add(field!(nivcsw)),
        ip,
        sp,
        tid,
        tgid: field!(tgid) as u32,
        mode: if code_segment & USER_RPL != 0 {
            mode::USER
        } else if tid == 0 {
            mode::IDLE
        } else {
            mode::KERNEL
        },
        resched: pending(task),
        comm: [0; COMM_LEN],
    };
    // SAFETY: the buffer has COMM_LEN bytes.
    let _ = unsafe {
        bpf_probe_read_kernel(
            sampled.comm.as_mut_ptr().cast::<c_void>(),
            COMM_LEN as u32,
            (task.0 + u64::from(global!(TASK_LAYOUT.comm).offset)) as *const c_void,
        )
    };
    sampled
}

/// Privilege level in a code segment: not 0 in user mode (arch/x86/include/asm/ptrace.h).
const USER_RPL: u64 = 3;

#[inline(always)]
fn pending(task: Word) -> u32 {
    let mask = NEED_RESCHED
        .get_ptr(0)
        // SAFETY: an aligned load from a map value.
        .map_or(0, |learned| unsafe {
            (&raw const (*learned).mask).read_volatile()
        });
    let member: Member = global!(BEAT_CONFIG.task_flags);
    if mask == 0 || member == Member::ABSENT {
        return resched::UNKNOWN;
    }
    // SAFETY: the layout describes `task_struct` of this kernel.
    if unsafe { task.load(member) } & mask != 0 {
        resched::PENDING
    } else {
        resched::NO
    }
}

/// Counts the stack of this sample as one of the run.
#[inline(always)]
fn keep_stack(ctx: &PerfEventContext, cpu: u32, run_since_ns: u64, beat: &mut Beat) {
    let Some(stack) = STACK.get_ptr_mut(0) else {
        return;
    };
    // SAFETY: this CPU's own, and interrupts are off.
    let stack = unsafe { &mut *stack };
    stack.frames = [0; FRAMES_MAX];
    // SAFETY: the buffer is as long as said.
    let len = unsafe {
        bpf_get_stack(
            ctx.as_ptr(),
            stack.frames.as_mut_ptr().cast(),
            (FRAMES_MAX * 8) as u32,
            0,
        )
    };
    if len <= 0 {
        beat.lost_stacks += 1;
        return;
    }
    let mut digest = 1u64;
    for frame in &stack.frames {
        digest = (digest ^ frame)
            .wrapping_mul(0x0100_0000_01b3)
            .rotate_left(17);
    }
    let key = StackKey {
        digest,
        cpu,
        _pad: 0,
    };
    if let Some(kept) = BEAT_STACKS.get_ptr_mut(key) {
        // SAFETY: the CPU is in the key, and only it writes; user space only takes out.
        let kept = unsafe { &mut *kept };
        if kept.run_since_ns == run_since_ns {
            kept.count += 1;
        } else {
            kept.count = 1;
            kept.run_since_ns = run_since_ns;
        }
        return;
    }
    stack.run_since_ns = run_since_ns;
    stack.count = 1;
    stack.frame_count = len as u32 / 8;
    // Handed over where it is: it is too long for the program's own stack.
    let stack: &BeatStack = stack;
    match BEAT_STACKS.insert(key, stack, 0) {
        Ok(()) => beat.kept_stacks += 1,
        Err(_) => beat.lost_stacks += 1,
    }
}

/// Tracepoint `sched_wakeup(struct task_struct *p)`, 5.10+, until which bit means a pending
/// reschedule is learned.
///
/// Macros are not in the types that a kernel shows, and the number of this bit has changed.
/// But where a task is woken that goes before the current one for sure, that has just been
/// marked (kernel/sched/core.c, `check_preempt_curr` to 6.6, then `wakeup_preempt`, before
/// `trace_sched_wakeup`), and not lazily: any task before the idle one, and one of a
/// real-time or the stop class before another. Runs under a run-queue lock. Cost: four reads
/// a wake-up. Emits nothing.
#[raw_tracepoint(tracepoint = "sched_wakeup")]
fn learn_need_resched(ctx: RawTracePointContext) -> i32 {
    macro_rules! field {
        ($task:ident, $layout:ident.$name:ident) => {{
            let member = global!($layout.$name);
            // SAFETY: the layout describes `task_struct` of this kernel.
            unsafe { $task.load(member) }
        }};
    }
    // SAFETY: no preconditions.
    let (current, cpu) = unsafe {
        (
            Word(bpf_get_current_task()),
            u64::from(bpf_get_smp_processor_id()),
        )
    };
    let woken = Word(ctx.arg(0));
    // On another CPU it marks another task.
    if field!(woken, TASK_LAYOUT.cpu) != cpu {
        return 0;
    }
    // A task of the deadline class has -1.
    let is_ordinary = |prio: u64| (MAX_RT_PRIO..2 * MAX_RT_PRIO).contains(&prio);
    let goes_before = field!(current, TASK_LAYOUT.pid) == 0
        || (field!(woken, BEAT_CONFIG.task_prio) < MAX_RT_PRIO
            && is_ordinary(field!(current, BEAT_CONFIG.task_prio)));
    if !goes_before {
        return 0;
    }
    let flags = field!(current, BEAT_CONFIG.task_flags);
    if let Some(learned) = NEED_RESCHED.get_ptr_mut(0) {
        // SAFETY: CPUs may lose each other's steps, and then it takes longer.
        unsafe { (*learned).woken(flags) };
    }
    0
}

/// Tracepoint `cpuhp_enter(unsigned int cpu, int target, int idx, int (*fun)(unsigned
/// int))`, 4.6+: each step of a CPU towards online or offline, at suspend and resume too.
///
/// The kernel takes a CPU's events away when it goes offline and does not give them back.
/// Cost: nothing, but for some hundred steps of a CPU that comes or goes. Emits nothing.
#[raw_tracepoint(tracepoint = "cpuhp_enter")]
fn hotplug(ctx: RawTracePointContext) -> i32 {
    let cpu: u64 = ctx.arg(0);
    if let Some(at) = HOTPLUGGED.get_ptr_mut(cpu as u32) {
        // SAFETY: an aligned store to a map value; no preconditions for the time.
        unsafe { at.write_volatile(bpf_ktime_get_ns()) };
    }
    0
}
