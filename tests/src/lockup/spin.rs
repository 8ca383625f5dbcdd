//! A BPF program that keeps a CPU busy at a tracepoint, for a bounded time.
//!
//! It copies memory and looks at the clock, over and over. Three bounds end it, each alone:
//! the time that it was armed for, the longest time that it was built for, and the number of
//! its rounds. None needs anybody else to run. It needs no types of the kernel, and none of
//! the functions that came after 5.10.
//!
//! The kernel runs it with preemption disabled: the tracepoint does that itself, up to 6.19;
//! from 6.10 on the program can, too.

use std::{
    ffi::CStr,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    ptr::NonNull,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use anyhow::{Context, Result};
use lockwatch::kernel::btf::Btf;
use nix::{
    errno::Errno,
    libc,
    sys::resource::{RLIM_INFINITY, Resource, setrlimit},
};
use zerocopy::{Immutable, IntoBytes};

// Commands and constants of include/uapi/linux/bpf.h.
const MAP_CREATE: i64 = 0;
const PROG_LOAD: i64 = 5;
const RAW_TRACEPOINT_OPEN: i64 = 17;
const MAP_TYPE_ARRAY: u32 = 2;
const MAP_MMAPABLE: u32 = 1 << 10;
const PROG_TYPE_RAW_TRACEPOINT: u32 = 17;
const MAP_VALUE: u8 = 2;
const KERNEL_FUNCTION: u8 = 2;

// Functions that programs can call, by their numbers there.
const KTIME_GET_NS: i32 = 5;
const GET_SMP_PROCESSOR_ID: i32 = 8;
const GET_CURRENT_PID_TGID: i32 = 14;
const GET_CURRENT_COMM: i32 = 16;
const PROBE_READ_KERNEL: i32 = 113;

/// Bytes that one call copies: the size of an array's element that every kernel allows.
const BULK: u32 = 2 << 20;
/// Calls of a round.
const CALLS: usize = 16;
/// The verifier follows each round; it follows a million instructions.
const ROUNDS: i32 = 5000;

/// Bytes of what the verifier may say of a program that it refuses.
const LOG: usize = 1 << 20;

/// What the program and the lab tell each other.
#[repr(C)]
struct Shared {
    /// The program spins while the clock is before this, `CLOCK_MONOTONIC`.
    armed_until: AtomicU64,
    /// When it first began to spin; 0: never.
    began: AtomicU64,
    /// It spins just now.
    spins: AtomicU64,
    /// Process and thread of whom it first met.
    task: AtomicU64,
    comm: [AtomicU64; 2],
    /// How often it has spun.
    hits: AtomicU64,
}
const ARMED: i16 = 0;
const BEGAN: i16 = 8;
const SPINS: i16 = 16;
const TASK: i16 = 24;
const COMM: i16 = 32;
const HITS: i16 = 48;

/// Where and when to spin.
pub(crate) struct Place {
    /// The tracepoint.
    pub(crate) tracepoint: &'static CStr,
    /// Only on this CPU.
    pub(crate) cpu: u32,
    /// Only in this thread, if it matters.
    pub(crate) tid: Option<i32>,
    /// Longest time at a stretch.
    pub(crate) at_a_stretch: Duration,
}

/// Whom the program met where it began to spin.
pub(crate) struct Met {
    pub(crate) began_ns: u64,
    pub(crate) tgid: i32,
    pub(crate) tid: i32,
    pub(crate) comm: String,
}

/// The attached program, not armed yet.
pub(crate) struct Spin {
    shared: NonNull<Shared>,
    _link: OwnedFd,
}

impl Spin {
    pub(crate) fn attach(place: &Place) -> Result<Self> {
        // Up to 5.10 maps count as locked memory. Later kernels do not need it, and a container
        // may not allow it.
        let lifted = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY);
        let state = map(4096, MAP_MMAPABLE).with_context(|| match lifted {
            Ok(()) => "cannot make the spinning program's map".to_owned(),
            Err(error) => format!(
                "cannot make the spinning program's map, nor lift the limit of locked memory ({error})"
            ),
        })?;
        let bulk = map(BULK, 0).context("cannot make the spinning program's ballast")?;
        // SAFETY: a new mapping, at an address that the kernel chooses.
        let shared = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                4096,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                state.as_raw_fd(),
                0,
            )
        };
        if shared == libc::MAP_FAILED {
            return Err(Errno::last()).context("cannot map the spinning program's map");
        }
        let shared = NonNull::new(shared.cast::<Shared>()).context("mapped at address 0")?;
        let preemption = Preemption::of_kernel();
        let program = load(&program(place, &state, &bulk, preemption))
            .context("the kernel refuses the spinning program")?;
        let open = RawTracepointOpen {
            name: place.tracepoint.as_ptr() as u64,
            program: program.as_raw_fd() as u32,
            padding: 0,
        };
        let link = bpf(RAW_TRACEPOINT_OPEN, &open)
            .with_context(|| format!("cannot attach to {}", place.tracepoint.to_string_lossy()))?;
        Ok(Self {
            shared,
            _link: link,
        })
    }

    fn shared(&self) -> &Shared {
        // SAFETY: the mapping has a page, is never unmapped, and everything in it is atomic.
        unsafe { self.shared.as_ref() }
    }

    /// From now on it spins, until the clock is at `until_ns`.
    pub(crate) fn arm(&self, until_ns: u64) {
        self.shared().armed_until.store(until_ns, Ordering::SeqCst);
    }

    /// It stops as soon as it looks at the clock.
    pub(crate) fn disarm(&self) {
        self.arm(0);
    }

    pub(crate) fn spins(&self) -> bool {
        self.shared().spins.load(Ordering::SeqCst) != 0
    }

    /// How often it has spun.
    pub(crate) fn hits(&self) -> u64 {
        self.shared().hits.load(Ordering::SeqCst)
    }

    /// Whom it met first; `None`: it has not spun yet.
    pub(crate) fn met(&self) -> Option<Met> {
        let shared = self.shared();
        let began_ns = shared.began.load(Ordering::SeqCst);
        if began_ns == 0 {
            return None;
        }
        let task = shared.task.load(Ordering::SeqCst);
        let comm: Vec<u8> = shared
            .comm
            .iter()
            .flat_map(|part| part.load(Ordering::SeqCst).to_ne_bytes())
            .take_while(|byte| *byte != 0)
            .collect();
        Some(Met {
            began_ns,
            tgid: (task >> 32) as i32,
            tid: task as i32,
            comm: String::from_utf8_lossy(&comm).into_owned(),
        })
    }
}

/// Functions of the kernel that disable and enable preemption for programs, since 6.10.
#[derive(Clone, Copy)]
struct Preemption {
    disable: u32,
    enable: u32,
}

impl Preemption {
    fn of_kernel() -> Option<Self> {
        let types = Btf::from_sys().ok()?;
        let find = |wanted| types.functions().find(|(_, name, _)| *name == wanted);
        Some(Self {
            disable: find("bpf_preempt_disable")?.0,
            enable: find("bpf_preempt_enable")?.0,
        })
    }
}

/// Instructions, with jumps to one label at the end.
#[derive(Default)]
struct Code {
    words: Vec<u64>,
    to_end: Vec<usize>,
}

impl Code {
    fn add(&mut self, code: u8, to: u8, from: u8, offset: i16, immediate: i32) {
        self.words.push(
            u64::from(code)
                | u64::from(to | from << 4) << 8
                | u64::from(offset as u16) << 16
                | u64::from(immediate as u32) << 32,
        );
    }

    fn call(&mut self, function: i32) {
        self.add(0x85, 0, 0, 0, function);
    }

    fn call_kernel(&mut self, function: u32) {
        self.add(0x85, 0, KERNEL_FUNCTION, 0, function as i32);
    }

    /// `to = from`
    fn copy(&mut self, to: u8, from: u8) {
        self.add(0xbf, to, from, 0, 0);
    }

    /// `to = number`
    fn set(&mut self, to: u8, number: i32) {
        self.add(0xb7, to, 0, 0, number);
    }

    /// `to += number`
    fn plus(&mut self, to: u8, number: i32) {
        self.add(0x07, to, 0, 0, number);
    }

    /// `to = *(u64 *)(from + offset)`
    fn load(&mut self, to: u8, from: u8, offset: i16) {
        self.add(0x79, to, from, offset, 0);
    }

    /// `*(u64 *)(to + offset) = from`
    fn store(&mut self, to: u8, offset: i16, from: u8) {
        self.add(0x7b, to, from, offset, 0);
    }

    /// `to = the element of a map`
    fn element(&mut self, to: u8, map: &OwnedFd) {
        self.add(0x18, to, MAP_VALUE, 0, map.as_raw_fd());
        self.words.push(0);
    }

    /// Jumps to the end if the comparison `code` of two registers holds.
    fn end_if(&mut self, code: u8, left: u8, right: u8) {
        self.to_end.push(self.words.len());
        self.add(code, left, right, 0, 0);
    }

    fn here_is_the_end(&mut self) {
        let end = self.words.len();
        for at in self.to_end.drain(..) {
            self.words[at] |= u64::from((end - at - 1) as u16) << 16;
        }
    }
}

/// Jump if two registers differ, and if the first is as large as the second.
const DIFFER: u8 = 0x5d;
const AT_LEAST: u8 = 0x3d;

/// Registers: 6 counts the rounds, 7 points to what is shared, 9 is the end of this stretch.
fn program(
    place: &Place,
    state: &OwnedFd,
    bulk: &OwnedFd,
    preemption: Option<Preemption>,
) -> Vec<u64> {
    let mut code = Code::default();
    code.call(GET_SMP_PROCESSOR_ID);
    code.set(1, place.cpu as i32);
    code.end_if(DIFFER, 0, 1);
    if let Some(tid) = place.tid {
        code.call(GET_CURRENT_PID_TGID);
        // The lower half.
        code.add(0xbc, 0, 0, 0, 0);
        code.set(1, tid);
        code.end_if(DIFFER, 0, 1);
    }
    code.element(7, state);
    code.call(KTIME_GET_NS);
    code.load(1, 7, ARMED);
    code.end_if(AT_LEAST, 0, 1);
    // r9 = now + the longest stretch
    code.copy(9, 0);
    code.add(0x18, 1, 0, 0, place.at_a_stretch.as_nanos() as u64 as i32);
    code.words
        .push(((place.at_a_stretch.as_nanos() as u64) >> 32) << 32);
    code.add(0x0f, 9, 1, 0, 0);
    // Once: when, who. The number of instructions that are skipped is that of the block.
    code.load(1, 7, BEGAN);
    let skip = code.words.len();
    code.add(0x55, 1, 0, 0, 0);
    code.copy(6, 0);
    code.call(GET_CURRENT_PID_TGID);
    code.store(7, TASK, 0);
    code.copy(1, 7);
    code.plus(1, i32::from(COMM));
    code.set(2, 16);
    code.call(GET_CURRENT_COMM);
    code.store(7, BEGAN, 6);
    let block = code.words.len() - skip - 1;
    code.words[skip] |= (block as u64) << 16;

    if let Some(Preemption { disable, .. }) = preemption {
        code.call_kernel(disable);
    }
    code.set(1, 1);
    code.store(7, SPINS, 1);
    code.load(1, 7, HITS);
    code.plus(1, 1);
    code.store(7, HITS, 1);
    code.set(6, 0);

    let again = code.words.len();
    for _ in 0..CALLS {
        code.element(1, bulk);
        code.set(2, BULK as i32);
        code.element(3, bulk);
        code.call(PROBE_READ_KERNEL);
    }
    code.call(KTIME_GET_NS);
    // Over: end of the stretch - now < 0, or time that it is armed for - now < 0. In one
    // jump, for the verifier keeps one way out of each round in mind, 8,192 at most.
    code.load(1, 7, ARMED);
    code.add(0x1f, 1, 0, 0, 0);
    code.copy(2, 9);
    code.add(0x1f, 2, 0, 0, 0);
    code.add(0x4f, 1, 2, 0, 0);
    code.add(0xc5, 1, 0, 2, 0);
    code.plus(6, 1);
    let back = again as i64 - (code.words.len() as i64 + 1);
    code.add(0xa5, 6, 0, back as i16, ROUNDS);

    code.set(1, 0);
    code.store(7, SPINS, 1);
    if let Some(Preemption { enable, .. }) = preemption {
        code.call_kernel(enable);
    }
    code.here_is_the_end();
    code.set(0, 0);
    code.add(0x95, 0, 0, 0, 0);
    code.words
}

/// The beginning of `union bpf_attr` for `BPF_MAP_CREATE`.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct MapCreate {
    kind: u32,
    key_size: u32,
    value_size: u32,
    entries: u32,
    flags: u32,
}

fn map(value_size: u32, flags: u32) -> Result<OwnedFd, Errno> {
    let create = MapCreate {
        kind: MAP_TYPE_ARRAY,
        key_size: 4,
        value_size,
        entries: 1,
        flags,
    };
    bpf(MAP_CREATE, &create)
}

/// The same for `BPF_PROG_LOAD`.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct ProgLoad {
    kind: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
}

fn load(instructions: &[u64]) -> Result<OwnedFd> {
    let mut log = vec![0_u8; LOG];
    let mut load = ProgLoad {
        kind: PROG_TYPE_RAW_TRACEPOINT,
        instruction_count: instructions.len() as u32,
        instructions: instructions.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
        kernel_version: 0,
        flags: 0,
        name: *b"lab_spin\0\0\0\0\0\0\0\0",
    };
    if let Ok(program) = bpf(PROG_LOAD, &load) {
        return Ok(program);
    }
    // Why: the verifier only says so if it is asked to.
    load.log_level = 1;
    load.log_size = LOG as u32;
    load.log = log.as_mut_ptr() as u64;
    bpf(PROG_LOAD, &load).with_context(|| {
        let said = log.split(|byte| *byte == 0).next().unwrap_or_default();
        let said = String::from_utf8_lossy(said);
        let first: Vec<&str> = said.lines().rev().take(5).collect();
        format!("the verifier said last, newest first: {}", first.join("; "))
    })
}

/// The same for `BPF_RAW_TRACEPOINT_OPEN`.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct RawTracepointOpen {
    name: u64,
    program: u32,
    padding: u32,
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
