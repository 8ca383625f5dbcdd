//! The kernel's symbols, and how it spells the functions of its locks: read once, for all that
//! needs them, and from its memory where that can be done. The kernel takes longer to format
//! them (75 ms for 120,000) than lockwatch needs for all else together at its start.

use crate::kernel::{
    lock_functions::lock_functions,
    symbols::{self, Spelled, Symbols, SymbolsError, spellings},
};

/// What there is of symbols.
#[derive(Debug)]
pub struct ReadSymbols {
    /// The table.
    pub symbols: Result<Symbols, SymbolsError>,
    /// How the functions of locks are spelled, as [`crate::kernel::offer::Offer::symbols`] has
    /// them, also where addresses are hidden; or why they could not be read.
    pub spelled: Result<Spelled, String>,
}

impl ReadSymbols {
    /// From the image's symbols, if they are known already; else as the kernel formats them.
    pub fn of(image: Option<Symbols>) -> Self {
        if let Some(symbols) = image {
            return Self {
                spelled: Ok(symbols.spellings(lock_functions())),
                symbols: Ok(symbols),
            };
        }
        match symbols::read() {
            Ok(text) => Self {
                spelled: Ok(spellings(&text, lock_functions())),
                symbols: Symbols::of_this_kernel(text),
            },
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
    Ok(spellings(&text, lock_functions()))
}
