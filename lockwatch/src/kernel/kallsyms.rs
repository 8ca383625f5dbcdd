//! The kernel's symbols, read while other things are done: the kernel takes longer to format
//! them (75 ms for 120,000) than lockwatch needs for all else together at its start. So they
//! are read once, for all that needs them.

use std::{
    io,
    thread::{self, JoinHandle},
};

use crate::kernel::{
    lock_functions::is_lock_function,
    symbols::{self, Spelled, Symbols, SymbolsError, spellings},
};

/// Symbols that a thread reads.
#[derive(Debug)]
pub struct ReadingSymbols(JoinHandle<ReadSymbols>);

/// What there is of symbols.
#[derive(Debug)]
pub struct ReadSymbols {
    /// The table.
    pub symbols: Result<Symbols, SymbolsError>,
    /// How the functions of locks are spelled, as [`crate::kernel::offer::Offer::symbols`] has
    /// them, also where addresses are hidden; or why they could not be read. Empty if nobody
    /// asked for them.
    pub spelled: Result<Spelled, String>,
}

impl ReadingSymbols {
    /// Begins to read. `spelled`: whether somebody wants to know how functions are spelled.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn begin(spelled: bool) -> io::Result<Self> {
        thread::Builder::new()
            .name("symbols".to_owned())
            .spawn(move || ReadSymbols::read(spelled))
            .map(Self)
    }

    /// Waits until all are read.
    pub fn wait(self) -> ReadSymbols {
        self.0
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

impl ReadSymbols {
    fn read(wants_spelled: bool) -> Self {
        match symbols::read() {
            Ok(text) => {
                let spelled = if wants_spelled {
                    spellings(&text, is_lock_function)
                } else {
                    Spelled::new()
                };
                Self {
                    symbols: Symbols::of_this_kernel(text),
                    spelled: Ok(spelled),
                }
            }
            Err(error) => Self {
                spelled: Err(error.to_string()),
                symbols: Err(symbols::unreadable(error)),
            },
        }
    }
}

/// How the functions of locks are spelled on the running kernel, or why that cannot be read.
///
/// # Errors
/// In words.
pub fn spelled() -> Result<Spelled, String> {
    let text = symbols::read().map_err(|error| error.to_string())?;
    Ok(spellings(&text, is_lock_function))
}
