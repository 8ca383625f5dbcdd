//! Arrays of the programs, mapped into this process: read without a system call.

use std::{
    io,
    marker::PhantomData,
    os::fd::AsFd,
    ptr::{self, NonNull},
};

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use crate::probes::LoadError;

/// The elements of an array that others change meanwhile.
#[derive(Debug)]
pub(super) struct Mapped<T> {
    first: NonNull<T>,
    len: usize,
    _elements: PhantomData<T>,
}

// SAFETY: the mapping belongs to one value and moves with it.
unsafe impl<T: Send> Send for Mapped<T> {}

impl<T: zerocopy::FromBytes> Mapped<T> {
    /// Maps `len` elements of an array that has at least as many, one behind the other.
    pub(super) fn new(array: impl AsFd, len: usize) -> Result<Self, LoadError> {
        // SAFETY: a fresh mapping.
        let address = unsafe {
            mmap(
                ptr::null_mut(),
                len * size_of::<T>(),
                ProtFlags::READ | ProtFlags::WRITE,
                // Nothing is to be waited for when it is read.
                MapFlags::SHARED | MapFlags::POPULATE,
                array,
                0,
            )
        }
        .map_err(|error| LoadError::Map(io::Error::from(error)))?;
        let first = NonNull::new(address.cast())
            .ok_or_else(|| LoadError::Map(io::Error::from(io::ErrorKind::OutOfMemory)))?;
        Ok(Self {
            first,
            len,
            _elements: PhantomData,
        })
    }

    /// Elements there are.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Where an element lies.
    pub(super) fn at(&self, index: usize) -> *mut T {
        assert!(index < self.len);
        // SAFETY: in bounds of the mapping.
        unsafe { self.first.as_ptr().add(index) }
    }

    /// A copy of an element, of which any word may change meanwhile.
    pub(super) fn read(&self, index: usize) -> T {
        // SAFETY: in bounds and aligned; any bytes are valid.
        unsafe { ptr::read_volatile(self.at(index)) }
    }
}

impl<T> Drop for Mapped<T> {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `new`, not used after this.
        let unmapped = unsafe { munmap(self.first.as_ptr().cast(), self.len * size_of::<T>()) };
        debug_assert!(unmapped.is_ok(), "the mapping is ours");
    }
}
