//! What the running kernel lets us load, found out by loading: one program for each way
//! of hooking and each place, which does nothing and is attached to nothing.
//!
//! By plain system calls: aya loads only what an object holds, and attaches what it
//! tries out.

use std::{
    error::Error,
    io,
    os::fd::{FromRawFd as _, OwnedFd},
    path::Path,
};

use aya::{
    maps::MapType,
    programs::ProgramType,
    sys::{BpfHelper, is_helper_supported, is_map_supported},
};

use rustix::process::{Resource, Rlimit, setrlimit};

use super::{WANTS, want_in};
use crate::kernel::{
    btf::Btf,
    capabilities::{self, Missing},
    kallsyms,
    lock_functions::tracepoint,
    offer::{Feature, Mechanism, Offer, Trial},
};

/// There if the kernel was built with kprobes (`CONFIG_KPROBE_EVENTS`, 4.17+).
const KPROBE_EVENTS: &str = "/sys/bus/event_source/devices/kprobe";

/// The function that the iterator over tasks calls for each of them (kernel/bpf/task_iter.c).
const TASK_ITERATOR: &str = "bpf_iter_task";

/// Asks the running kernel what it offers.
pub fn ask(btf: Option<&Btf>) -> Offer {
    Offer::of_this_kernel(btf, kallsyms::spelled(), trial(btf))
}

/// What becomes of programs that are loaded for a trial; none if these privileges allow no such
/// thing.
pub fn trial(btf: Option<&Btf>) -> Option<Trial> {
    let may_load = !capabilities::missing()
        .iter()
        .any(|missing| matches!(missing, Missing::Capabilities(_) | Missing::UserNamespace));
    may_load.then(|| try_all(btf))
}

/// Up to 5.10 what BPF uses counts as locked memory, and what was freed goes on counting
/// until a grace period later (kernel/bpf/syscall.c, `bpf_charge_memlock`): some programs
/// that come and go, and the next one is refused with EPERM. Best effort: later kernels do
/// not need it.
fn lift_memory_limit() {
    let unlimited = Rlimit {
        current: None,
        maximum: None,
    };
    if let Err(error) = setrlimit(Resource::Memlock, unlimited) {
        tracing::debug!("cannot lift the limit of locked memory: {error}");
    }
}

fn try_all(btf: Option<&Btf>) -> Trial {
    lift_memory_limit();
    let mut trial = Trial::default();
    for mechanism in Mechanism::ALL {
        if let Err(why) = try_mechanism(mechanism, btf) {
            trial.refused.insert(mechanism, why);
        }
    }
    if let Some(btf) = btf {
        try_places(&mut trial, btf);
    }
    for feature in [
        Feature::RingBuffer,
        Feature::TaskStorage,
        Feature::TaskIterator,
        Feature::CpuSamples,
    ] {
        if let Err(why) = try_feature(feature, btf) {
            trial.lacking.insert(feature, why);
        }
    }
    trial
}

/// Tries each place that a plan may want, where the way to hook it is not refused anyhow.
fn try_places(trial: &mut Trial, btf: &Btf) {
    let allowed = |mechanism| !trial.refused.contains_key(&mechanism);
    let mut attempts = Vec::new();
    if allowed(Mechanism::TpBtf) {
        let wanted = btf
            .tracepoints()
            .filter(|(_, name)| tracepoint::ALL.contains(name));
        attempts.extend(wanted.map(|(id, name)| (name, Attempt::tracing(Attach::RawTp, id))));
    }
    if allowed(Mechanism::Fentry) && allowed(Mechanism::Fexit) {
        let wanted = btf.lock_functions();
        attempts.extend(wanted.map(|(id, name, _)| (name, Attempt::tracing(Attach::Fexit, id))));
    }
    for (name, attempt) in attempts {
        if let Err(why) = attempt.load() {
            trial.unhookable.insert(name.to_owned(), why);
        }
    }
}

fn try_mechanism(mechanism: Mechanism, btf: Option<&Btf>) -> Result<(), String> {
    let a_tracepoint = || {
        let mut all = btf.into_iter().flat_map(Btf::tracepoints);
        all.find(|(_, name)| *name == tracepoint::SCHED_SWITCH)
            .map(|(id, _)| id)
    };
    let a_function = || {
        let mut all = btf.into_iter().flat_map(Btf::lock_functions);
        all.next().map(|(id, ..)| id)
    };
    let typed = |attach, id: Option<u32>| {
        let id = id.ok_or("the kernel's type information has nothing to hook")?;
        Attempt::tracing(attach, id).load()
    };
    match mechanism {
        Mechanism::TpBtf => typed(Attach::RawTp, a_tracepoint()),
        Mechanism::RawTp => Attempt::of(Type::RawTracepoint).load(),
        Mechanism::Fentry => typed(Attach::Fentry, a_function()),
        Mechanism::Fexit => typed(Attach::Fexit, a_function()),
        // Uprobes have the same type of program, so that its loading alone says little.
        Mechanism::Kprobe if !Path::new(KPROBE_EVENTS).exists() => Err(
            "the kernel was built without kprobes (CONFIG_KPROBE_EVENTS), or /sys is not mounted"
                .to_owned(),
        ),
        Mechanism::Kprobe => Attempt::of(Type::Kprobe).load(),
    }
}

fn try_feature(feature: Feature, btf: Option<&Btf>) -> Result<(), String> {
    let supported = |supported: Result<bool, &(dyn Error + 'static)>, what: &str| match supported {
        Ok(true) => Ok(()),
        Ok(false) => Err(format!("this kernel has no {what}")),
        Err(error) => Err(want_in(error).map_or_else(
            || format!("the kernel refuses a {what}: {error}"),
            |want| words(&want),
        )),
    };
    let map = |ty, what| {
        let found = is_map_supported(ty);
        supported(found.as_ref().copied().map_err(|error| error as _), what)
    };
    match feature {
        Feature::RingBuffer => map(MapType::RingBuf, "BPF ring buffer"),
        Feature::TaskStorage => {
            map(MapType::TaskStorage, "BPF task storage")?;
            // Up to 5.12 for LSM programs alone.
            let found = is_helper_supported(
                ProgramType::RawTracePoint,
                BpfHelper::BPF_FUNC_task_storage_get,
            );
            supported(
                found.as_ref().copied().map_err(|error| error as _),
                "BPF task storage for tracing",
            )
        }
        Feature::TaskIterator => {
            let mut all = btf.into_iter().flat_map(Btf::functions);
            let (id, ..) = all
                .find(|(_, name, _)| *name == TASK_ITERATOR)
                .ok_or("this kernel has no BPF iterator over tasks")?;
            Attempt::tracing(Attach::Iterator, id).load()
        }
        Feature::CpuSamples => {
            Attempt::of(Type::PerfEvent).load()?;
            open_clock().map_err(|error| words(&error))
        }
    }
}

/// Opens the event of this CPU's clock for all tasks, stopped, and closes it. Of this CPU, for
/// another one is asked and may not answer.
fn open_clock() -> io::Result<()> {
    let attributes = EventAttributes {
        kind: SOFTWARE,
        size: size_of::<EventAttributes>() as u32,
        config: CPU_CLOCK,
        period: 1_000_000_000,
        flags: DISABLED,
        ..EventAttributes::default()
    };
    let (all_tasks, alone, close_on_exec) = (-1, -1, 8);
    let cpu = rustix::thread::sched_getcpu() as libc::c_int;
    // SAFETY: the attributes are as long as they say, and live until the kernel returns.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_perf_event_open,
            &raw const attributes,
            all_tasks,
            cpu,
            alone,
            close_on_exec,
        )
    };
    match i32::try_from(fd) {
        Ok(fd) if fd >= 0 => {
            // SAFETY: a fresh file descriptor that nobody else knows.
            drop(unsafe { OwnedFd::from_raw_fd(fd) });
            Ok(())
        }
        _ => Err(io::Error::last_os_error()),
    }
}

/// `struct perf_event_attr` (include/uapi/linux/perf_event.h), as far as 5.10 has it.
#[derive(Clone, Copy, Default)]
#[repr(C)]
struct EventAttributes {
    kind: u32,
    size: u32,
    config: u64,
    period: u64,
    sample_type: u64,
    read_format: u64,
    flags: u64,
    rest: [u64; 9],
}

/// `PERF_ATTR_SIZE_VER6`
const _: () = assert!(size_of::<EventAttributes>() == 120);

/// `PERF_TYPE_SOFTWARE`
const SOFTWARE: u32 = 1;
/// `PERF_COUNT_SW_CPU_CLOCK`
const CPU_CLOCK: u64 = 0;
/// The first flag: not counting yet.
const DISABLED: u64 = 1;

/// `enum bpf_prog_type` (include/uapi/linux/bpf.h).
#[derive(Clone, Copy)]
#[repr(u32)]
enum Type {
    Kprobe = 2,
    PerfEvent = 7,
    RawTracepoint = 17,
    Tracing = 26,
}

/// `enum bpf_attach_type` (include/uapi/linux/bpf.h).
#[derive(Clone, Copy)]
#[repr(u32)]
enum Attach {
    RawTp = 23,
    Fentry = 24,
    Fexit = 25,
    Iterator = 28,
}

/// `union bpf_attr` for `BPF_PROG_LOAD` (include/uapi/linux/bpf.h), as far as 5.10 has it.
#[derive(Clone, Copy, Default)]
#[repr(C)]
struct Attempt {
    program_type: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    attach_type: u32,
    btf_fd: u32,
    function_info_size: u32,
    function_info: u64,
    function_info_count: u32,
    line_info_size: u32,
    line_info: u64,
    line_info_count: u32,
    attach_btf_id: u32,
    attach_program_fd: u32,
    _pad: u32,
}

const _: () = assert!(size_of::<Attempt>() == 120);

/// `BPF_PROG_LOAD`
const PROG_LOAD: libc::c_int = 5;

/// `r0 = 0; exit`
static NOTHING: [u64; 2] = [0xb7, 0x95];

impl Attempt {
    fn of(program_type: Type) -> Self {
        Self {
            program_type: program_type as u32,
            ..Self::default()
        }
    }

    fn tracing(attach: Attach, id: u32) -> Self {
        Self {
            attach_type: attach as u32,
            attach_btf_id: id,
            ..Self::of(Type::Tracing)
        }
    }

    /// Loads the program and lets go of it. An error says why it is refused.
    fn load(self) -> Result<(), String> {
        let mut loaded = self.load_once();
        for _ in 1..LOAD_ATTEMPTS {
            let again = |error: &io::Error| error.raw_os_error() == Some(libc::EAGAIN);
            if !loaded.as_ref().is_err_and(again) {
                break;
            }
            loaded = self.load_once();
        }
        loaded.map_err(|error| words(&error))
    }

    fn load_once(mut self) -> io::Result<()> {
        self.instruction_count = NOTHING.len() as u32;
        self.instructions = NOTHING.as_ptr() as u64;
        self.license = c"GPL".as_ptr() as u64;
        // SAFETY: `self` is what the kernel reads for this command, and lives until it
        // returns, as do the static instructions and the licence.
        let fd =
            unsafe { libc::syscall(libc::SYS_bpf, PROG_LOAD, &raw const self, size_of::<Self>()) };
        match i32::try_from(fd) {
            Ok(fd) if fd >= 0 => {
                // SAFETY: a fresh file descriptor that nobody else knows.
                drop(unsafe { OwnedFd::from_raw_fd(fd) });
                Ok(())
            }
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// The verifier gives up with EAGAIN when a signal comes (kernel/bpf/verifier.c).
const LOAD_ATTEMPTS: u32 = 5;

fn want(error: &io::Error) -> String {
    let remedy = match error.raw_os_error() {
        Some(libc::EMFILE) => ": raise lockwatch's limit of open files (ulimit -n, LimitNOFILE=)",
        _ => "",
    };
    format!("it could not be tried, which says nothing of the kernel ({error}){remedy}")
}

/// A refusal in words.
fn words(error: &io::Error) -> String {
    match error.raw_os_error() {
        // We have the capabilities; a program that does nothing has no other fault.
        Some(libc::EPERM | libc::EACCES) => "a security policy of this host forbids it".to_owned(),
        Some(libc::EINVAL | libc::E2BIG) => "this kernel does not know it".to_owned(),
        Some(code) if WANTS.contains(&code) => want(error),
        // Not for user space, and so without a text (include/linux/errno.h).
        Some(ENOTSUPP) => "this kernel does not support it on this machine".to_owned(),
        _ => format!("the kernel says: {error}"),
    }
}

const ENOTSUPP: i32 = 524;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_told_apart() {
        let texts = [
            libc::EPERM,
            libc::EINVAL,
            ENOTSUPP,
            libc::ENOMEM,
            libc::EMFILE,
            libc::EIO,
        ]
        .map(|code| words(&io::Error::from_raw_os_error(code)));
        assert!(texts[0].contains("policy"), "{texts:?}");
        assert!(texts[3].contains("could not be tried"), "{texts:?}");
        assert!(texts[4].contains("ulimit"), "{texts:?}");
        let distinct: std::collections::BTreeSet<_> = texts.iter().collect();
        assert_eq!(distinct.len(), 6, "{texts:?}");
    }
}
