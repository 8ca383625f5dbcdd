//! The survey's programs: loaded, and attached to nothing the kernel runs.

use std::{
    io,
    mem::offset_of,
    os::fd::AsFd,
    ptr::{self, NonNull},
    time::Instant,
};

use aya::{
    Btf, Ebpf, RawTracePointRunOptions, TestRun as _,
    maps::{Array, Map},
    programs::{Iter, RawTracePoint},
};
use lockwatch_ebpf::survey::{
    OUTPUT_LEN, OUTPUT_MAP_LEN, OpenFile, OpenFileLayout, READ_LEN_MAX, READS_MAX, ReadPage,
    ReadRequest, TaskLayout, TaskRecord,
};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use zerocopy::{FromBytes as _, IntoBytes as _};

use crate::{
    kernel::{
        arch::{IMAGE, lowest_kernel_address},
        memory::{KernelMemory, MemoryError},
    },
    probes::{LoadError, iterator, loader::loader, log, pod},
};

static OBJECT: &[u8] = aya::include_bytes_aligned!("object/survey.bpf.o");

const TASKS: &str = "tasks";
const READ_MEMORY: &str = "read_memory";
const OPEN_FILES: &str = "open_files";

pod!(
    TaskLayoutGlobal(TaskLayout),
    OpenFileLayoutGlobal(OpenFileLayout)
);

/// The loaded programs and the pages shared with them.
pub struct SurveyProbes {
    page: SharedMap<ReadPage>,
    output: SharedMap<[u8; OUTPUT_MAP_LEN]>,
    /// Below it the kernel's half of the address space has no canonical address.
    lowest: u64,
    /// The kernel took the program that reads open files.
    reads_files: bool,
    /// How many surveys have begun.
    surveys: u64,
    ebpf: Ebpf,
    log: log::ProgramLog,
}

impl std::fmt::Debug for SurveyProbes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SurveyProbes").finish_non_exhaustive()
    }
}

impl SurveyProbes {
    /// Loads the object for this kernel's layout.
    ///
    /// # Errors
    /// When the kernel refuses a program or a map.
    pub fn load(
        layout: &TaskLayout,
        open_file: &OpenFileLayout,
        btf: &Btf,
    ) -> Result<Self, LoadError> {
        let mut loader = loader();
        let layout = TaskLayoutGlobal(*layout);
        let open_file = OpenFileLayoutGlobal(*open_file);
        loader
            .override_global("TASK_LAYOUT", &layout, true)
            .override_global("OPEN_FILE_LAYOUT", &open_file, true);
        let log_level = log::level();
        log::configure(&mut loader, &log_level);
        let mut ebpf = loader.load(OBJECT).map_err(LoadError::object)?;

        let tasks: &mut Iter = iterator::program(&mut ebpf, TASKS)?;
        tasks.load("task", btf).map_err(LoadError::program)?;
        let reader: &mut RawTracePoint = iterator::program(&mut ebpf, READ_MEMORY)?;
        reader.load().map_err(LoadError::program)?;
        let files: &mut Iter = iterator::program(&mut ebpf, OPEN_FILES)?;
        // Without it all is known but who serves a FUSE file system.
        let refused = files.load("task_file", btf).err();
        if let Some(error) = &refused {
            tracing::info!("the kernel refuses to list open files: {error}");
        }

        let page = SharedMap::new(&ebpf, "READ_PAGE")?;
        let output = SharedMap::new(&ebpf, "READ_OUTPUT")?;
        let log = log::ProgramLog::open(&mut ebpf);
        Ok(Self {
            page,
            output,
            // Until a task is seen, nothing but the kernel's image can be read.
            lowest: IMAGE.start,
            reads_files: refused.is_none(),
            surveys: 0,
            ebpf,
            log,
        })
    }

    /// Runs the task iterator over every task, and hands out its records: some whole ones at
    /// a time, as words, for every part of a record is a multiple of 8 bytes long. `again` says
    /// that all were read before: those that have not run since are not unwound again
    /// ([`lockwatch_ebpf::survey::FRAMES_AS_BEFORE`]).
    ///
    /// # Errors
    /// When the kernel refuses the iterator or a read fails.
    pub fn read_tasks(
        &mut self,
        again: bool,
        take: &mut dyn FnMut(&[u64]),
    ) -> Result<(), LoadError> {
        if !again {
            self.surveys += 1;
            self.set("SURVEY", self.surveys)?;
        }
        let mut first = None;
        iterator::read(&mut self.ebpf, TASKS, &mut |words| {
            first = first.or_else(|| words.get(offset_of!(TaskRecord, task) / 8).copied());
            take(words);
        })?;
        self.log.flush();
        if let Some(task) = first {
            self.lowest = lowest_kernel_address(task);
        }
        Ok(())
    }

    /// Tells the programs a number, in a map of one.
    fn set(&mut self, name: &'static str, value: u64) -> Result<(), LoadError> {
        let map = self.ebpf.map_mut(name).ok_or(LoadError::Missing(name))?;
        let mut map: Array<_, u64> =
            Array::try_from(map).map_err(|error| LoadError::Map(io::Error::other(error)))?;
        map.set(0, value, 0)
            .map_err(|error| LoadError::Map(io::Error::other(error)))
    }

    /// Every descriptor whose file is read by the function at this address; `None` where the
    /// kernel refuses to list open files. Ends at `deadline`, and then gives none either:
    /// a part of them would be taken for all.
    ///
    /// The kernel holds each file for the moment it shows it. Should its owner close it in that
    /// very moment, it is we who release it; so this is asked only if it matters.
    ///
    /// # Errors
    /// When the kernel refuses the iterator or a read fails.
    pub fn read_open_files(
        &mut self,
        read_function: u64,
        deadline: Instant,
    ) -> Result<Option<Vec<OpenFile>>, LoadError> {
        if !self.reads_files {
            return Ok(None);
        }
        self.set("READ_FUNCTION", read_function)?;
        let words = iterator::read_until(&mut self.ebpf, OPEN_FILES, deadline)?;
        Ok(words.map(|words| {
            let records = words.as_bytes().chunks_exact(size_of::<OpenFile>());
            records
                .filter_map(|record| OpenFile::read_from_bytes(record).ok())
                .collect()
        }))
    }

    fn run_reader(&self, count: usize) -> Result<(), MemoryError> {
        let program = self.ebpf.program(READ_MEMORY);
        let reader: &RawTracePoint = program
            .and_then(|program| program.try_into().ok())
            .ok_or_else(|| MemoryError(LoadError::Missing(READ_MEMORY).into()))?;
        let mut options = RawTracePointRunOptions::new();
        options.args[0] = count as u64;
        let result = reader
            .test_run(options)
            .map_err(|error| MemoryError(error.into()))?;
        match result.return_value {
            0 => Ok(()),
            code => Err(MemoryError(
                format!("the reader program returned {code}").into(),
            )),
        }
    }
}

impl KernelMemory for SurveyProbes {
    fn read_batch(&mut self, reads: &[(u64, usize)]) -> Result<Vec<Option<Vec<u8>>>, MemoryError> {
        let mut results = Vec::with_capacity(reads.len());
        self.read_each(reads, &mut |bytes| {
            results.push(bytes.map(<[u8]>::to_vec));
        })?;
        Ok(results)
    }

    fn read_each(
        &mut self,
        reads: &[(u64, usize)],
        take: &mut dyn FnMut(Option<&[u8]>),
    ) -> Result<(), MemoryError> {
        let mut rest = reads;
        while !rest.is_empty() {
            let mut count = 0;
            let mut used = 0;
            for &(address, len) in rest.iter().take(READS_MAX) {
                let len = len.min(READ_LEN_MAX);
                if used + len > OUTPUT_LEN {
                    break;
                }
                let request = ReadRequest {
                    // Words from stacks may be anything: the kernel refuses 0 quietly.
                    address: if address < self.lowest { 0 } else { address },
                    len: len as u32,
                    output_offset: used as u32,
                };
                self.page.get_mut().requests[count] = request;
                used += (len + 7) & !7;
                count += 1;
            }
            self.run_reader(count)?;
            for index in 0..count {
                let ReadRequest {
                    len, output_offset, ..
                } = self.page.get().requests[index];
                let start = output_offset as usize;
                let bytes = &self.output.get()[start..start + len as usize];
                take((self.page.get().results[index] == 0).then_some(bytes));
            }
            rest = &rest[count..];
        }
        self.log.flush();
        Ok(())
    }
}

/// The single value of an mmapable array, mapped into this process.
struct SharedMap<T> {
    value: NonNull<T>,
}

impl<T: zerocopy::FromBytes> SharedMap<T> {
    fn new(ebpf: &Ebpf, name: &'static str) -> Result<Self, LoadError> {
        let Some(Map::Array(map)) = ebpf.map(name) else {
            return Err(LoadError::Missing(name));
        };
        // SAFETY: a fresh mapping of a map whose value is at least `T` long.
        let address = unsafe {
            mmap(
                ptr::null_mut(),
                size_of::<T>(),
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                map.fd().as_fd(),
                0,
            )
        }
        .map_err(|error| LoadError::Map(error.into()))?;
        NonNull::new(address.cast())
            .map(|value| Self { value })
            .ok_or(LoadError::Missing(name))
    }

    fn get(&self) -> &T {
        // SAFETY: mapped and aligned to a page for the life of `self`; the program
        // writes to it only inside `run_reader`, during which no reference lives.
        unsafe { self.value.as_ref() }
    }

    fn get_mut(&mut self) -> &mut T {
        // SAFETY: as in `get`, and the borrow is exclusive.
        unsafe { self.value.as_mut() }
    }
}

impl<T> Drop for SharedMap<T> {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `new`, not used after this.
        let unmapped = unsafe { munmap(self.value.as_ptr().cast(), size_of::<T>()) };
        debug_assert!(unmapped.is_ok(), "the mapping is ours");
    }
}

// SAFETY: the mapping belongs to one value and moves with it.
unsafe impl<T: Send> Send for SharedMap<T> {}
