//! Writers that wait without a queue entry: they have shut the lock for others already,
//! and wait for the readers that were in before.
//!
//! The lock itself names such a writer; the writer's stack says which lock that is.

use super::{Queue, Row};
use crate::{
    kernel::{
        arch::{is_image_address, is_kernel_address},
        layout::Layout,
        locks::{LockWord, PERCPU_DRAINS, RT_RWSEM_DRAINS, VMA_DRAINS, VmaLockLayout, WordLayout},
        memory::{KernelMemory, MemoryError, half_word, word},
    },
    lock::{LockAddr, LockKind},
    survey::{asking::Asking, functions::Functions, look::Look},
};

/// Adds the locks that only such a writer waits for. Those with a queue as well have it
/// already.
///
/// # Errors
/// When kernel memory cannot be read at all.
pub(in crate::survey) fn find(
    look: &Look,
    rows: &[Row],
    layout: &Layout,
    functions: &mut Functions<'_>,
    memory: &mut dyn KernelMemory,
    queues: &mut Vec<Queue>,
) -> Result<(), MemoryError> {
    let percpu = rows
        .iter()
        .find(|row| row.layout.kind == LockKind::PercpuRwsem)
        .map(|row| (row.layout.size, row.layout.word, 0));
    let rwsem = layout
        .locks
        .rt_rwsem
        .map(|rwsem| (rwsem.size, rwsem.word, rwsem.rtmutex as u64));
    for index in 0..look.tasks.len() {
        if !may_drain(look, functions, index) {
            continue;
        }
        let drains = [
            (PERCPU_DRAINS, percpu, LockKind::PercpuRwsem),
            (RT_RWSEM_DRAINS, rwsem, LockKind::Rwsem),
        ];
        for (stems, form, kind) in drains {
            let Some(form) = form else { continue };
            if let Some(words) = waits_in(look, functions, index, stems)
                && let Some(queue) = drained(look, index, words, form, kind, memory)?
            {
                add(queues, queue);
            }
        }
        if let Some(vma) = layout.locks.vma
            && let Some(words) = waits_in(look, functions, index, VMA_DRAINS)
            && let Some(queue) = drained_vma(look, index, words, vma, layout, functions, memory)?
        {
            add(queues, queue);
        }
    }
    Ok(())
}

/// Whether any word of the asking is of a function that drains a lock: of most tasks none is.
fn may_drain(look: &Look, functions: &mut Functions<'_>, index: usize) -> bool {
    let task = &look.tasks[index];
    if !task.state.is_asleep() {
        return false;
    }
    let Some(asking) = Asking::of(functions, look, task) else {
        return false;
    };
    let mut words = asking.words.iter().filter(|&&word| is_image_address(word));
    words.any(|&word| functions.drains(word))
}

fn add(queues: &mut Vec<Queue>, queue: Queue) {
    if queues.iter().all(|known| known.lock != queue.lock) {
        queues.push(queue);
    }
}

/// The words on which the task asks for a lock, if it does so in one of these functions.
fn waits_in<'a>(
    look: &'a Look,
    functions: &mut Functions<'_>,
    index: usize,
    stems: &[&str],
) -> Option<&'a [u64]> {
    let task = &look.tasks[index];
    if !task.state.is_asleep() {
        return None;
    }
    let asking = Asking::of(functions, look, task)?;
    let is_in = asking
        .functions(functions)
        .any(|(stem, _)| stems.contains(&stem));
    is_in.then_some(asking.words)
}

/// The one lock among these words that names the task as its draining writer.
fn drained(
    look: &Look,
    index: usize,
    words: &[u64],
    (size, layout, inner): (usize, WordLayout, u64),
    kind: LockKind,
    memory: &mut dyn KernelMemory,
) -> Result<Option<Queue>, MemoryError> {
    let candidates = pointers(look, words, inner);
    let reads: Vec<(u64, usize)> = candidates.iter().map(|&lock| (lock, size)).collect();
    let task = look.tasks[index].record.task;
    let mut found = candidates
        .iter()
        .zip(memory.read_batch(&reads)?)
        .filter_map(|(&lock, bytes)| Some((lock, layout.decode(&bytes?, false))))
        .filter(|(_, word)| word.drainer == task);
    let (Some((lock, word)), None) = (found.next(), found.next()) else {
        return Ok(None);
    };
    Ok(Some(Queue::of_drainer(look, LockAddr(lock), kind, word)))
}

/// The VMA of the task's own mm that it shuts to readers, where the mm names it as the
/// waiting writer.
fn drained_vma(
    look: &Look,
    index: usize,
    words: &[u64],
    vma_lock: VmaLockLayout,
    layout: &Layout,
    functions: &mut Functions<'_>,
    memory: &mut dyn KernelMemory,
) -> Result<Option<Queue>, MemoryError> {
    let VmaLockLayout::Refcount {
        refcnt,
        writer,
        vma_size,
    } = vma_lock
    else {
        return Ok(None);
    };
    let task = &look.tasks[index];
    let mm = task.record.mm;
    if mm == 0 || memory.read_u64(mm.wrapping_add(writer))? != Some(task.record.task) {
        return Ok(None);
    }
    let detaches = functions
        .stems(task)
        .iter()
        .take_while(|stem| VMA_DRAINS.contains(stem))
        .any(|stem| stem.contains("detach"));
    let candidates = pointers(look, words, 0);
    let reads: Vec<(u64, usize)> = candidates.iter().map(|&vma| (vma, vma_size)).collect();
    let mut found = candidates
        .iter()
        .zip(memory.read_batch(&reads)?)
        .filter_map(|(&vma, bytes)| {
            let bytes = bytes?;
            let count = half_word(&bytes, refcnt);
            let is_of_mm = word(&bytes, layout.fault.vma_mm) == mm;
            let decoded = LockWord::of_vma(count, detaches, task.record.task);
            (is_of_mm && decoded.drainer != 0).then_some((vma + refcnt as u64, decoded))
        });
    let (Some((lock, word)), None) = (found.next(), found.next()) else {
        return Ok(None);
    };
    Ok(Some(Queue::of_drainer(
        look,
        LockAddr(lock),
        LockKind::VmaLock,
        word,
    )))
}

/// Kernel addresses off the stacks among these words, and what lies `inner` bytes before.
fn pointers(look: &Look, words: &[u64], inner: u64) -> Vec<u64> {
    let mut pointers: Vec<u64> = words
        .iter()
        .copied()
        .filter(|&word| is_kernel_address(word) && word.is_multiple_of(8))
        .filter(|&word| !look.in_a_stack(word))
        .flat_map(|word| [word, word.wrapping_sub(inner)])
        .collect();
    pointers.sort_unstable();
    pointers.dedup();
    pointers
}
