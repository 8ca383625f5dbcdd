//! One look: every task with its stack, at one moment.

mod looking;

use std::{cell::OnceCell, ops::Range, rc::Rc};

use lockwatch_ebpf::survey::TaskRecord;
use rustc_hash::FxHashMap;

pub(super) use self::looking::Looking;
use crate::{
    kernel::arch::{is_image_address, is_kernel_address},
    survey::{
        asking::{Asking, Extent},
        functions::Functions,
        stack::Frame,
    },
    task::{TaskKey, TaskName, TaskState, Tid},
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
    by_key: OnceCell<FxHashMap<TaskKey, usize>>,
    stack_bases: Vec<u64>,
    thread_size: u64,
    /// `CLOCK_MONOTONIC` ns of the last task read.
    pub(super) at_ns: u64,
    /// The kernel's jiffies then.
    pub(super) jiffies: u64,
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
    pub(super) fn by_key(&self) -> &FxHashMap<TaskKey, usize> {
        self.by_key.get_or_init(|| {
            let tasks = self.tasks.iter().enumerate();
            tasks.map(|(index, task)| (task.name.key, index)).collect()
        })
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

    /// Did not run, and is the same task, between two looks.
    pub(super) fn stood_still_since(&self, earlier: &Self) -> bool {
        let (now, then) = (&self.record, &earlier.record);
        self.name.key == earlier.name.key
            && now.moved == 0
            && then.moved == 0
            && (now.nvcsw, now.nivcsw, now.sp) == (then.nvcsw, then.nivcsw, then.sp)
    }
}
