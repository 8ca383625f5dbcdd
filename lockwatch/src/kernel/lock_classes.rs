//! What contains a lock, as the programs that count waits in the kernel find it out; and
//! where the code of the locks themselves lies.
//!
//! The programs read a pointer in what the lock would be part of, and look whether it leads
//! back. The survey tells more of one lock, in more steps, see `survey::names`. They also keep
//! what tells an object from another one that lay there before: memory is used again.

use std::ops::Range;

use lockwatch_ebpf::{
    counts::{CLASSES, ClassRule, LOCK_CODE},
    long_holds::{self, OBJECT_WORDS, ObjectWord, ROWS},
    stream::flags,
};

use super::{
    arch::PAGE_SIZE,
    layout::Layout,
    locks::{locks_a_pipe, locks_a_vma},
    sleep_frames::{ASK_FOR_OTHERS, is_lock_function, is_trampoline},
    symbols::Symbols,
};
use crate::lock::{LockClass, LockKind};

/// How each class is recognised: rule n is class n + 1 to the programs.
pub fn rules(layout: &Layout) -> Vec<(ClassRule, LockClass)> {
    let mut rules = Vec::new();
    let back = |lock: u64, pointer: u64, back: u64| ClassRule {
        lock,
        pointer,
        hop: ClassRule::NONE,
        back,
        same: ClassRule::NONE,
        flags: 0,
        mask: flags::MUTEX | flags::PERCPU,
    };
    let mut add = |rule, class| rules.push((rule, class));
    // mm->owner->mm == mm: not of one that is being made (fork, exec). Always the first
    // (`MMAP_LOCK`), for whoever knows the class already.
    let of_mm = |owner| ClassRule {
        hop: layout.task.mm.offset.into(),
        ..back(layout.mm.mmap_lock, owner, 0)
    };
    let of_mm = layout.mm.owner.map_or(ClassRule::ABSENT, of_mm);
    add(of_mm, LockClass::MmapLock);
    // inode->i_data.host == inode
    let inode = &layout.inode;
    let of_inode = [
        (inode.i_rwsem, LockClass::InodeRwsem),
        (inode.invalidate_lock, LockClass::InvalidateLock),
        (inode.mmap_rwsem, LockClass::InodeMmapRwsem),
    ];
    for (lock, class) in of_inode {
        if let Some((lock, host)) = lock.zip(inode.host) {
            add(back(lock, host, 0), class);
        }
    }
    // anon_vma->root == anon_vma: the lock that is taken is the root's.
    if let Some(anon_vma) = layout.anon_vma {
        add(back(anon_vma.rwsem, anon_vma.root, 0), LockClass::AnonVma);
    }
    // super_block->s_root->d_sb == super_block
    let super_block = &layout.super_block;
    if let Some(root) = super_block.root {
        let of_super_block = |lock| ClassRule {
            hop: layout.dentry.sb,
            ..back(lock, root, 0)
        };
        add(of_super_block(super_block.s_umount), LockClass::SuperUmount);
        let writers = super_block.writers.into_iter();
        let places = writers.flat_map(|writers| {
            let offsets = (0..writers.all).step_by(writers.one.max(1) as usize);
            offsets.map(move |offset| writers.locks + offset)
        });
        for place in places {
            let rule = ClassRule {
                flags: flags::PERCPU,
                ..of_super_block(place)
            };
            add(rule, LockClass::SuperWriters);
        }
    }
    // file->f_inode->i_mapping == file->f_mapping
    let file = &layout.file;
    if let Some(mapping) = file.mapping {
        let rule = ClassRule {
            hop: inode.mapping as u64,
            same: mapping,
            // On PREEMPT_RT a mutex is an rtmutex, and says so.
            mask: flags::PERCPU,
            ..back(file.pos_lock, file.inode, 0)
        };
        add(rule, LockClass::FilePosition);
    }
    rules.truncate(CLASSES);
    rules
}

/// The classes that rules tell, by their numbers, from 1.
pub fn classes(layout: &Layout) -> Vec<LockClass> {
    rules(layout).into_iter().map(|(_, class)| class).collect()
}

/// The words of the object around a lock by which it is told from one that lay there before,
/// by the number of the class. A class whose objects nothing tells apart has none.
pub fn object_words(layout: &Layout) -> [[ObjectWord; OBJECT_WORDS]; ROWS] {
    let mut rows = [[ObjectWord::ABSENT; OBJECT_WORDS]; ROWS];
    let (inode, super_block) = (&layout.inode, &layout.super_block);
    for (row, (rule, class)) in rows[1..].iter_mut().zip(rules(layout)) {
        // Its rule may be absent where its class is known all the same.
        let lock = match class {
            LockClass::MmapLock => layout.mm.mmap_lock,
            _ => rule.lock,
        };
        let word = |at: u64, mask| ObjectWord {
            at: at.wrapping_sub(lock),
            mask,
        };
        let all = |at| word(at, u64::MAX);
        let half = |at| word(at, u32::MAX.into());
        let words = match class {
            // Children have their parent's: their age tells them, see `survey::recent_holds`.
            LockClass::MmapLock => vec![layout.mm.start_stack.map(all)],
            LockClass::InodeRwsem | LockClass::InvalidateLock | LockClass::InodeMmapRwsem => vec![
                Some(all(inode.ino as u64)),
                Some(all(inode.sb as u64)),
                inode.generation.map(half),
            ],
            LockClass::SuperUmount => vec![
                Some(half(super_block.number as u64)),
                super_block.root.map(all),
            ],
            _ => Vec::new(),
        };
        for (slot, word) in row.iter_mut().zip(words.into_iter().flatten()) {
            *slot = word;
        }
    }
    rows
}

/// A number for what the numbers of classes mean here, and by what objects are told apart.
pub fn meaning(layout: &Layout) -> u64 {
    let mut meaning = u64::from(long_holds::RINGS);
    for (rule, class) in rules(layout) {
        for byte in class.to_string().bytes() {
            meaning = long_holds::mix(meaning, byte.into());
        }
        meaning = long_holds::mix(meaning, rule.lock);
    }
    for word in object_words(layout).iter().flatten() {
        meaning = long_holds::mix(meaning, word.at);
        meaning = long_holds::mix(meaning, word.mask);
    }
    meaning
}

/// The class of a lock that no rule tells, by the function that asks for it (its stem).
pub fn by_caller(kind: LockKind, caller: &str) -> LockClass {
    match kind {
        LockKind::Mutex | LockKind::RtMutex if locks_a_pipe(caller) => LockClass::Pipe,
        LockKind::Rwsem if locks_a_vma(caller) => LockClass::VmaLock,
        _ => LockClass::Unknown,
    }
}

/// The classes that are told by who asks for the lock, see [`by_caller`], and what remains when
/// nobody tells it: the stack of each wait has to be looked at for them.
pub const TOLD_BY_CALLERS: [LockClass; 3] =
    [LockClass::Pipe, LockClass::VmaLock, LockClass::Unknown];

/// Whether the class of this name is one of [`TOLD_BY_CALLERS`].
pub fn is_told_by_caller(name: &str) -> bool {
    TOLD_BY_CALLERS
        .iter()
        .any(|class| class.to_string() == name)
}

/// Whether a function, by its stem, is there because somebody traces: nobody asks for a lock
/// in it.
pub fn is_tracer(stem: &str) -> bool {
    is_trampoline(stem) || stem.starts_with("bpf_prog_")
}

/// Code between whose bounds all of the locks' own functions lie
/// (include/asm-generic/vmlinux.lds.h, `SCHED_TEXT`, `LOCK_TEXT`; 2.6–7.3).
const BOUNDS: [(&str, &str); 2] = [
    ("__sched_text_start", "__sched_text_end"),
    ("__lock_text_start", "__lock_text_end"),
];

/// Lock functions outside of these bounds: those that release, everywhere, and those of
/// kernel/locking/{semaphore,percpu-rwsem}.c on some kernels.
const OUTSIDE: [&str; 9] = [
    "up_read",
    "up_read_non_owner",
    "up_write",
    "down",
    "down_interruptible",
    "down_killable",
    "down_timeout",
    "percpu_down_write",
    "__percpu_down_read",
];

/// What lies between a lock function, or where it was inlined, and a program at one of its
/// tracepoints (include/trace/bpf_probe.h, include/linux/tracepoint.h, mm/mmap_lock.c).
const TRACING: [&str; 7] = [
    "bpf_trace_run2",
    "bpf_trace_run3",
    "bpf_trace_run4",
    "__bpf_trace_mmap_lock_released",
    "__traceiter_contention_end",
    "__traceiter_mmap_lock_released",
    "__mmap_lock_do_trace_released",
];

/// Whether a function, by its stem, is one of the locks' own, lies between one and a program
/// at its tracepoint, or asks for a lock on behalf of others.
pub fn is_lock_code(stem: &str) -> bool {
    // By this caller the class of the lock is told, see `by_caller`.
    let is_lock = is_lock_function(stem) && !locks_a_vma(stem);
    is_lock || OUTSIDE.contains(&stem) || TRACING.contains(&stem) || ASK_FOR_OTHERS.contains(&stem)
}

/// Numbers of the pages in which programs of tracers lie, and the trampolines that call
/// them: a hooked lock function is called from there, and not by its caller. One trampoline is
/// within a page; several may share one, never with code of others (kernel/bpf/trampoline.c,
/// kernel/bpf/core.c, 5.5–7.3).
pub fn tracer_pages(symbols: &Symbols) -> Vec<u64> {
    let mut pages = Vec::new();
    for range in symbols.ranges_where(is_tracer) {
        let last = range.end.min(range.start + PAGE_SIZE) - 1;
        pages.extend(range.start / PAGE_SIZE..=last / PAGE_SIZE);
    }
    pages.sort_unstable();
    pages.dedup();
    pages
}

/// The code of locks, and of what asks for them on behalf of others, by address: callers are
/// outside.
/// Without what finds no room the program names a function that is none's caller, but
/// never one that was not on the stack.
pub fn lock_code(symbols: &Symbols) -> Vec<Range<u64>> {
    let mut ranges: Vec<Range<u64>> = BOUNDS
        .iter()
        .filter_map(|&(start, end)| Some(symbols.address_of(start)?..symbols.address_of(end)?))
        .collect();
    let is_new = |ranges: &[Range<u64>], range: &Range<u64>| {
        !ranges.iter().any(|known| known.contains(&range.start))
    };
    for range in symbols.ranges_in_image_where(is_lock_code) {
        if is_new(&ranges, &range) {
            ranges.push(range);
        }
    }
    ranges.sort_unstable_by_key(|range| range.start);
    let mut joined: Vec<Range<u64>> = Vec::new();
    for range in ranges {
        match joined.last_mut() {
            Some(last) if last.end >= range.start => last.end = last.end.max(range.end),
            _ => joined.push(range),
        }
    }
    joined.sort_by_key(|range| std::cmp::Reverse(range.end - range.start));
    joined.truncate(LOCK_CODE);
    joined.sort_unstable_by_key(|range| range.start);
    joined
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_of_lock_code_are_in_order_whatever_their_lengths() {
        let text = "ffffffff81000000 T up_read\nffffffff81000010 T bystander\n\
            ffffffff82000000 T __sched_text_start\nffffffff82009000 T __sched_text_end\n\
            ffffffff83000000 T up_write\nffffffff83000800 T another\n";
        let symbols = Symbols::parse(text.to_owned()).expect("addresses");
        let image = 0xffff_ffff_8000_0000_u64;
        let at = |offset: u64, len: u64| image + offset..image + offset + len;
        let code = [
            at(0x100_0000, 0x10),
            at(0x200_0000, 0x9000),
            at(0x300_0000, 0x800),
        ];
        assert_eq!(lock_code(&symbols), code);
    }

    #[test]
    fn a_driver_with_pipes_of_its_own_is_no_pipe() {
        let by = |caller| by_caller(LockKind::Mutex, caller);
        assert_eq!(by("anon_pipe_write"), LockClass::Pipe);
        assert_eq!(by("pipe_config_set"), LockClass::Unknown);
        assert_eq!(by("fifo_reset"), LockClass::Unknown);
        assert_eq!(by_caller(LockKind::Rwsem, "pipe_read"), LockClass::Unknown);
    }
}
