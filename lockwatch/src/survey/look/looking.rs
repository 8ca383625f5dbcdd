//! Making a look of what the task iterator writes, as it comes.

use std::{cell::OnceCell, rc::Rc};

use lockwatch_ebpf::survey::{FRAMES_AS_BEFORE, TaskRecord};
use rustc_hash::FxHashSet;
use zerocopy::{FromBytes as _, IntoBytes as _};

use super::{Look, TaskLook};
use crate::{
    kernel::{
        arch::{ENTRY_FRAME_LEN, PT_REGS_LEN},
        memory::comm,
    },
    survey::stack::{Frame, align},
    task::{TaskKey, TaskName, TaskState, Tgid, Tid},
};

/// A look whose tasks are being read.
pub(in crate::survey) struct Looking<'a> {
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
    pub(in crate::survey) fn new(
        thread_size: u32,
        memory: Vec<u64>,
        earlier: Option<&'a Look>,
    ) -> Self {
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
    pub(in crate::survey) fn take(&mut self, records: &[u64]) {
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
    pub(in crate::survey) fn end(self) -> Look {
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
            by_key: OnceCell::new(),
            stack_bases,
            thread_size: thread_size.into(),
        }
    }
}

impl TaskLook {
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
}

#[cfg(test)]
mod tests {
    use zerocopy::FromZeros as _;

    use super::*;
    use crate::survey::image::as_words;

    const STACK: u64 = 0xffff_c900_0001_0000;
    const RETURNS: [u64; 2] = [0xffff_ffff_8100_0010, 0xffff_ffff_8100_0020];
    const THREAD_SIZE: u32 = 0x4000;

    /// A task at rest with two frames on its stack.
    fn resting(tid: u32) -> TaskRecord {
        let mut record = TaskRecord::new_zeroed();
        record.task = 0xffff_8880_0000_0000 + u64::from(tid) * 0x2000;
        record.tid = tid;
        record.start_time_ns = 7;
        record.nvcsw = 3;
        record.stack_base = STACK;
        record.stack_offset = 0x3000;
        record.stack_len = 32;
        record.frame_count = 2;
        record
    }

    fn written(record: &TaskRecord, stack: [u64; 4]) -> Vec<u64> {
        let mut words = as_words(record);
        if record.frame_count != FRAMES_AS_BEFORE {
            words.extend(RETURNS);
        }
        words.extend(stack);
        words
    }

    const WORDS: [u64; 4] = [1, RETURNS[0], 2, RETURNS[1]];

    /// The frames of a task that was unwound in the first look, and that the kernel says
    /// stands as it did.
    fn second(changed: impl FnOnce(&mut TaskRecord), stack: [u64; 4]) -> Vec<Frame> {
        let mut records = written(&resting(1), WORDS);
        records.extend(written(&resting(2), WORDS));
        let first = Look::decode(&records, THREAD_SIZE);
        assert!(Rc::ptr_eq(&first.tasks[0].frames, &first.tasks[1].frames));
        let mut again = resting(2);
        again.frame_count = FRAMES_AS_BEFORE;
        changed(&mut again);
        // The first task is gone, and one has come.
        let mut looking = Looking::new(THREAD_SIZE, vec![9; 64], Some(&first));
        looking.take(&written(&resting(3), WORDS));
        looking.take(&written(&again, stack));
        let look = looking.end();
        assert_eq!(look.tasks.len(), 2);
        assert_eq!(look.words(&look.tasks[0]), WORDS);
        assert_eq!(look.words(&look.tasks[1]), stack);
        assert_eq!(look.tasks[0].frames.len(), 2);
        look.tasks[1].frames.to_vec()
    }

    #[test]
    fn a_task_that_stands_as_before_keeps_its_frames() {
        let frames = second(|_| (), WORDS);
        assert_eq!(frames, align(&RETURNS, &WORDS).collect::<Vec<_>>());
        // What others write there is none of its return addresses.
        assert_eq!(second(|_| (), [5, RETURNS[0], 6, RETURNS[1]]), frames);
    }

    #[test]
    fn a_task_that_may_have_run_keeps_none() {
        let changes: [fn(&mut TaskRecord); 9] = [
            |record| record.nvcsw += 1,
            |record| record.nivcsw += 1,
            |record| record.sp += 8,
            |record| record.start_time_ns += 1,
            |record| record.task += 0x2000,
            |record| record.on_cpu = 1,
            |record| record.moved = 1,
            |record| record.stack_base += 0x4000,
            |record| record.stack_offset += 8,
        ];
        for (index, change) in changes.into_iter().enumerate() {
            assert_eq!(second(change, WORDS), [], "change {index}");
        }
        assert_eq!(second(|_| (), [1, RETURNS[0], 2, 3]), []);
    }
}
