//! Lock operations in the name of a task that did not ask for them, made and counted in
//! the kernel by the test object (`lockwatch-ebpf/src/probes/edge.rs`).

use std::{ffi::CStr, fmt};

use anyhow::{Context, Result, bail};
use aya::{
    Btf, Ebpf, EbpfLoader,
    maps::{Array, PerCpuArray},
};
use lockwatch_ebpf::edge::{EdgeConfig, counter, last};

use crate::hook;

static OBJECT: &[u8] = aya::include_bytes_aligned!("../../object/edge.bpf.o");

/// Where the programs take a task's own `mmap_lock`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Nowhere: they only count.
    Nowhere,
    /// Under the `mmap_lock` itself, where a page fault or a system call has it.
    UnderIt,
    /// Where the task is switched out: it is given back while another one runs, except
    /// on `PREEMPT_RT`, where it is not taken there.
    AtSwitch,
}

/// What functions can be watched with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Means {
    /// fentry and fexit.
    Functions,
    /// The tracepoints of `mmap_lock` alone, and the number of the argument `success`
    /// of `mmap_lock_acquire_returned`.
    Tracepoints {
        /// 2, or 3 up to 6.15.
        success_argument: u32,
    },
}

/// The programs, attached. Dropped, they are gone.
pub struct Agitator {
    means: Means,
    counters: PerCpuArray<aya::maps::MapData, u64>,
    last: Array<aya::maps::MapData, u64>,
    _ebpf: Ebpf,
}

impl fmt::Debug for Agitator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Agitator")
            .field("means", &self.means)
            .finish_non_exhaustive()
    }
}

/// What was counted, of the tasks with the comm only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Count {
    /// Locks asked for without waiting, and taken.
    pub taken: u64,
    /// Such that were refused; with [`Means::Tracepoints`], given up ones as well.
    pub refused: u64,
    /// Taken by our programs inside of another hold.
    pub nested: u64,
    /// Releases by another task of what our programs took.
    pub elsewhere: u64,
}

#[derive(Clone, Copy)]
#[repr(transparent)]
struct Config(EdgeConfig);

// SAFETY: `repr(C)`, only integers, explicit padding.
unsafe impl aya::Pod for Config {}

impl Agitator {
    /// Acts on the tasks whose comm begins like this, in its first 8 bytes.
    ///
    /// # Errors
    /// When the kernel refuses the programs.
    pub fn attach(comm: &CStr, place: Place, means: Means) -> Result<Self> {
        let (word, mask) = start(comm.to_bytes_with_nul());
        let success_argument = match means {
            Means::Functions => 3,
            Means::Tracepoints { success_argument } => success_argument,
        };
        let config = Config(EdgeConfig {
            comm: word,
            comm_mask: mask,
            success_argument,
            _pad: 0,
        });
        let btf = Btf::from_sys_fs().context("the kernel has no BTF")?;
        let mut ebpf = EbpfLoader::new()
            .btf(Some(&btf))
            .override_global("EDGE_CONFIG", &config, true)
            .load(OBJECT)
            .context("the kernel refuses the test object")?;
        let watching: &[(&str, &str)] = match means {
            Means::Functions => &[("tried", "down_read_trylock"), ("gave_up", "up_read")],
            Means::Tracepoints { .. } => &[
                ("acquire_returned", "mmap_lock_acquire_returned"),
                ("lock_released", "mmap_lock_released"),
            ],
        };
        for (program, target) in watching {
            attach(&mut ebpf, &btf, program, target)?;
        }
        match place {
            Place::Nowhere => {}
            Place::AtSwitch => attach(&mut ebpf, &btf, "switched", "sched_switch")?,
            Place::UnderIt => {
                let tracepoint = "mmap_lock_acquire_returned";
                // Not before 5.11.
                if attach(&mut ebpf, &btf, "acquired", tracepoint).is_err() {
                    attach(&mut ebpf, &btf, "faulted", "handle_mm_fault")?;
                }
            }
        }
        let counters = ebpf.take_map("EDGE_COUNTERS").context("no EDGE_COUNTERS")?;
        let last = ebpf.take_map("LAST").context("no LAST")?;
        Ok(Self {
            means,
            counters: PerCpuArray::try_from(counters)?,
            last: Array::try_from(last)?,
            _ebpf: ebpf,
        })
    }

    /// What happened so far.
    ///
    /// # Errors
    /// When the counters cannot be read.
    pub fn count(&self) -> Result<Count> {
        let sum = |index| -> Result<u64> { Ok(self.counters.get(&index, 0)?.iter().sum()) };
        Ok(Count {
            taken: sum(counter::TAKEN)?,
            refused: sum(counter::REFUSED)?,
            nested: sum(counter::NESTED)?,
            elsewhere: sum(counter::ELSEWHERE)?,
        })
    }

    /// Address of the `mmap_lock` that the programs took last. `offset`: where it lies in
    /// an `mm_struct`.
    ///
    /// # Errors
    /// When they took none, or it cannot be read.
    pub fn taken(&self, offset: u64) -> Result<u64> {
        self.lock(last::TAKEN, offset)
            .context("which lock was taken")
    }

    /// As [`Agitator::taken`], of the one that was refused last.
    ///
    /// # Errors
    /// When none was refused, or it cannot be read.
    pub fn refused(&self, offset: u64) -> Result<u64> {
        self.lock(last::REFUSED, offset)
            .context("which lock was refused")
    }

    fn lock(&self, which: u32, offset: u64) -> Result<u64> {
        match (self.last.get(&which, 0)?, self.means) {
            (0, _) => bail!("there was none"),
            (lock, Means::Functions) => Ok(lock),
            (mm, Means::Tracepoints { .. }) => Ok(mm + offset),
        }
    }
}

fn attach(ebpf: &mut Ebpf, btf: &Btf, name: &str, target: &str) -> Result<()> {
    let program = ebpf
        .program_mut(name)
        .with_context(|| format!("the test object has no program {name}"))?;
    hook::attach(program, target, btf)
}

/// A comm's first 8 bytes and which bits of them count. With the zero at its end, if
/// that is among them, it is compared whole.
fn start(comm: &[u8]) -> (u64, u64) {
    let mut word = [0; 8];
    let mut mask = [0; 8];
    for (index, byte) in comm.iter().take(8).enumerate() {
        word[index] = *byte;
        mask[index] = 0xff;
    }
    (u64::from_ne_bytes(word), u64::from_ne_bytes(mask))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_comm_is_compared_with_its_end() {
        let (word, mask) = start(c"lab-w1".to_bytes_with_nul());
        assert_eq!(word.to_ne_bytes(), *b"lab-w1\0\0");
        assert_eq!(
            mask.to_ne_bytes()[..],
            [[0xff; 7].as_slice(), &[0]].concat()
        );
        assert_eq!(start(b"lab-holder\0"), start(b"lab-holdings\0"));
    }
}
