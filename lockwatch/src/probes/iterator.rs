//! Reading the iterators over tasks and their files.

use std::{
    io::{self, Read as _},
    time::Instant,
};

use aya::{
    Ebpf,
    programs::{Iter, Program, ProgramError},
};
use zerocopy::IntoBytes as _;

use crate::probes::LoadError;

/// The kernel fills a buffer of its own of this size per read: whole records only.
const READ_LEN: usize = 32 * 1024;

/// A program of an object.
pub(super) fn program<'a, T>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut T, LoadError>
where
    &'a mut T: TryFrom<&'a mut Program>,
{
    ebpf.program_mut(name)
        .and_then(|program| program.try_into().ok())
        .ok_or(LoadError::Missing(name))
}

/// Runs a loaded iterator over everything; gives its records as words, for every part of a
/// record is a multiple of 8 bytes long. They take the place of what is in `memory`.
pub(super) fn read(
    ebpf: &mut Ebpf,
    name: &'static str,
    memory: Vec<u64>,
) -> Result<Vec<u64>, LoadError> {
    Ok(run(ebpf, name, None, memory)?.unwrap_or_default())
}

/// As [`read`]; `None` if there is more by the deadline.
pub(super) fn read_until(
    ebpf: &mut Ebpf,
    name: &'static str,
    deadline: Instant,
) -> Result<Option<Vec<u64>>, LoadError> {
    run(ebpf, name, Some(deadline), Vec::new())
}

fn run(
    ebpf: &mut Ebpf,
    name: &'static str,
    deadline: Option<Instant>,
    mut words: Vec<u64>,
) -> Result<Option<Vec<u64>>, LoadError> {
    let iterator: &mut Iter = program(ebpf, name)?;
    let id = iterator.attach().map_err(LoadError::program)?;
    let link = iterator.take_link(id).map_err(LoadError::program)?;
    let mut file = link
        .into_file()
        .map_err(|source| LoadError::program(ProgramError::IOError(io::Error::other(source))))?;
    let mut used = 0;
    loop {
        // Read in place. What is added grows with what there is, and is cleared once.
        if words.len() < used + READ_LEN / 8 {
            words.resize(words.len() + (words.len() / 4).max(8 * READ_LEN / 8), 0);
        }
        match file.read(words[used..used + READ_LEN / 8].as_mut_bytes()) {
            Ok(0) => {
                words.truncate(used);
                return Ok(Some(words));
            }
            Ok(len) => used += len / 8,
            // The iterator gives up after a million objects in a row: ask again.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock
                ) => {}
            Err(source) => return Err(LoadError::Iterate(source)),
        }
        if deadline.is_some_and(|deadline| Instant::now() > deadline) {
            return Ok(None);
        }
    }
}
