//! This process's own memory: little, and there when it is needed.

use std::{hint, ptr, slice};

use rustix::mm::{MlockAllFlags, mlockall};

use super::priority;
use crate::kernel::{arch::PAGE_SIZE, capabilities};

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
    read_files();
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

/// Has the allocator hand big pieces (a file of symbols, the stacks of all tasks) back to the
/// kernel as soon as they are free. By itself, it keeps all pieces as big as the biggest that was
/// ever freed, and later they are locked.
pub(super) fn give_back_big_pieces() {
    // SAFETY: sets a number of the allocator's.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, BIG_PIECE);
    }
}

/// Bytes.
#[cfg(target_env = "gnu")]
const BIG_PIECE: libc::c_int = 2 << 20;

/// Reads every page of this program and its libraries. Where they lie is asked of the loader:
/// `/proc/self/maps` would take our mmap_lock, which somebody else may have.
fn read_files() {
    for (start, len) in segments() {
        // 5.14+, and for all at once.
        // SAFETY: only makes pages present that are mapped anyhow.
        let populated =
            unsafe { libc::madvise(ptr::without_provenance_mut(start), len, MADV_POPULATE_READ) };
        if populated == 0 {
            continue;
        }
        for page in (start..start + len).step_by(PAGE_SIZE as usize) {
            let byte = ptr::with_exposed_provenance::<u8>(page);
            // SAFETY: of a segment that can be read, of a file that runs and so is not cut
            // short, and that nobody unmaps: libraries stay until the end.
            hint::black_box(unsafe { byte.read_volatile() });
        }
    }
}

/// `MADV_POPULATE_READ` (include/uapi/asm-generic/mman-common.h)
const MADV_POPULATE_READ: libc::c_int = 22;

/// First page and length in bytes of each part of a file that is loaded and can be read.
fn segments() -> Vec<(usize, usize)> {
    let mut found: Vec<(usize, usize)> = Vec::new();
    // SAFETY: the callback is called before this returns, with what it expects.
    unsafe { libc::dl_iterate_phdr(Some(take_segments), (&raw mut found).cast()) };
    found
}

/// Takes the segments of one object into the `Vec` that `found` points at.
///
/// # Safety
/// To be called by `dl_iterate_phdr`, with such a pointer.
unsafe extern "C" fn take_segments(
    object: *mut libc::dl_phdr_info,
    _size: libc::size_t,
    found: *mut libc::c_void,
) -> libc::c_int {
    // SAFETY: the loader's, for the time of the call.
    let object = unsafe { &*object };
    // SAFETY: as promised, and nobody else uses it meanwhile.
    let found = unsafe { &mut *found.cast::<Vec<(usize, usize)>>() };
    // SAFETY: the loader says how many there are.
    let headers =
        unsafe { slice::from_raw_parts(object.dlpi_phdr, usize::from(object.dlpi_phnum)) };
    let wanted = headers
        .iter()
        .filter(|header| header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_R != 0);
    found.extend(wanted.map(|header| {
        let start = object.dlpi_addr as usize + header.p_vaddr as usize;
        let first = start & !(PAGE_SIZE as usize - 1);
        (first, start + header.p_filesz as usize - first)
    }));
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_of_this_program_and_its_data_are_parts_of_it() {
        static DATA: [u8; 3] = [1, 2, 3];
        let is_known = |address: usize| {
            let within = |&(start, len): &(usize, usize)| (start..start + len).contains(&address);
            segments().iter().any(within)
        };
        assert!(is_known(lock_memory as fn() as usize));
        assert!(is_known(DATA.as_ptr() as usize));
        let local = 0_u8;
        assert!(!is_known(&raw const local as usize));
    }

    #[test]
    fn every_page_of_this_program_can_be_read() {
        read_files();
    }
}
