//! One look: every task with its stack, at one moment.

use std::{cell::OnceCell, ops::Range, rc::Rc};

use lockwatch_ebpf::survey::{FRAMES_AS_BEFORE, TaskRecord};
use rustc_hash::{FxHashMap, FxHashSet};
use zerocopy::{FromBytes, IntoBytes};

use crate::{
    kernel::{
        arch::{ENTRY_FRAME_LEN, PT_REGS_LEN, is_image_address, is_kernel_address},
        memory::comm,
    },
    survey::{
        asking::{Asking, Extent},
        functions::Functions,
        stack::{Frame, align},
    },
    task::{TaskKey, TaskName, TaskState, Tgid, Tid},
};

/// A task as one look saw it.
#[derive(Clone, Debug)]
pub(super) struct TaskLook {
    /// The kernel's facts.
    pub(super) record: TaskRecord,
    /// Who.
    pub(super) name: TaskName,
    /// What the scheduler says.
    pub(super) state: TaskState,
    /// Return addresses with their places, innermost first; equal stacks share them.
    pub(super) frames: Rc<[Frame]>,
    /// Kept by [`Asking::of`].
    pub(super) asking: OnceCell<Extent>,
    /// Kept by [`Asking::slow_path_of`]: the return address into it.
    pub(super) slow_path: OnceCell<Option<u64>>,
    words: Range<usize>,
}

/// Every task, at one moment.
#[derive(Debug)]
pub(super) struct Look {
    /// The live words of all stacks.
    words: Vec<u64>,
    /// All tasks.
    pub(super) tasks: Vec<TaskLook>,
    by_address: FxHashMap<u64, usize>,
    /// The tasks of each address space, by its address.
    by_mm: OnceCell<Vec<(u64, u32)>>,
    by_tid: OnceCell<FxHashMap<Tid, usize>>,
    stack_bases: Vec<u64>,
    thread_size: u64,
    /// `CLOCK_MONOTONIC` ns of the last task read.
    pub(super) at_ns: u64,
    /// The kernel's jiffies then.
    pub(super) jiffies: u64,
}

/// A look whose tasks are being read.
pub(super) struct Looking<'a> {
    words: Vec<u64>,
    tasks: Vec<TaskLook>,
    thread_size: u32,
    /// The look before this one, where that is of the same survey.
    earlier: Option<&'a Look>,
    /// Its next task, if none has gone and none has come.
    next: usize,
    /// All that were met.
    frames: FxHashSet<Rc<[Frame]>>,
    /// Of the task that is being read: kept for its memory.
    aligned: Vec<Frame>,
}

/// Words by which the memory for stacks grows at least.
const GROWTH: usize = 1 << 17;

impl<'a> Looking<'a> {
    /// The words of stacks are put into this memory, whatever is in it.
    pub(super) fn new(thread_size: u32, memory: Vec<u64>, earlier: Option<&'a Look>) -> Self {
        let mut words = memory;
        words.clear();
        Self {
            words,
            tasks: Vec::new(),
            thread_size,
            earlier,
            next: 0,
            frames: FxHashSet::default(),
            aligned: Vec::new(),
        }
    }

    /// Some more records of the task iterator. What follows a record that does not fit is
    /// left out: the kernel writes whole records only.
    pub(super) fn take(&mut self, records: &[u64]) {
        let mut at = 0;
        while let Ok((record, _)) = TaskRecord::read_from_prefix(records[at..].as_bytes()) {
            let frames = at + size_of::<TaskRecord>() / 8;
            let as_before = record.frame_count == FRAMES_AS_BEFORE;
            let frame_count = if as_before { 0 } else { record.frame_count };
            let words = frames + frame_count as usize;
            let end = words + record.stack_len as usize / 8;
            if end > records.len() {
                break;
            }
            // The registers of user space lie on top; they can hold anything.
            let live = u64::from(self.thread_size)
                .saturating_sub(u64::from(record.stack_offset) + PT_REGS_LEN + ENTRY_FRAME_LEN)
                / 8;
            let live = end.min(words + usize::try_from(live).unwrap_or(0));
            self.task(record, &records[frames..words], &records[words..live]);
            at = end;
        }
    }

    fn task(&mut self, record: TaskRecord, unwound: &[u64], words: &[u64]) {
        let start = self.words.len();
        if self.words.capacity() - start < words.len() {
            // Not to twice its size: that is most of the memory of a survey.
            self.words
                .reserve_exact(words.len().max(start / 8).max(GROWTH));
        }
        self.words.extend_from_slice(words);
        // A task on a CPU, or one that moved, was unwound from a stack pointer that
        // no longer means anything.
        let at_rest = record.on_cpu == 0 && record.moved == 0;
        let frames = self.share(if at_rest { unwound } else { &[] }, words);
        let mut task = TaskLook {
            name: TaskName {
                key: TaskKey {
                    tid: Tid(record.tid),
                    start_ns: record.start_time_ns,
                },
                tgid: Tgid(record.tgid),
                comm: comm(&record.comm),
            },
            state: TaskState::decode(
                record.state,
                record.exit_state,
                record.on_cpu != 0,
                record.on_rq != 0,
            ),
            frames,
            asking: OnceCell::new(),
            slow_path: OnceCell::new(),
            words: start..self.words.len(),
            record,
        };
        if record.frame_count == FRAMES_AS_BEFORE
            && let Some(then) = self.then(&task)
            && task.stands_as(then, words)
        {
            task.frames = Rc::clone(&then.frames);
            task.asking = then.asking.clone();
            task.slow_path = then.slow_path.clone();
        }
        self.tasks.push(task);
    }

    /// Where the words of a stack have its unwound return addresses.
    fn share(&mut self, unwound: &[u64], words: &[u64]) -> Rc<[Frame]> {
        self.aligned.clear();
        self.aligned.extend(align(unwound, words));
        if let Some(frames) = self.frames.get(self.aligned.as_slice()) {
            return Rc::clone(frames);
        }
        let frames: Rc<[Frame]> = self.aligned.as_slice().into();
        self.frames.insert(Rc::clone(&frames));
        frames
    }

    /// The same task in the look before.
    fn then(&mut self, task: &TaskLook) -> Option<&'a TaskLook> {
        let earlier = self.earlier?;
        let is_it = |then: &&TaskLook| then.record.task == task.record.task;
        if earlier.tasks.get(self.next).filter(is_it).is_none() {
            self.next = earlier.task_at(task.record.task)?;
        }
        self.next += 1;
        earlier.tasks.get(self.next - 1)
    }

    /// All tasks have been read.
    pub(super) fn end(self) -> Look {
        let Self {
            words,
            tasks,
            thread_size,
            ..
        } = self;
        let by_address = tasks
            .iter()
            .enumerate()
            .map(|(index, task)| (task.record.task, index))
            .collect();
        let mut stack_bases: Vec<u64> = tasks.iter().map(|task| task.record.stack_base).collect();
        stack_bases.sort_unstable();
        let last = tasks.last();
        Look {
            at_ns: last.map_or(0, |task| task.record.taken_at_ns),
            jiffies: last.map_or(0, |task| task.record.jiffies),
            words,
            tasks,
            by_address,
            by_mm: OnceCell::new(),
            by_tid: OnceCell::new(),
            stack_bases,
            thread_size: thread_size.into(),
        }
    }
}

impl Look {
    /// A look from all records of the task iterator.
    #[cfg(test)]
    pub(super) fn decode(records: &[u64], thread_size: u32) -> Self {
        let mut looking = Looking::new(thread_size, Vec::new(), None);
        looking.take(records);
        looking.end()
    }

    /// The stack words of a task, from its innermost live one outwards.
    pub(super) fn words(&self, task: &TaskLook) -> &[u64] {
        &self.words[task.words.clone()]
    }

    /// The words of the functions that put the task to sleep, which the unwinder
    /// leaves out: from the stack pointer to the first frame. All of the stack where
    /// that is not known.
    pub(super) fn scheduler_words(&self, task: &TaskLook) -> &[u64] {
        let words = self.words(task);
        match task.frames.first() {
            Some(first) if task.record.on_cpu == 0 => &words[..first.at.min(words.len())],
            _ => words,
        }
    }

    /// The words that can point at a structure of the kernel's, each once: at none of its
    /// image, and at none on a stack.
    pub(super) fn pointers(&self, words: &[u64]) -> Vec<u64> {
        let mut found: Vec<u64> = words
            .iter()
            .copied()
            .filter(|&word| is_kernel_address(word) && word.is_multiple_of(8))
            .filter(|&word| !is_image_address(word) && !self.in_a_stack(word))
            .collect();
        found.sort_unstable();
        found.dedup();
        found
    }

    /// Indexes into [`Self::tasks`], by task.
    pub(super) fn by_key(&self) -> FxHashMap<TaskKey, usize> {
        let tasks = self.tasks.iter().enumerate();
        tasks.map(|(index, task)| (task.name.key, index)).collect()
    }

    /// The task whose `task_struct` lies at this address.
    pub(super) fn task_at(&self, address: u64) -> Option<usize> {
        self.by_address.get(&address).copied()
    }

    /// The tasks that use the address space at this address, of which there is none at 0, in
    /// the order of the look.
    pub(super) fn users_of(&self, mm: u64) -> impl Iterator<Item = &TaskLook> {
        let by_mm = self.by_mm.get_or_init(|| {
            let tasks = self.tasks.iter().zip(0..);
            let used = tasks.map(|(task, index)| (task.record.mm, index));
            let mut by_mm: Vec<(u64, u32)> = used.filter(|(mm, _)| *mm != 0).collect();
            by_mm.sort_unstable();
            by_mm
        });
        let first = by_mm.partition_point(|(other, _)| *other < mm);
        by_mm[first..]
            .iter()
            .take_while(move |(other, _)| *other == mm)
            .map(|&(_, index)| &self.tasks[index as usize])
    }

    /// The thread with this id.
    pub(super) fn thread(&self, tid: Tid) -> Option<&TaskLook> {
        let by_tid = self.by_tid.get_or_init(|| {
            let tasks = self.tasks.iter().enumerate().rev();
            tasks
                .map(|(index, task)| (task.name.key.tid, index))
                .collect()
        });
        by_tid.get(&tid).map(|&index| &self.tasks[index])
    }

    /// Keeps of each stack only what the task asks for a lock on, if it does: all that
    /// counts once a look has been gone through. Gives the memory of all stacks.
    pub(super) fn forget_callers(&mut self, functions: &mut Functions<'_>) -> Vec<u64> {
        let mut asked =
            |task| Asking::of(functions, self, task).map_or(&[][..], |asking| asking.words);
        let mut kept = Vec::with_capacity(self.tasks.iter().map(|task| asked(task).len()).sum());
        let mut places = Vec::with_capacity(self.tasks.len());
        for task in &self.tasks {
            let start = kept.len();
            kept.extend_from_slice(asked(task));
            places.push(start..kept.len());
        }
        for (task, place) in self.tasks.iter_mut().zip(places) {
            task.words = place;
        }
        std::mem::replace(&mut self.words, kept)
    }

    /// As if this task had come after the look.
    #[cfg(test)]
    pub(super) fn forget(&mut self, task: u64) {
        self.by_address.remove(&task);
    }

    /// Bytes of a kernel stack.
    pub(super) const fn thread_size(&self) -> u64 {
        self.thread_size
    }

    /// Whether the address lies in the kernel stack of a task.
    pub(super) fn in_a_stack(&self, address: u64) -> bool {
        let after = self.stack_bases.partition_point(|&base| base <= address);
        after > 0 && address - self.stack_bases[after - 1] < self.thread_size
    }
}

impl TaskLook {
    /// Address of a word of this task's stack.
    pub(super) const fn word_address(&self, index: usize) -> u64 {
        self.record.stack_base + self.record.stack_offset as u64 + 8 * index as u64
    }

    /// Is at rest where it was at rest in an earlier look, and has not run in between: all
    /// that it has itself put on its stack, of which these are the words, is the same.
    fn stands_as(&self, then: &Self, words: &[u64]) -> bool {
        let at_rest = |task: &Self| task.record.on_cpu == 0 && task.record.moved == 0;
        let place = |task: &Self| (task.record.stack_base, task.record.stack_offset);
        let mut frames = then.frames.iter();
        at_rest(self)
            && at_rest(then)
            && self.stood_still_since(then)
            && place(self) == place(then)
            && frames.all(|frame| words.get(frame.at) == Some(&frame.return_address))
    }

    /// Did not run, and is the same task, between two looks.
    pub(super) fn stood_still_since(&self, earlier: &Self) -> bool {
        let (now, then) = (&self.record, &earlier.record);
        self.name.key == earlier.name.key
            && now.moved == 0
            && then.moved == 0
            && (now.nvcsw, now.nivcsw, now.sp) == (then.nvcsw, then.nivcsw, then.sp)
    }
}
