//! Names of the functions on stacks, each address asked once.

use rustc_hash::FxHashMap;

use crate::{
    kernel::symbols::{Place, Symbols, stem},
    survey::look::TaskLook,
};

/// A cache in front of the symbol table: a thousand equal stacks are one.
#[derive(Debug)]
pub(super) struct Functions<'a> {
    symbols: &'a Symbols,
    known: FxHashMap<u64, Option<(&'a str, u64)>>,
}

impl<'a> Functions<'a> {
    /// An empty cache.
    pub(super) fn new(symbols: &'a Symbols) -> Self {
        Self {
            symbols,
            known: FxHashMap::default(),
        }
    }

    /// The function a return address returns into, and the offset of that address.
    pub(super) fn returned_into(&mut self, address: u64) -> Option<(&'a str, u64)> {
        // A call may be the last instruction of its function: look one byte back.
        let symbols = self.symbols;
        *self.known.entry(address).or_insert_with(|| {
            symbols
                .function_at(address - 1)
                .map(|(name, offset)| (name, offset + 1))
        })
    }

    /// The stem of that function's name; empty where it is not known.
    pub(super) fn stem(&mut self, address: u64) -> &'a str {
        self.returned_into(address)
            .map_or("", |(name, _)| stem(name))
    }

    /// The stems of a task's frames, innermost first.
    pub(super) fn stems(&mut self, task: &TaskLook) -> Vec<&'a str> {
        task.frames
            .iter()
            .map(|frame| self.stem(frame.return_address))
            .collect()
    }

    /// The place that a return address returns to.
    pub(super) fn place(&self, address: u64) -> Option<Place<'a>> {
        self.symbols.place_of_return(address)
    }

    /// Whether a symbol begins exactly here.
    pub(super) fn is_symbol(&self, address: u64) -> bool {
        self.symbols.exact(address).is_some()
    }

    /// Whether a symbol that is no function begins exactly here.
    pub(super) fn is_data(&self, address: u64) -> bool {
        self.is_symbol(address) && self.symbols.function_at(address).is_none()
    }

    /// As a report shows it: `function+0x1f`, or the bare address.
    pub(super) fn show(&mut self, address: u64) -> String {
        match self.returned_into(address) {
            Some((name, offset)) => format!("{name}+{offset:#x}"),
            None => format!("{address:#x}"),
        }
    }
}
