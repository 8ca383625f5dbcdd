//! What the contention tracepoints said of some tasks, and the waits that makes: written
//! apart from lockwatch, to be compared with what it counts.

use std::collections::HashMap;

use anyhow::{Context, Result, ensure};
use aya::{
    Ebpf, EbpfLoader,
    maps::{MapData, PerCpuArray, RingBuf},
    programs::RawTracePoint,
};
use lockwatch_ebpf::tally::{Firing, RING_LEN};
use zerocopy::FromBytes as _;

static OBJECT: &[u8] = aya::include_bytes_aligned!("../object/tally.bpf.o");

/// include/trace/events/lock.h, the same since 5.19.
const SPIN: u32 = 1;
const READ: u32 = 2;
const MUTEX: u32 = 32;

/// The programs, attached. Dropped, they are gone.
pub struct Tally {
    ring: RingBuf<MapData>,
    firings: Vec<Firing>,
    lost: PerCpuArray<MapData, u64>,
    _ebpf: Ebpf,
}

impl std::fmt::Debug for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tally").finish_non_exhaustive()
    }
}

/// One wait that is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waited {
    /// For a mutex, not an rwsem or another lock.
    pub mutex: bool,
    /// For read.
    pub read: bool,
    /// How long, in ns.
    pub ns: u64,
}

impl Tally {
    /// Attaches them for the tasks whose name is `comm`, of fewer than 8 bytes.
    ///
    /// # Errors
    /// When the kernel refuses them, as one without these tracepoints does.
    pub fn attach(comm: &str) -> Result<Self> {
        Self::attach_with_room(comm, RING_LEN)
    }

    /// The same, with so many bytes for what was not taken yet: a storm fires millions of times a
    /// second, and who takes it waits for a CPU meanwhile.
    ///
    /// # Errors
    /// As above.
    pub fn attach_with_room(comm: &str, bytes: u32) -> Result<Self> {
        let mut start = [0; 8];
        ensure!(comm.len() < start.len(), "{comm} is too long");
        start[..comm.len()].copy_from_slice(comm.as_bytes());
        let start = u64::from_ne_bytes(start);
        let mut ebpf = EbpfLoader::new()
            .override_global("TALLY_COMM", &start, true)
            .map_max_entries("FIRINGS", bytes)
            .load(OBJECT)
            .context("the kernel refuses the tally object")?;
        // Ends first: none is seen whose begin is not.
        for (name, tracepoint) in [
            ("tally_end", "contention_end"),
            ("tally_begin", "contention_begin"),
        ] {
            let program = ebpf
                .program_mut(name)
                .with_context(|| format!("no {name}"))?;
            let program: &mut RawTracePoint = program.try_into()?;
            program.load()?;
            program.attach(tracepoint)?;
        }
        let mut map = |name: &str| ebpf.take_map(name).with_context(|| format!("no {name}"));
        let (firings, lost) = (map("FIRINGS")?, map("FIRINGS_LOST")?);
        Ok(Self {
            ring: RingBuf::try_from(firings)?,
            firings: Vec::new(),
            lost: PerCpuArray::try_from(lost)?,
            _ebpf: ebpf,
        })
    }

    /// Takes what has come out of the ring buffer, which has room for a million
    /// or as many as were asked for.
    ///
    /// # Errors
    /// When something is no firing.
    pub fn take(&mut self) -> Result<()> {
        while let Some(item) = self.ring.next() {
            let firing = Firing::read_from_bytes(&item);
            let firing = firing.map_err(|_| anyhow::anyhow!("a firing of another size"))?;
            self.firings.push(firing);
        }
        Ok(())
    }

    /// The waits so far; to be asked when no task waits any more.
    ///
    /// # Errors
    /// When a firing was lost: then nothing can be compared.
    pub fn waits(&mut self) -> Result<Vec<Waited>> {
        self.take()?;
        let lost: u64 = self.lost.get(&0, 0)?.iter().sum();
        ensure!(lost == 0, "{lost} firings found no room in the ring buffer");
        // Of several CPUs: the order in the buffer is that of the reservations.
        self.firings.sort_by_key(|firing| firing.at_ns);
        Ok(waits(&self.firings))
    }
}

/// A mutex may begin again, spinning and sleeping by turns, before its one end; every other
/// sleeping lock begins once. What only spins is a spinlock's.
fn waits(firings: &[Firing]) -> Vec<Waited> {
    let mut open: HashMap<(u32, u64), Firing> = HashMap::new();
    let mut waits = Vec::new();
    for firing in firings {
        let key = (firing.tid, firing.lock);
        if firing.is_end != 0 {
            if let Some(begin) = open.remove(&key) {
                waits.push(Waited {
                    mutex: begin.argument & MUTEX != 0,
                    read: begin.argument & READ != 0,
                    ns: firing.at_ns - begin.at_ns,
                });
            }
        } else if firing.argument & (SPIN | MUTEX) != SPIN {
            open.entry(key).or_insert(*firing);
        }
    }
    waits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mutex_that_begins_twice_is_one_wait() {
        let fire = |at_ns, argument, is_end| Firing {
            at_ns,
            lock: 1,
            tid: 2,
            argument,
            is_end,
            _pad: 0,
        };
        let firings = [
            fire(1, SPIN | MUTEX, 0),
            fire(2, MUTEX, 0),
            fire(5, 0, 1),
            fire(6, SPIN, 0),
            fire(7, 0, 1),
            fire(8, READ, 0),
            fire(9, 0, 1),
        ];
        let waited = |mutex, read, ns| Waited { mutex, read, ns };
        assert_eq!(
            waits(&firings),
            [waited(true, false, 4), waited(false, true, 1)]
        );
    }
}
