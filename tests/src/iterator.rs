//! A BPF iterator over the memory areas of the calling thread, whose program reads memory.
//!
//! The kernel holds the mmap_lock for read while it runs the program for an area
//! (kernel/bpf/task_iter.c, `task_vma_seq_get_next`). A program that may sleep can read
//! user memory there, and thereby fault under the lock.

use std::{
    fs::File,
    io::Read,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    ptr::NonNull,
};

use anyhow::{Context, Result};
use lockwatch::kernel::btf::Btf;
use nix::{errno::Errno, libc};
use zerocopy::{Immutable, IntoBytes};

/// The function that stands for the iterator in the kernel's types.
const TARGET: &str = "bpf_iter_task_vma";

// Commands and constants of include/uapi/linux/bpf.h.
const PROG_LOAD: i64 = 5;
const LINK_CREATE: i64 = 28;
const ITER_CREATE: i64 = 33;
const PROG_TYPE_TRACING: u32 = 26;
const TRACE_ITER: u32 = 28;
const SLEEPABLE: u32 = 1 << 4;
const COPY_FROM_USER: u32 = 148;

/// Bytes that the program reads.
const SIZE: u32 = 8;

/// The beginning of `union bpf_attr` for `BPF_PROG_LOAD`.
#[derive(IntoBytes, Immutable, Default)]
#[repr(C)]
struct ProgLoad {
    kind: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log: [u32; 4],
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    attach_type: u32,
    types_fd: u32,
    function_record_size: u32,
    functions: u64,
    function_count: u32,
    line_record_size: u32,
    lines: u64,
    line_count: u32,
    attach_type_id: u32,
}
const _: () = assert!(size_of::<ProgLoad>() == 112);

/// The same for `BPF_LINK_CREATE`.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct LinkCreate {
    program: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
    scope: u64,
    scope_size: u32,
    padding: u32,
}
const _: () = assert!(size_of::<LinkCreate>() == 32);

/// `union bpf_iter_link_info`: one thread.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct Scope {
    tid: u32,
    pid: u32,
    pid_fd: u32,
    padding: u32,
}

/// The same for `BPF_ITER_CREATE`.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct IterCreate {
    link: u32,
    flags: u32,
}

/// An iterator that has not begun.
pub(crate) struct Iterator {
    file: File,
    _link: OwnedFd,
    _program: OwnedFd,
}

impl Iterator {
    /// Reads the first bytes of `from` for each area of the calling thread.
    pub(crate) fn reading(from: NonNull<u8>) -> Result<Self> {
        let types = Btf::from_sys().context("cannot read the kernel's types")?;
        let (target, ..) = types
            .functions()
            .find(|(_, name, _)| *name == TARGET)
            .with_context(|| format!("the kernel has no {TARGET}"))?;
        let program = load(target, from).context("cannot load the iterator's program")?;
        let scope = Scope {
            tid: nix::unistd::gettid().as_raw() as u32,
            pid: 0,
            pid_fd: 0,
            padding: 0,
        };
        let link = LinkCreate {
            program: program.as_raw_fd() as u32,
            target: 0,
            attach_type: TRACE_ITER,
            flags: 0,
            scope: (&raw const scope) as u64,
            scope_size: size_of::<Scope>() as u32,
            padding: 0,
        };
        let link = bpf(LINK_CREATE, &link).context("cannot link the iterator")?;
        let iterator = IterCreate {
            link: link.as_raw_fd() as u32,
            flags: 0,
        };
        let file = bpf(ITER_CREATE, &iterator).context("cannot make the iterator")?;
        Ok(Self {
            file: file.into(),
            _link: link,
            _program: program,
        })
    }

    /// Runs it. What it gives, if anything, does not matter.
    pub(crate) fn run(&mut self) {
        let _ = self.file.read(&mut [0; 8]);
    }
}

fn load(target: u32, from: NonNull<u8>) -> Result<OwnedFd, Errno> {
    let from = from.as_ptr() as u64;
    let instruction = |code: u8, registers: u8, immediate: u32| {
        u64::from(code) | u64::from(registers) << 8 | u64::from(immediate) << 32
    };
    let instructions: [u64; 8] = [
        instruction(0xbf, 0xa1, 0),                   // r1 = r10
        instruction(0x07, 0x01, SIZE.wrapping_neg()), // r1 -= 8
        instruction(0xb7, 0x02, SIZE),                // r2 = 8
        instruction(0x18, 0x03, from as u32),         // r3 = from
        instruction(0, 0, (from >> 32) as u32),
        instruction(0x85, 0, COPY_FROM_USER), // call
        instruction(0xb7, 0, 0),              // r0 = 0
        instruction(0x95, 0, 0),              // exit
    ];
    let license = c"GPL";
    let load = ProgLoad {
        kind: PROG_TYPE_TRACING,
        instruction_count: instructions.len() as u32,
        instructions: instructions.as_ptr() as u64,
        license: license.as_ptr() as u64,
        flags: SLEEPABLE,
        attach_type: TRACE_ITER,
        attach_type_id: target,
        ..ProgLoad::default()
    };
    bpf(PROG_LOAD, &load)
}

/// A command that gives a descriptor.
fn bpf<T: IntoBytes + Immutable>(command: i64, attributes: &T) -> Result<OwnedFd, Errno> {
    let bytes = attributes.as_bytes();
    // SAFETY: the kernel reads as many bytes as there are, and what they point to lives
    // until the call returns.
    let outcome = unsafe { libc::syscall(libc::SYS_bpf, command, bytes.as_ptr(), bytes.len()) };
    let descriptor = Errno::result(outcome)?;
    // SAFETY: a new descriptor that belongs to nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor as i32) })
}
