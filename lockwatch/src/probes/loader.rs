//! Where loading starts: an empty loader, and the few types of the kernel that aya has to know.

use std::{io, thread};

use aya::{BtfError, EbpfLoader, Endianness};
use libc::{c_long, sock_filter, sock_fprog};

use crate::kernel::{btf::Btf, lock_functions::tracepoint};

/// What the kernel calls the functions that its iterators hook (kernel/bpf/task_iter.c).
const ITERATORS: [&str; 2] = ["bpf_iter_task", "bpf_iter_task_file"];

/// An empty loader.
///
/// [`EbpfLoader::new`] reads and parses all types of the kernel for each object that is
/// loaded, 25 ms and 20 MB a time, to relocate programs by them (CO-RE). Ours have nothing to
/// relocate, and aya has no way to say so but a kernel that shows no types. So the loader is
/// made by a thread that sees no files. Best effort: what cannot be kept from being read only
/// takes its time.
pub(super) fn loader<'a>() -> EbpfLoader<'a> {
    thread::scope(|scope| {
        let blind = thread::Builder::new()
            .name("lockwatch-blind".to_owned())
            .stack_size(64 * 1024)
            .spawn_scoped(scope, || {
                if let Err(error) = open_no_more_files() {
                    tracing::debug!("all types of the kernel are read once more: {error}");
                }
                EbpfLoader::new()
            });
        // A panic has said why by itself.
        let made = blind.ok().and_then(|blind| blind.join().ok());
        made.unwrap_or_default()
    })
}

/// From here on, this thread's attempts to open a file fail, as if there was none. Other
/// threads are not concerned, and no privilege is needed, for it can only be less than before.
fn open_no_more_files() -> io::Result<()> {
    const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let instruction = |code, k, jt, jf| sock_filter { code, jt, jf, k };
    // Of `struct seccomp_data`, the first word: the number of the call. `open` is there for
    // architectures that have no other.
    let refusal = libc::SECCOMP_RET_ERRNO | libc::ENOENT as u32;
    let mut program = [
        instruction(LOAD, 0, 0, 0),
        instruction(IF_EQUAL, number(libc::SYS_openat), 1, 0),
        instruction(IF_EQUAL, number(libc::SYS_open), 0, 1),
        instruction(RETURN, refusal, 0, 0),
        instruction(RETURN, libc::SECCOMP_RET_ALLOW, 0, 0),
    ];
    let program = sock_fprog {
        len: program.len() as u16,
        filter: program.as_mut_ptr(),
    };
    rustix::thread::set_no_new_privs(true)?;
    // SAFETY: the kernel copies the program, which lives until it returns.
    let result = unsafe {
        libc::prctl(
            libc::PR_SET_SECCOMP,
            libc::SECCOMP_MODE_FILTER,
            &raw const program,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

fn number(call: c_long) -> u32 {
    call as u32
}

/// Of the kernel's types, those that a program of ours may be loaded for: with the numbers
/// that they have in the kernel, and nothing in between.
///
/// aya looks numbers up by names, once for each program, in types that it holds as a tree; all
/// types of a kernel take it 25 ms and 20 MB.
///
/// # Errors
/// Never, as far as is known: aya parses what is made here.
pub(super) fn hookable(types: &Btf) -> Result<aya::Btf, BtfError> {
    let iterators = ITERATORS.iter();
    let iterators = iterators.filter_map(|&name| Some((types.function_named(name)?, name)));
    let of_locks = types.lock_functions().map(|(id, name, _)| (id, name));
    let functions = of_locks
        .chain(iterators)
        .map(|(id, name)| (id, FUNCTION, name.to_owned()));
    let tracepoints = types
        .tracepoints()
        .filter(|(_, name)| tracepoint::ALL.contains(name))
        .map(|(id, name)| (id, TYPEDEF, format!("btf_trace_{name}")));
    let mut wanted: Vec<(u32, u32, String)> = functions.chain(tracepoints).collect();
    wanted.sort_unstable();
    aya::Btf::parse(&sparse(&wanted), Endianness::default())
}

/// `BTF_KIND_TYPEDEF`, `BTF_KIND_CONST` and `BTF_KIND_FUNC`
const TYPEDEF: u32 = 8;
const CONST: u32 = 10;
const FUNCTION: u32 = 12;

/// Types with these numbers, kinds and names, in the format of Documentation/bpf/btf.rst. What
/// lies between them is `const void`, the smallest that there is.
fn sparse(wanted: &[(u32, u32, String)]) -> Vec<u8> {
    const HEADER_LEN: usize = 24;
    let count = wanted.last().map_or(0, |(last, ..)| *last as usize);
    let types_len = 12 * count;
    let mut bytes = Vec::with_capacity(HEADER_LEN + types_len + 64 * wanted.len());
    bytes.resize(HEADER_LEN, 0);
    let mut strings = vec![0];
    let mut next = 1;
    for (id, kind, name) in wanted {
        for _ in next..*id {
            push(&mut bytes, [0, CONST << 24, 0]);
        }
        next = id + 1;
        push(&mut bytes, [strings.len() as u32, kind << 24, 0]);
        strings.extend_from_slice(name.as_bytes());
        strings.push(0);
    }
    let header = [
        u32::from_le_bytes([0x9f, 0xeb, 1, 0]),
        HEADER_LEN as u32,
        0,
        types_len as u32,
        types_len as u32,
        strings.len() as u32,
    ];
    for (at, word) in bytes.chunks_exact_mut(4).zip(header) {
        at.copy_from_slice(&word.to_ne_bytes());
    }
    bytes.extend_from_slice(&strings);
    bytes
}

fn push(bytes: &mut Vec<u8>, words: [u32; 3]) {
    for word in words {
        bytes.extend_from_slice(&word.to_ne_bytes());
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_thread_that_opens_no_files_leaves_the_others_alone() {
        let here = "/proc/self/stat";
        let refused = thread::spawn(move || {
            open_no_more_files().unwrap();
            fs::read(here).unwrap_err().kind()
        });
        assert_eq!(refused.join().unwrap(), io::ErrorKind::NotFound);
        assert!(fs::read(here).is_ok());
    }

    #[test]
    fn names_have_the_numbers_that_they_had() {
        let wanted = [
            (3, FUNCTION, "go".to_owned()),
            (7, TYPEDEF, "btf_trace_go".to_owned()),
        ];
        let bytes = sparse(&wanted);
        let ours = Btf::parse(bytes.clone()).unwrap();
        assert!(ours.has_function("go") && !ours.has_function("stop"));
        let aya = aya::Btf::parse(&bytes, Endianness::default()).unwrap();
        let id = |name, kind| aya.id_by_type_name_kind(name, kind).ok();
        assert_eq!(id("go", aya_obj::btf::BtfKind::Func), Some(3));
        assert_eq!(id("btf_trace_go", aya_obj::btf::BtfKind::Typedef), Some(7));
        assert_eq!(id("stop", aya_obj::btf::BtfKind::Func), None);
    }
}
