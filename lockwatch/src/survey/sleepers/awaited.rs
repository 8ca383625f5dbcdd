//! What sleepers wait for that no lock and no daemon tells.

use std::time::{Duration, Instant};

use rustc_hash::{FxHashMap, FxHashSet};

use super::{
    queues::{Queued, Queues},
    server,
};
use crate::{
    daemon::ConnectionAddr,
    figures::Count,
    kernel::{
        layout::Layout,
        memory::{KernelMemory, MemoryError},
    },
    sleeper::{Awaited, Queue, Sleeper},
    survey::{Survey, device, functions::Functions, look::Look},
    task::{BlockDevice, StuckClass},
};

/// How long devices and servers are asked for: each task's stack has to be gone through.
const PATIENCE: Duration = Duration::from_millis(100);
/// … of so many at least, the longest sleepers first: whether a few tasks are told as one group
/// must not depend on how fast a machine is.
const ASKED_MIN: usize = 32;

/// Says of the sleepers of a survey which device, server, wait queue, completion or bit they
/// wait for, as far as something points back at them. The look is the survey's last one.
///
/// # Errors
/// When kernel memory cannot be read at all.
pub(in crate::survey) fn describe(
    survey: &mut Survey,
    look: &Look,
    layout: &Layout,
    functions: &mut Functions<'_>,
    memory: &mut dyn KernelMemory,
) -> Result<(), MemoryError> {
    let is_open = |sleeper: &Sleeper| {
        matches!(sleeper.awaits, Awaited::Function(_) | Awaited::Unknown)
            && sleeper.stuck.class != StuckClass::Lock
    };
    let tasks = look.by_key();
    let daemons = survey.daemons.iter();
    let connections: Vec<ConnectionAddr> = daemons.map(|daemon| daemon.connection).collect();
    let mut open: Vec<(&mut Sleeper, usize)> = survey
        .sleepers
        .iter_mut()
        .filter(|sleeper| is_open(sleeper))
        .filter_map(|sleeper| {
            let index = *tasks.get(&sleeper.task.key)?;
            Some((sleeper, index))
        })
        .collect();
    if open.is_empty() {
        return Ok(());
    }
    let mut patience = Patience::from(Instant::now());
    let mut unasked: FxHashSet<usize> = FxHashSet::default();
    for (sleeper, index) in &mut open {
        let task = &look.tasks[*index];
        let is_network = sleeper.stuck.class == StuckClass::NetworkFs;
        let is_fuse = sleeper.stuck.class == StuckClass::Fuse;
        let is_device = sleeper.stuck.class == StuckClass::BlockIo || sleeper.io_wait;
        if !is_network && !is_fuse && !is_device {
            continue;
        }
        if !patience.allows_one(Instant::now()) {
            unasked.insert(*index);
            continue;
        }
        if is_network {
            if let Some(server) = server::of_task(look, task, layout, memory)? {
                sleeper.awaits = server;
            }
        } else if is_fuse {
            let connection = server::connection_of_task(look, task, layout, memory)?;
            if let Some(connection) = connection.filter(|it| connections.contains(it)) {
                sleeper.awaits = Awaited::Fuse(connection);
            }
        } else if let Some(name) = device::of_task(functions, look, task, layout, memory)? {
            sleeper.awaits = Awaited::Device(name.clone());
            sleeper.stuck.device = Some(BlockDevice {
                name,
                in_flight: None,
            });
        }
    }
    // Each call of a server has a queue of its own: of those that were not asked for it, the
    // function says more.
    open.retain(|(sleeper, index)| is_open(sleeper) && !unasked.contains(index));
    if let Some(layout) = &layout.waits {
        let mut queues = Queues {
            look,
            layout,
            symbols: functions.symbols(),
            memory,
        };
        let asked: Vec<usize> = open.iter().map(|(_, index)| *index).collect();
        let found = queues.of_tasks(&asked)?;
        say_queues(open, &found);
    }
    if !unasked.is_empty() {
        survey.degraded.push(format!(
            "which block device or server {} was not asked: too many do",
            Count::of(unasked.len()).nouns("more task waits for", "more tasks wait for")
        ));
    }
    Ok(())
}

/// Whether there is time to ask for one more.
struct Patience {
    until: Instant,
    asked: usize,
}

impl Patience {
    fn from(now: Instant) -> Self {
        Self {
            until: now + PATIENCE,
            asked: 0,
        }
    }

    fn allows_one(&mut self, now: Instant) -> bool {
        let allows = self.asked < ASKED_MIN || now < self.until;
        self.asked += usize::from(allows);
        allows
    }
}

/// Those that wait for the same have the same function: the longest sleeper's. Two bits of
/// one byte, such as a page's lock and its write-back, are shown apart by their functions.
fn say_queues(open: Vec<(&mut Sleeper, usize)>, found: &FxHashMap<usize, Queued>) {
    let mut functions: FxHashMap<Queued, String> = FxHashMap::default();
    for (sleeper, index) in open {
        let Some(&queued) = found.get(&index) else {
            continue;
        };
        let function = match &sleeper.awaits {
            Awaited::Function(function) => function.clone(),
            _ => String::new(),
        };
        let function = functions.entry(queued).or_insert(function).clone();
        sleeper.awaits = Awaited::Queue(Queue {
            kind: queued.kind,
            address: queued.address,
            bit: queued.bit,
            function,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_are_asked_however_slow_the_machine_is() {
        let now = Instant::now();
        let late = now + 2 * PATIENCE;
        let mut slow = Patience::from(now);
        let asked = (0..100).filter(|_| slow.allows_one(late)).count();
        assert_eq!(asked, ASKED_MIN);
        let mut quick = Patience::from(now);
        assert!((0..1_000).all(|_| quick.allows_one(now)));
        assert!(!quick.allows_one(late));
    }
}
