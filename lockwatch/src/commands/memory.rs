//! This process's own memory: little, and there when it is needed.

use std::{fs, hint, io, ptr};

use rustix::mm::{MlockAllFlags, mlockall};

use super::priority;
use crate::kernel::{arch::PAGE_SIZE, capabilities};

/// What is mapped in this process, one line each.
const MAPS: &str = "/proc/self/maps";

/// Keeps this process in memory from here on, and out of huge pages: what it needs must not
/// have to be read from a disk that hangs, nor wait for khugepaged. Best effort; without the
/// right to do it we go on.
pub(super) fn lock_memory() {
    priority::keep_out_of_huge_pages();
    give_back();
    // Within a limit, locking what comes later would make it fail to come.
    if !capabilities::may_lock_memory() {
        tracing::info!("without CAP_IPC_LOCK this process is not locked into memory");
        return;
    }
    // What is there stays, and what comes stays once it is used. Not all that is mapped is
    // made to come: of thread stacks, and of what the allocator has kept in store, most is
    // never used.
    let flags = MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT;
    if let Err(error) = mlockall(flags) {
        tracing::info!("cannot lock this process into memory: {error}");
        return;
    }
    // But what would have to be read from a disk must come now.
    if let Err(error) = read_files() {
        tracing::info!("cannot read all of this program into memory: {error}");
    }
}

/// Gives back to the kernel what was used at the start and is not any more: the allocator
/// would keep it, and locked.
fn give_back() {
    // SAFETY: has no arguments that could be wrong, and only frees what nobody uses.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Reads every page of every file that is mapped for reading: this program, and its libraries.
fn read_files() -> io::Result<()> {
    for line in fs::read_to_string(MAPS)?.lines() {
        let Some((start, len)) = file_mapping(line) else {
            continue;
        };
        // 5.14+, and for all at once.
        // SAFETY: only makes pages present that are mapped anyhow.
        let populated =
            unsafe { libc::madvise(ptr::without_provenance_mut(start), len, MADV_POPULATE_READ) };
        if populated == 0 {
            continue;
        }
        for page in (start..start + len).step_by(PAGE_SIZE as usize) {
            let byte = ptr::with_exposed_provenance::<u8>(page);
            // SAFETY: of a mapping that can be read, of a file that runs and so is not cut
            // short, and that nobody unmaps: libraries stay until the end.
            hint::black_box(unsafe { byte.read_volatile() });
        }
    }
    Ok(())
}

/// `MADV_POPULATE_READ` (include/uapi/asm-generic/mman-common.h)
const MADV_POPULATE_READ: libc::c_int = 22;

/// Start and length of a private mapping of a file that can be read, in a line of [`MAPS`].
fn file_mapping(line: &str) -> Option<(usize, usize)> {
    let mut fields = line.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let is_private = |access: &str| access.starts_with('r') && access.ends_with('p');
    fields.next().filter(|access| is_private(access))?;
    fields.nth(2).filter(|inode| *inode != "0")?;
    let number = |text| usize::from_str_radix(text, 16).ok();
    let (start, end) = (number(start)?, number(end)?);
    Some((start, end.checked_sub(start)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_told_from_other_memory() {
        let text = "55d0c000-55d0e000 r-xp 00002000 08:01 7 /usr/bin/lockwatch";
        assert_eq!(file_mapping(text), Some((0x55d0_c000, 0x2000)));
        for other in [
            "55d0c000-55d0e000 rw-p 00000000 00:00 0 [heap]",
            "55d0c000-55d0e000 ---p 00002000 08:01 7 /usr/lib/libc.so.6",
            "55d0c000-55d0e000 rw-s 00000000 00:0e 7 anon_inode:bpf-map",
            "",
        ] {
            assert_eq!(file_mapping(other), None, "{other}");
        }
    }

    #[test]
    fn every_page_of_this_program_can_be_read() {
        read_files().unwrap();
    }
}
