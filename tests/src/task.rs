//! Tasks seen from outside: what they are asleep in, and that they stay so.
//!
//! Only `stat`, `status` and `stack` of /proc are read. They never wait for
//! the mmap_lock or the i_rwsem of the task, as `cmdline`, `environ`, `maps`
//! or `mem` do.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use lockwatch_tests::truth::{Tgid, Tid};

/// Time between two looks at a task.
const LOOK_EVERY: Duration = Duration::from_millis(1);

/// A thread of the lab or of its target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Task {
    pub(crate) tgid: Tgid,
    pub(crate) tid: Tid,
}

/// One look at a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Look {
    /// One-letter state of /proc.
    pub(crate) state: char,
    /// Voluntary and involuntary context switches so far.
    pub(crate) switches: u64,
    /// Functions on its kernel stack, innermost first, those of the scheduler
    /// and of the locks left out.
    pub(crate) frames: Vec<String>,
}

impl Look {
    /// The innermost function that is not part of a lock.
    pub(crate) fn top(&self) -> &str {
        self.frames.first().map_or("", String::as_str)
    }

    pub(crate) fn has(&self, function: &str) -> bool {
        self.frames.iter().any(|frame| frame == function)
    }

    /// Asleep until the FUSE server answers.
    pub(crate) fn waits_for_fuse(&self) -> bool {
        // Compilers may put request_wait_answer into its caller.
        let in_fuse = ["request_wait_answer", "fuse_", "__fuse_"]
            .iter()
            .any(|prefix| self.top().starts_with(prefix));
        matches!(self.state, 'S' | 'D') && in_fuse
    }

    /// Asleep until the NFS server answers.
    pub(crate) fn waits_for_nfs(&self) -> bool {
        let of_nfs = |frame: &String| frame.starts_with("nfs_") || frame.starts_with("rpc_");
        self.state == 'D' && self.frames.iter().any(of_nfs)
    }

    pub(crate) fn waits_for_futex(&self) -> bool {
        self.state == 'S' && self.frames.iter().any(|frame| frame.contains("futex_wait"))
    }
}

impl Task {
    /// The calling thread.
    pub(crate) fn current() -> Self {
        Self {
            tgid: Tgid(nix::unistd::getpid().as_raw()),
            tid: Tid(nix::unistd::gettid().as_raw()),
        }
    }

    pub(crate) fn look(self) -> Result<Look> {
        let read = |file: &str| {
            let path = format!("/proc/{}/task/{}/{file}", self.tgid.0, self.tid.0);
            fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))
        };
        let parse = |what: &str| format!("/proc shows thread {} without {what}", self.tid.0);
        Ok(Look {
            state: state_in_stat(&read("stat")?).with_context(|| parse("a state"))?,
            switches: switches_in_status(&read("status")?)
                .with_context(|| parse("context switches"))?,
            frames: frames_in_stack(&read("stack")?),
        })
    }

    /// Waits until two looks in a row are equal and fulfil `condition`.
    pub(crate) fn settle(
        self,
        what: &str,
        timeout: Duration,
        condition: impl Fn(&Look) -> bool,
    ) -> Result<Look> {
        let deadline = Instant::now() + timeout;
        let mut before = None;
        loop {
            let look = self
                .look()
                .with_context(|| format!("{what} is gone before it was seen in its place"))?;
            let fits = condition(&look);
            if fits && before.as_ref() == Some(&look) {
                return Ok(look);
            }
            if Instant::now() >= deadline {
                bail!(
                    "{what} (thread {}) was not seen in its place within {timeout:?}; \
                     last seen in state {} in {}",
                    self.tid.0,
                    look.state,
                    look.frames.join(" < ")
                );
            }
            before = fits.then_some(look);
            thread::sleep(LOOK_EVERY);
        }
    }

    /// Waits until the thread no longer exists.
    pub(crate) fn gone(self, what: &str, timeout: Duration) -> Result<()> {
        let deadline = Instant::now() + timeout;
        let path = format!("/proc/{}/task/{}/stat", self.tgid.0, self.tid.0);
        while fs::read(&path).is_ok() {
            if Instant::now() >= deadline {
                bail!(
                    "{what} (thread {}) has not exited within {timeout:?}",
                    self.tid.0
                );
            }
            thread::sleep(LOOK_EVERY);
        }
        Ok(())
    }
}

/// Third field of `stat`; the comm before it may contain anything.
fn state_in_stat(stat: &str) -> Option<char> {
    stat.rsplit_once(')')?.1.trim_start().chars().next()
}

fn switches_in_status(status: &str) -> Option<u64> {
    let count = |key: &str| -> Option<u64> {
        status
            .lines()
            .find_map(|line| line.strip_prefix(key))?
            .trim()
            .parse()
            .ok()
    };
    Some(count("voluntary_ctxt_switches:")? + count("nonvoluntary_ctxt_switches:")?)
}

/// Lines like `[<0>] iterate_dir+0x9c/0x190`, possibly with ` [module]`.
fn frames_in_stack(stack: &str) -> Vec<String> {
    let names = stack.lines().filter_map(|line| {
        let (_, frame) = line.split_once("] ")?;
        let (symbol, _) = frame.split_once('+')?;
        // Compilers add suffixes to clones: `foo.isra.0`.
        Some(symbol.split_once('.').map_or(symbol, |(stem, _)| stem))
    });
    names
        .skip_while(|name| is_lock_or_scheduler(name))
        .map(str::to_owned)
        .collect()
}

/// Most kernels leave these out of `stack` by themselves; not all builds do. Where a lock
/// function is traced, its caller called a trampoline (`bpf_trampoline_6442528376_0`).
fn is_lock_or_scheduler(function: &str) -> bool {
    const PREFIXES: [&str; 21] = [
        "bpf_trampoline_",
        "schedule",
        "__schedule",
        "rwsem_",
        "down_",
        "__down_",
        "rwbase_",
        "__rwbase_",
        "rt_mutex_",
        "__rt_mutex_",
        "_mutex_lock",
        "mutex_lock",
        "__mutex_",
        "ww_mutex_",
        "__ww_mutex_",
        "percpu_",
        "__percpu_",
        "rcuwait_",
        "__vma_",
        "vma_start_",
        "preempt_schedule",
    ];
    PREFIXES.iter().any(|prefix| function.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comm_may_look_like_a_stat_line() {
        assert_eq!(state_in_stat("12 (a) R (b)) D 1 2 3"), Some('D'));
        assert_eq!(state_in_stat("12"), None);
        assert_eq!(state_in_stat("12 (x)"), None);
    }

    #[test]
    fn both_kinds_of_switches_count() {
        let status = "Name:\tx\nvoluntary_ctxt_switches:\t5\nnonvoluntary_ctxt_switches:\t2\n";
        assert_eq!(switches_in_status(status), Some(7));
        assert_eq!(switches_in_status("Name:\tx\n"), None);
    }

    #[test]
    fn frames_lose_offsets_suffixes_and_lock_functions() {
        let stack = "[<0>] rwsem_down_read_slowpath+0x1/0x2\n\
                     [<0>] down_read_killable+0x1/0x2\n\
                     [<0>] iterate_dir.isra.0+0x9c/0x190\n\
                     [<0>] fuse_readdir+0x1/0x2 [fuse]\n";
        assert_eq!(frames_in_stack(stack), ["iterate_dir", "fuse_readdir"]);
    }

    #[test]
    fn a_task_that_waits_for_fuse_is_no_waiter() {
        let look = Look {
            state: 'S',
            switches: 0,
            frames: ["request_wait_answer", "fuse_mkdir"]
                .map(str::to_owned)
                .into(),
        };
        assert!(look.waits_for_fuse());
        assert!(!Look { state: 'R', ..look }.waits_for_fuse());
    }

    #[test]
    fn a_task_that_is_never_in_its_place_is_an_error() {
        let me = Task::current();
        let look = me.settle("this thread", Duration::ZERO, |look| look.state == 'X');
        assert!(look.is_err());
    }
}
