//! Programs of others that are run on request: the kernel gives a raw tracepoint's program
//! the arguments that we hand in (`BPF_PROG_TEST_RUN`, net/bpf/test_run.c, since 5.10).

use std::{
    fs, io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

use anyhow::{Context as _, Result};
use nix::libc;
use zerocopy::{Immutable, IntoBytes};

/// `enum bpf_cmd` (include/uapi/linux/bpf.h).
const BPF_PROG_TEST_RUN: u32 = 10;
const BPF_PROG_GET_FD_BY_ID: u32 = 13;

/// The part of `union bpf_attr` that `BPF_PROG_TEST_RUN` reads.
#[repr(C)]
#[derive(Default, IntoBytes, Immutable)]
struct TestRun {
    prog_fd: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    ctx_size_in: u32,
    ctx_size_out: u32,
    ctx_in: u64,
    ctx_out: u64,
    flags: u32,
    cpu: u32,
    batch_size: u32,
    _pad: u32,
}

/// A program that somebody has loaded.
#[derive(Debug)]
pub struct Program(OwnedFd);

impl Program {
    /// By its number.
    ///
    /// # Errors
    /// When there is none, or it may not be used.
    pub fn by_id(id: u32) -> Result<Self> {
        let attribute = [id, 0, 0];
        let fd = bpf(BPF_PROG_GET_FD_BY_ID, attribute.as_bytes());
        let fd = fd.with_context(|| format!("cannot open program {id}"))?;
        // SAFETY: a descriptor that was just made for us, which nothing else knows.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Runs it once on this CPU and as this task, with the arguments of its tracepoint.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn run(&self, arguments: &[u64]) -> io::Result<()> {
        let run = TestRun {
            prog_fd: self.0.as_raw_fd().unsigned_abs(),
            ctx_in: arguments.as_ptr() as u64,
            ctx_size_in: size_of_val(arguments) as u32,
            ..TestRun::default()
        };
        bpf(BPF_PROG_TEST_RUN, run.as_bytes()).map(drop)
    }
}

fn bpf(command: u32, attribute: &[u8]) -> io::Result<i32> {
    // SAFETY: the kernel reads as many bytes as there are, and what they point to lives as
    // long as the caller's arguments; of a run it writes its result into what nobody reads.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            attribute.as_ptr(),
            attribute.len() as libc::c_uint,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result as i32)
}

/// Numbers of the programs that this process has attached to raw tracepoints, by tracepoint.
///
/// # Errors
/// When its own descriptors cannot be read.
pub fn attached() -> Result<Vec<(String, u32)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc/self/fdinfo").context("own descriptors")? {
        let text = fs::read_to_string(entry?.path()).unwrap_or_default();
        let field = |name: &str| {
            let mut lines = text.lines().filter_map(|line| line.split_once(':'));
            lines.find(|(key, _)| *key == name).map(|(_, it)| it.trim())
        };
        // kernel/bpf/syscall.c, bpf_raw_tp_link_show_fdinfo
        let tracepoint = field("tp_name").or_else(|| field("raw_tp_name"));
        if let (Some(tracepoint), Some(id)) = (tracepoint, field("prog_id")) {
            found.push((tracepoint.to_owned(), id.parse()?));
        }
    }
    Ok(found)
}
