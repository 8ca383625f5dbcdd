//! Which functions write to a file system while it must not freeze: they hold a level of
//! its `s_writers` for read (`sb_start_write` and its kin, include/linux/fs.h).
//!
//! From fs/read_write.c, fs/open.c, fs/namei.c, fs/ext4/inode.c and mm/filemap.c of 5.10,
//! 6.1, 6.12 and 7.3. Left out, as their frames do not tell whether the lock is taken yet,
//! or is at all: opening for write (`lookup_open`), `filename_create` before the new name is
//! made, asynchronous I/O, `sb_start_intwrite` in the file systems, and what writes from one
//! file to another: splice, sendfile and `copy_file_range` (fs/splice.c, fs/read_write.c).

/// One function that holds a level for read while it is in certain callees.
#[derive(Clone, Copy, Debug)]
pub struct WriterFrame {
    /// Stem of its name.
    pub function: &'static str,
    /// In which callees, by their stems.
    callees: Callees,
    /// What of the file system it keeps until it is done.
    pub keeps: Keeps,
}

#[derive(Clone, Copy, Debug)]
enum Callees {
    /// In these, and in those that end like this, if any do.
    Only(&'static [&'static str], Option<&'static str>),
    /// In all but these, which take the lock. The empty one is the wait for it.
    AllBut(&'static [&'static str]),
}

/// What says which file system a function writes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keeps {
    /// The open file, which must be a regular one: `file_start_write` leaves the others alone.
    File,
    /// The same, in the `struct kiocb` that it or what it calls has on the stack: what lies
    /// further in says nothing.
    Kiocb,
    /// The mount in which a name changes.
    Mount,
    /// The inode whose page is made writable.
    Inode,
}

const fn only(
    function: &'static str,
    callees: &'static [&'static str],
    keeps: Keeps,
) -> WriterFrame {
    WriterFrame {
        function,
        callees: Callees::Only(callees, None),
        keeps,
    }
}

const fn file(
    function: &'static str,
    callees: &'static [&'static str],
    end: &'static str,
) -> WriterFrame {
    WriterFrame {
        function,
        callees: Callees::Only(callees, Some(end)),
        keeps: Keeps::File,
    }
}

const fn faults(function: &'static str) -> WriterFrame {
    WriterFrame {
        function,
        // Whatever of the three is inlined leaves the wait to the one before it, at last to
        // the function itself (kernel/locking/percpu-rwsem.c).
        callees: Callees::AllBut(&[
            "",
            "__sb_start_write",
            "__percpu_down_read",
            "percpu_rwsem_wait",
        ]),
        keeps: Keeps::Inode,
    }
}

/// `SB_FREEZE_WRITE`
const WRITE: &[WriterFrame] = &[
    WriterFrame {
        keeps: Keeps::Kiocb,
        ..file("vfs_write", &["new_sync_write"], "_write_iter")
    },
    file(
        "vfs_writev",
        &["do_iter_write", "do_iter_readv_writev"],
        "_write_iter",
    ),
    file("vfs_fallocate", &[], "_fallocate"),
    // Names that change (`mnt_want_write`); do_… up to 6.x, filename_… later.
    only("do_mkdirat", &["vfs_mkdir"], Keeps::Mount),
    only("filename_mkdirat", &["vfs_mkdir"], Keeps::Mount),
    only("do_mknodat", &["vfs_create", "vfs_mknod"], Keeps::Mount),
    only(
        "filename_mknodat",
        &["vfs_create", "vfs_mknod"],
        Keeps::Mount,
    ),
    only("do_symlinkat", &["vfs_symlink"], Keeps::Mount),
    only("filename_symlinkat", &["vfs_symlink"], Keeps::Mount),
    only("do_linkat", &["vfs_link"], Keeps::Mount),
    only("filename_linkat", &["vfs_link"], Keeps::Mount),
    only("do_unlinkat", &["vfs_unlink"], Keeps::Mount),
    only("filename_unlinkat", &["vfs_unlink"], Keeps::Mount),
    only("do_rmdir", &["vfs_rmdir"], Keeps::Mount),
    only("filename_rmdir", &["vfs_rmdir"], Keeps::Mount),
    only("do_renameat2", &["vfs_rename"], Keeps::Mount),
    only("filename_renameat2", &["vfs_rename"], Keeps::Mount),
];

/// `SB_FREEZE_PAGEFAULT`
const PAGE_FAULT: &[WriterFrame] = &[faults("ext4_page_mkwrite"), faults("filemap_page_mkwrite")];

/// The functions that hold a level for read, in the order of `s_writers.rw_sem`.
pub const BY_LEVEL: [&[WriterFrame]; 3] = [WRITE, PAGE_FAULT, &[]];

/// A page fault in the midst of a write, by its first functions: what lies further in is
/// about the memory that is written from.
pub const FAULT_ENTRIES: &[&str] = &["asm_exc_page_fault", "exc_page_fault"];

impl WriterFrame {
    /// Whether the level is held while this function is in `callee` (empty: asleep in the
    /// function itself).
    pub fn holds_in(&self, callee: &str) -> bool {
        match self.callees {
            Callees::Only(these, end) => {
                these.contains(&callee) || end.is_some_and(|end| callee.ends_with(end))
            }
            Callees::AllBut(others) => !others.contains(&callee),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(level: usize, function: &str) -> &'static WriterFrame {
        let mut all = BY_LEVEL[level].iter();
        all.find(|known| known.function == function).unwrap()
    }

    #[test]
    fn what_waits_for_the_level_does_not_hold_it() {
        let write = known(0, "vfs_write");
        assert!(write.holds_in("ext4_file_write_iter") && write.holds_in("new_sync_write"));
        for callee in ["", "__sb_start_write", "rw_verify_area", "fsnotify"] {
            assert!(!write.holds_in(callee), "{callee}");
        }
        // A pipe's own function, on kernels where it is called at once.
        assert!(!write.holds_in("pipe_write_slow"));
        assert!(!known(0, "do_mkdirat").holds_in("filename_create"));
        assert!(!known(0, "do_mkdirat").holds_in(""));
    }

    #[test]
    fn a_fault_that_waits_for_the_level_does_not_hold_it() {
        for function in ["ext4_page_mkwrite", "filemap_page_mkwrite"] {
            let fault = known(1, function);
            assert!(fault.holds_in("block_page_mkwrite"), "{function}");
            for callee in [
                "",
                "__sb_start_write",
                "__percpu_down_read",
                "percpu_rwsem_wait",
            ] {
                assert!(!fault.holds_in(callee), "{function} in {callee}");
            }
        }
    }
}
