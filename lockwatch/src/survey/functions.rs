//! Names of the functions on stacks, each address asked once.

use std::rc::Rc;

use rustc_hash::FxHashMap;

use crate::{
    kernel::{
        locks::{PERCPU_DRAINS, RT_RWSEM_DRAINS, VMA_DRAINS},
        sleep_frames::{LOCK_SLOW_PATHS, is_lock_function},
        stems::stem,
        symbols::{Place, Symbols},
    },
    survey::{look::TaskLook, stack::Frame},
};

/// A cache in front of the symbol table: a thousand equal stacks are one.
#[derive(Debug)]
pub(super) struct Functions<'a> {
    symbols: &'a Symbols,
    known: FxHashMap<u64, Function<'a>>,
    /// By where the frames are.
    stems: FxHashMap<*const Frame, Stack<'a>>,
}

/// The stems of a stack.
#[derive(Debug)]
struct Stack<'a> {
    /// Kept, so that no others come to lie there.
    _frames: Rc<[Frame]>,
    stems: Rc<[&'a str]>,
}

/// What is known of a return address.
#[derive(Clone, Copy, Debug)]
struct Function<'a> {
    /// The function it returns into, and its offset there.
    place: Option<(&'a str, u64)>,
    stem: &'a str,
    is_lock_function: bool,
    is_slow_path: bool,
    drains: bool,
}

impl<'a> Functions<'a> {
    /// An empty cache.
    pub(super) fn new(symbols: &'a Symbols) -> Self {
        Self {
            symbols,
            known: FxHashMap::default(),
            stems: FxHashMap::default(),
        }
    }

    /// The table behind it.
    pub(super) const fn symbols(&self) -> &'a Symbols {
        self.symbols
    }

    fn function(&mut self, address: u64) -> Function<'a> {
        let symbols = self.symbols;
        *self.known.entry(address).or_insert_with(|| {
            // A call may be the last instruction of its function: look one byte back.
            let place = symbols
                .function_at(address - 1)
                .map(|(name, offset)| (name, offset + 1));
            let stem = place.map_or("", |(name, _)| stem(name));
            Function {
                place,
                stem,
                is_lock_function: is_lock_function(stem),
                is_slow_path: LOCK_SLOW_PATHS.contains(&stem),
                drains: [PERCPU_DRAINS, RT_RWSEM_DRAINS, VMA_DRAINS]
                    .iter()
                    .any(|stems| stems.contains(&stem)),
            }
        })
    }

    /// The function a return address returns into, and the offset of that address.
    pub(super) fn returned_into(&mut self, address: u64) -> Option<(&'a str, u64)> {
        self.function(address).place
    }

    /// The stem of that function's name; empty where it is not known.
    pub(super) fn stem(&mut self, address: u64) -> &'a str {
        self.function(address).stem
    }

    /// Whether that function is a lock's own.
    pub(super) fn is_lock_function(&mut self, address: u64) -> bool {
        self.function(address).is_lock_function
    }

    /// Whether a task that waits for a lock sleeps in that function.
    pub(super) fn is_slow_path(&mut self, address: u64) -> bool {
        self.function(address).is_slow_path
    }

    /// Whether a writer that has shut a lock waits in that function for its readers.
    pub(super) fn drains(&mut self, address: u64) -> bool {
        self.function(address).drains
    }

    /// The stems of a task's frames, innermost first.
    pub(super) fn stems(&mut self, task: &TaskLook) -> Rc<[&'a str]> {
        let frames = &task.frames;
        if let Some(stack) = self.stems.get(&frames.as_ptr()) {
            return Rc::clone(&stack.stems);
        }
        let addresses = frames.iter().map(|frame| frame.return_address);
        let stems: Rc<[&'a str]> = addresses.map(|address| self.stem(address)).collect();
        let stack = Stack {
            _frames: Rc::clone(frames),
            stems: Rc::clone(&stems),
        };
        self.stems.insert(frames.as_ptr(), stack);
        stems
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
