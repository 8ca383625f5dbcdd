//! What a program loads into the kernel, seen from outside: bpf(2) is watched by ptrace, and
//! each load is made to write the verifier's sum. So nothing has to be known of the loader,
//! no list of programs is kept, and 5.10, which tells nobody afterwards, is no exception.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::libc;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

/// `bpf(2)` commands, from `include/uapi/linux/bpf.h`.
const BPF_MAP_CREATE: u64 = 0;
const BPF_PROG_LOAD: u64 = 5;
/// `log_level`: only the sum, not each instruction (kernel/bpf/verifier.c, from 5.2 on).
const BPF_LOG_STATS: u32 = 4;

/// Offsets in `union bpf_attr`, which never change.
const LOG: u64 = 24;
const PROGRAM_NAME: u64 = 48;
const MAP_NAME: u64 = 28;
const NAME_LEN: usize = 16;

/// Room for the sum, in what the thread's stack is not using: below the red zone.
const SUM_LEN: u32 = 8192;
const RED_ZONE: u64 = 128;

/// A program that was loaded, or that the kernel refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Load {
    /// As far as the kernel keeps it: 15 characters.
    pub(crate) name: String,
    /// Instructions the verifier has processed; none if it says nothing.
    pub(crate) instructions: Option<u64>,
    /// Length of the call, microseconds.
    pub(crate) took_us: u64,
    /// `errno` of a refusal.
    pub(crate) error: Option<i32>,
}

/// A map that was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Map {
    /// As far as the kernel keeps it: 15 characters.
    pub(crate) name: String,
    /// What the kernel counts for it.
    pub(crate) bytes: u64,
}

/// All that one run has loaded.
#[derive(Debug, Default)]
pub(crate) struct Trace {
    pub(crate) loads: Vec<Load>,
    pub(crate) maps: Vec<Map>,
}

/// A bpf(2) that a thread is in.
#[derive(Debug)]
enum Call {
    Load {
        name: String,
        attributes: u64,
        /// Where the sum is written to, and what the caller had there instead.
        sum: Option<(u64, [u8; 16])>,
        begun: Instant,
    },
    MakeMap {
        name: String,
    },
    Other,
}

/// Runs a command to its end and tells what it has loaded.
pub(crate) fn run(command: &mut Command) -> Result<(Trace, ExitStatus)> {
    command.stdin(Stdio::null()).process_group(0);
    let trace_me = || ptrace::traceme().map_err(io::Error::from);
    // SAFETY: the closure makes one system call and touches no memory of the parent.
    unsafe { command.pre_exec(trace_me) };
    let mut child = command
        .spawn()
        .context("cannot start a program that is traced")?;
    let main = Pid::from_raw(i32::try_from(child.id())?);
    let group = Pid::from_raw(-main.as_raw());
    let mut trace = Trace::default();
    let mut calls = BTreeMap::new();
    let mut is_set_up = false;
    loop {
        let status = match waitpid(group, Some(WaitPidFlag::__WALL)) {
            Ok(status) => status,
            Err(error) => {
                // Our own end kills it: EXITKILL, or it never ran.
                child.kill()?;
                return Err(error).context("cannot wait for a program that is traced");
            }
        };
        let (thread, signal) = match status {
            WaitStatus::Exited(thread, code) if thread == main => {
                return Ok((trace, exit_status(code << 8)));
            }
            WaitStatus::Signaled(thread, signal, _) if thread == main => {
                return Ok((trace, exit_status(signal as i32)));
            }
            WaitStatus::PtraceSyscall(thread) => {
                // A thread may be killed at any time: then there is no more to see.
                if let Err(error) = at_call(thread, &mut calls, &mut trace) {
                    crate::process::say(format_args!("cannot look into a call: {error:#}"));
                }
                (thread, None)
            }
            // The stop at exec, and the first one of a new thread.
            WaitStatus::Stopped(thread, Signal::SIGTRAP | Signal::SIGSTOP) => {
                if !is_set_up {
                    is_set_up = true;
                    ptrace::setoptions(
                        thread,
                        Options::PTRACE_O_TRACESYSGOOD
                            | Options::PTRACE_O_TRACECLONE
                            | Options::PTRACE_O_EXITKILL,
                    )
                    .context("cannot trace a program")?;
                }
                (thread, None)
            }
            WaitStatus::Stopped(thread, signal) => (thread, Some(signal)),
            WaitStatus::PtraceEvent(thread, _, _) => (thread, None),
            _ => continue,
        };
        match ptrace::syscall(thread, signal) {
            Ok(()) | Err(nix::errno::Errno::ESRCH) => {}
            Err(error) => bail!("cannot let a traced program go on: {error}"),
        }
    }
}

fn exit_status(raw: i32) -> ExitStatus {
    std::os::unix::process::ExitStatusExt::from_raw(raw)
}

/// At the begin or the end of a system call.
fn at_call(thread: Pid, calls: &mut BTreeMap<Pid, Call>, trace: &mut Trace) -> Result<()> {
    let registers = ptrace::getregs(thread)?;
    if i64::try_from(registers.orig_rax) != Ok(libc::SYS_bpf) {
        return Ok(());
    }
    let memory = || {
        File::options()
            .read(true)
            .write(true)
            .open(format!("/proc/{thread}/mem"))
    };
    let Some(call) = calls.remove(&thread) else {
        let (command, attributes) = (registers.rdi, registers.rsi);
        let call = match command {
            BPF_PROG_LOAD => {
                let memory = memory()?;
                Call::Load {
                    name: name_at(&memory, attributes + PROGRAM_NAME)?,
                    attributes,
                    sum: ask_for_sum(&memory, attributes, registers.rsp)?,
                    begun: Instant::now(),
                }
            }
            BPF_MAP_CREATE => Call::MakeMap {
                name: name_at(&memory()?, attributes + MAP_NAME)?,
            },
            _ => Call::Other,
        };
        calls.insert(thread, call);
        return Ok(());
    };
    let result = registers.rax.cast_signed();
    match call {
        Call::Load {
            name,
            attributes,
            sum,
            begun,
        } => {
            let took = begun.elapsed();
            let mut instructions = None;
            if let Some((at, before)) = sum {
                let memory = memory()?;
                let mut text = vec![0; SUM_LEN as usize];
                memory.read_exact_at(&mut text, at)?;
                instructions = processed(&String::from_utf8_lossy(&text));
                memory.write_all_at(&before, attributes + LOG)?;
            }
            trace.loads.push(Load {
                name,
                instructions: instructions.filter(|_| result >= 0),
                took_us: microseconds(took),
                error: (result < 0).then_some(i32::try_from(-result).unwrap_or(i32::MAX)),
            });
        }
        Call::MakeMap { name } if result >= 0 => trace.maps.push(Map {
            name,
            bytes: memlock(thread, result)?,
        }),
        Call::MakeMap { .. } | Call::Other => {}
    }
    Ok(())
}

/// Sets the log up, unless the caller wants one himself.
fn ask_for_sum(memory: &File, attributes: u64, stack: u64) -> Result<Option<(u64, [u8; 16])>> {
    let mut before = [0; 16];
    memory.read_exact_at(&mut before, attributes + LOG)?;
    if before != [0; 16] {
        return Ok(None);
    }
    let at = (stack - RED_ZONE - u64::from(SUM_LEN)) & !63;
    // log_level, log_size, log_buf
    let mut asked = [0; 16];
    asked[..4].copy_from_slice(&BPF_LOG_STATS.to_ne_bytes());
    asked[4..8].copy_from_slice(&SUM_LEN.to_ne_bytes());
    asked[8..].copy_from_slice(&at.to_ne_bytes());
    memory.write_all_at(&asked, attributes + LOG)?;
    // An earlier sum may lie there. Where nothing is mapped yet, there is none.
    let _ = memory.write_all_at(&[0], at);
    Ok(Some((at, before)))
}

fn name_at(memory: &File, address: u64) -> Result<String> {
    let mut name = [0; NAME_LEN];
    memory.read_exact_at(&mut name, address)?;
    let len = name.iter().position(|byte| *byte == 0).unwrap_or(NAME_LEN);
    Ok(String::from_utf8_lossy(&name[..len]).into_owned())
}

/// The number in "processed 1234 insns (limit 1000000) …"; behind the log's end are other bytes.
fn processed(log: &str) -> Option<u64> {
    let (log, _) = log.split_once('\0')?;
    let (_, rest) = log.rsplit_once("processed ")?;
    let (number, rest) = rest.split_once(' ')?;
    rest.starts_with("insns").then(|| number.parse().ok())?
}

fn memlock(thread: Pid, fd: i64) -> Result<u64> {
    let path = format!("/proc/{thread}/fdinfo/{fd}");
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    text.lines()
        .find_map(|line| line.strip_prefix("memlock:")?.trim().parse().ok())
        .with_context(|| format!("{path} has no memlock"))
}

fn microseconds(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_is_read() {
        let log = "verification time 512 usec\nstack depth 64+8\nprocessed 1234 insns (limit 1000000) max_states_per_insn 4 total_states 20 peak_states 20 mark_read 9\n\0processed 2 insns\0";
        assert_eq!(processed(log), Some(1234));
        assert_eq!(processed("R1 type=inv expected=ctx\0"), None);
        assert_eq!(processed("processed many insns\0"), None);
    }

    #[test]
    fn an_untraced_end_is_told() {
        let mut command = Command::new("sh");
        let (trace, status) = run(command.args(["-c", "true; exit 3"])).unwrap();
        assert_eq!(status.code(), Some(3));
        assert!(trace.loads.is_empty() && trace.maps.is_empty());
    }
}
