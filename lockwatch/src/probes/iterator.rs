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

/// Runs a loaded iterator over everything and hands out what it writes as it comes: some whole
/// records at a time, as words, for every part of a record is a multiple of 8 bytes long.
pub(super) fn read(
    ebpf: &mut Ebpf,
    name: &'static str,
    take: &mut dyn FnMut(&[u64]),
) -> Result<(), LoadError> {
    run(ebpf, name, None, take)?;
    Ok(())
}

/// All that a loaded iterator writes; `None` if there is more by the deadline.
pub(super) fn read_until(
    ebpf: &mut Ebpf,
    name: &'static str,
    deadline: Instant,
) -> Result<Option<Vec<u64>>, LoadError> {
    let mut words = Vec::new();
    let take = &mut |some: &[u64]| words.extend_from_slice(some);
    let is_all = run(ebpf, name, Some(deadline), take)?;
    Ok(is_all.then_some(words))
}

/// Whether all came by the deadline.
fn run(
    ebpf: &mut Ebpf,
    name: &'static str,
    deadline: Option<Instant>,
    take: &mut dyn FnMut(&[u64]),
) -> Result<bool, LoadError> {
    let iterator: &mut Iter = program(ebpf, name)?;
    let id = iterator.attach().map_err(LoadError::program)?;
    let link = iterator.take_link(id).map_err(LoadError::program)?;
    let mut file = link
        .into_file()
        .map_err(|source| LoadError::program(ProgramError::IOError(io::Error::other(source))))?;
    let mut words = vec![0u64; READ_LEN / 8];
    loop {
        match file.read(words.as_mut_bytes()) {
            Ok(0) => return Ok(true),
            Ok(len) => take(&words[..len / 8]),
            // The iterator gives up after a million objects in a row: ask again.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock
                ) => {}
            Err(source) => return Err(LoadError::Iterate(source)),
        }
        if deadline.is_some_and(|deadline| Instant::now() > deadline) {
            return Ok(false);
        }
    }
}
