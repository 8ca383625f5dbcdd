//! The kernel's symbol table: which function an address lies in.
//!
//! Read from /proc/kallsyms, or from what that file is made of ([`symbol_tables`]), by code of
//! our own: the survey asks both ways, names of addresses and address ranges of names by their
//! stem, and nothing else.
//!
//! [`symbol_tables`]: crate::kernel::symbol_tables

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, BufRead, BufReader},
    ops::Range,
    sync::OnceLock,
};

use crate::kernel::{
    arch::may_be_module_address,
    stems::{Stems, stem},
};

/// Where the kernel shows its symbols.
pub const KALLSYMS: &str = "/proc/kallsyms";

/// Who may see addresses: 2 = nobody (kernel/ksyms_common.c).
pub const KPTR_RESTRICT: &str = "/proc/sys/kernel/kptr_restrict";

/// Why symbols cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SymbolsError {
    /// The file cannot be read.
    #[error("cannot read {path}: is /proc mounted?")]
    Read {
        /// Which file.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// All addresses are hidden from us.
    #[error("the kernel hides its symbol addresses: run as root, or give lockwatch CAP_SYSLOG")]
    Hidden,
    /// All addresses are hidden from everybody.
    #[error(
        "the kernel hides its symbol addresses from everybody (kernel.kptr_restrict is 2): lower it with `sysctl kernel.kptr_restrict=1`"
    )]
    HiddenFromAll,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    address: u64,
    /// Where its name begins.
    start: u32,
    len: u16,
    /// A function rather than data.
    text: bool,
}

/// Whether symbols with this letter are functions.
const fn is_text(kind: u8) -> bool {
    matches!(kind, b't' | b'T' | b'w' | b'W')
}

/// The text of [`KALLSYMS`].
///
/// # Errors
/// When it cannot be read.
pub fn read() -> io::Result<String> {
    fs::read_to_string(KALLSYMS)
}

/// That the text could not be read.
pub fn unreadable(source: io::Error) -> SymbolsError {
    SymbolsError::Read {
        path: KALLSYMS.to_owned(),
        source,
    }
}

/// A place in a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place<'s> {
    /// Stem of the function's name.
    pub stem: &'s str,
    /// Where the function starts.
    pub start: u64,
    /// How far in the place is, in bytes.
    pub offset: u64,
    /// Bytes up to the next symbol.
    pub size: u64,
}

/// The symbol table, sorted by address.
#[derive(Debug)]
pub struct Symbols {
    text: String,
    entries: Vec<Entry>,
    /// Where these are the kernel image's alone: those of modules and BPF programs, which lie
    /// behind it, read when one is asked for that can only be among them; `None` if there are
    /// none then, or they cannot be read.
    behind: Option<OnceLock<Option<Box<Self>>>>,
}

/// Symbols of the kernel's image, one after another.
#[derive(Debug)]
pub(super) struct SymbolsMaker {
    text: Vec<u8>,
    entries: Vec<Entry>,
}

impl SymbolsMaker {
    /// Names have so many bytes on average.
    const NAME_LEN: usize = 28;

    /// For so many.
    pub(super) fn with_capacity(count: usize) -> Self {
        Self {
            text: Vec::with_capacity(count * Self::NAME_LEN),
            entries: Vec::with_capacity(count),
        }
    }

    /// One more, of a kind with this letter. `None` if there is no room for it.
    pub(super) fn push(&mut self, address: u64, kind: u8, name: &[u8]) -> Option<()> {
        let entry = Entry {
            address,
            start: u32::try_from(self.text.len()).ok()?,
            len: u16::try_from(name.len()).ok()?,
            text: is_text(kind),
        };
        if address != 0 {
            self.text.extend_from_slice(name);
            self.entries.push(entry);
        }
        Some(())
    }

    /// All of them; `None` if there are none, or they are no text.
    pub(super) fn of_the_image(self) -> Option<Symbols> {
        self.finish(Some(OnceLock::new()))
    }

    fn finish(self, behind: Option<OnceLock<Option<Box<Symbols>>>>) -> Option<Symbols> {
        let Self { text, entries } = self;
        let text = String::from_utf8(text).ok()?;
        Symbols::new(text, entries, behind)
    }
}

/// Address, letter of its kind and name of a line in the format of /proc/kallsyms.
fn fields(line: &str) -> Option<(u64, u8, &str)> {
    let mut fields = line.split_ascii_whitespace();
    let address = u64::from_str_radix(fields.next()?, 16).ok()?;
    let &[kind] = fields.next()?.as_bytes() else {
        return None;
    };
    Some((address, kind, fields.next()?))
}

impl Symbols {
    /// The running kernel's symbols.
    ///
    /// # Errors
    /// When they cannot be read or the kernel hides the addresses.
    pub fn from_proc() -> Result<Self, SymbolsError> {
        Self::of_this_kernel(read().map_err(unreadable)?)
    }

    /// The running kernel's symbols, of what [`read`] has read.
    ///
    /// # Errors
    /// When the kernel hides the addresses.
    pub fn of_this_kernel(text: String) -> Result<Self, SymbolsError> {
        Self::parse(text).map_err(|error| match (error, fs::read_to_string(KPTR_RESTRICT)) {
            (SymbolsError::Hidden, Ok(level)) if level.trim() == "2" => SymbolsError::HiddenFromAll,
            (error, _) => error,
        })
    }

    /// Symbols in the format of /proc/kallsyms. Lines that do not fit are left out.
    ///
    /// # Errors
    /// When every address is 0.
    pub fn parse(text: String) -> Result<Self, SymbolsError> {
        let mut entries = Vec::with_capacity(text.len() / 40);
        let base = text.as_ptr() as usize;
        for (address, kind, name) in text.lines().filter_map(fields) {
            let start = name.as_ptr() as usize - base;
            let (Ok(start), Ok(len)) = (u32::try_from(start), u16::try_from(name.len())) else {
                break;
            };
            if address != 0 {
                entries.push(Entry {
                    address,
                    start,
                    len,
                    text: is_text(kind),
                });
            }
        }
        Self::new(text, entries, None).ok_or(SymbolsError::Hidden)
    }

    /// `None` if there are none.
    fn new(
        text: String,
        mut entries: Vec<Entry>,
        behind: Option<OnceLock<Option<Box<Self>>>>,
    ) -> Option<Self> {
        // Stable: of several names for one address the first listed wins.
        if !entries.is_sorted_by_key(|entry| entry.address) {
            entries.sort_by_key(|entry| entry.address);
        }
        (!entries.is_empty()).then_some(Self {
            text,
            entries,
            behind,
        })
    }

    /// Whether these were read from the kernel's own tables
    /// ([`symbol_tables`](crate::kernel::symbol_tables)), not from /proc/kallsyms.
    pub fn are_from_tables(&self) -> bool {
        self.behind.is_some()
    }

    /// Each symbol's address and name, and whether it is a function; by address, then in the
    /// kernel's order. Those of modules and BPF programs are not among them where they are
    /// [from tables](Self::are_from_tables).
    pub fn listed(&self) -> impl Iterator<Item = (u64, &str, bool)> {
        let entries = self.entries.iter();
        entries.map(|&entry| (entry.address, self.name(entry), entry.text))
    }

    /// The symbols of modules and of BPF programs, where they are not among these.
    fn behind(&self) -> Option<&Self> {
        let read = || self.read_behind().map(Box::new);
        self.behind.as_ref()?.get_or_init(read).as_deref()
    }

    /// Reads the symbols of modules and of BPF programs now, if they will have to be: while a
    /// CPU is locked up it can take seconds.
    pub fn read_ahead(&self) {
        self.behind();
    }

    /// Line by line: the file has as much again as is here already.
    fn read_behind(&self) -> Option<Self> {
        tracing::debug!("the symbols of modules and BPF programs are read");
        let read = || {
            let file = BufReader::new(File::open(KALLSYMS)?);
            self.those_behind(file)
        };
        read()
            .inspect_err(|error| tracing::info!("{KALLSYMS} cannot be read: {error}"))
            .ok()?
    }

    /// Of a file in the format of /proc/kallsyms, what lies behind all that is here; `None` if
    /// nothing does.
    fn those_behind(&self, mut file: impl BufRead) -> io::Result<Option<Self>> {
        let last = self.entries.last().map_or(0, |entry| entry.address);
        let mut made = SymbolsMaker::with_capacity(0);
        let mut line = String::new();
        while file.read_line(&mut line)? != 0 {
            if let Some((address, kind, name)) = fields(&line)
                && address > last
                && made.push(address, kind, name.as_bytes()).is_none()
            {
                break;
            }
            line.clear();
        }
        Ok(made.finish(None))
    }

    /// The table in which an address is to be looked up: those of modules lie behind the
    /// image's.
    fn of(&self, address: u64) -> &Self {
        let is_behind = || (self.entries.last()).is_some_and(|last| address >= last.address);
        if may_be_module_address(address) && is_behind() {
            self.behind().unwrap_or(self)
        } else {
            self
        }
    }

    fn name(&self, entry: Entry) -> &str {
        let start = entry.start as usize;
        self.text
            .get(start..start + usize::from(entry.len))
            .unwrap_or_default()
    }

    fn entry_at(&self, address: u64) -> Option<Entry> {
        let after = self
            .entries
            .partition_point(|entry| entry.address <= address);
        let last = *self.entries.get(after.checked_sub(1)?)?;
        let first = self
            .entries
            .partition_point(|entry| entry.address < last.address);
        self.entries.get(first).copied()
    }

    /// The function an address lies in, and how far in; `None` outside of kernel text.
    pub fn function_at(&self, address: u64) -> Option<(&str, u64)> {
        let table = self.of(address);
        let entry = table.entry_at(address)?;
        // The last symbol of the text has no end; nothing real is that long.
        let offset = address - entry.address;
        (entry.text && offset < 1 << 20).then(|| (table.name(entry), offset))
    }

    /// The stem of the function that a return address returns into; empty where it is not
    /// known.
    pub fn stem_of_return(&self, address: u64) -> &str {
        // A call may be the last instruction of its function: look one byte back.
        self.function_at(address.wrapping_sub(1))
            .map_or("", |(name, _)| stem(name))
    }

    /// The function that a return address returns into, and where in it.
    pub fn place_of_return(&self, address: u64) -> Option<Place<'_>> {
        let inside = address.wrapping_sub(1);
        let (name, offset) = self.function_at(inside)?;
        let start = inside - offset;
        let entries = &self.of(inside).entries;
        let after = entries.partition_point(|entry| entry.address <= inside);
        let end = entries.get(after).map_or(start, |next| next.address);
        Some(Place {
            stem: stem(name),
            start,
            offset: offset + 1,
            size: end - start,
        })
    }

    /// The symbol that starts exactly here, of any kind.
    pub fn exact(&self, address: u64) -> Option<&str> {
        let table = self.of(address);
        let entry = table.entry_at(address)?;
        (entry.address == address).then(|| table.name(entry))
    }

    /// The address of a symbol of any kind; of several with this name, the lowest.
    pub fn address_of(&self, name: &str) -> Option<u64> {
        let of = |table: &Self| {
            let mut entries = table.entries.iter();
            let entry = entries.find(|&&entry| table.name(entry) == name)?;
            Some(entry.address)
        };
        // What lies in the image lies lower.
        of(self).or_else(|| self.behind().and_then(of))
    }

    /// The address range of every function whose name has one of these stems.
    pub fn ranges_of(&self, stems: &[&str]) -> Vec<Range<u64>> {
        self.ranges_where(|stem| stems.contains(&stem))
    }

    /// The address range of every function whose stem is wanted.
    pub fn ranges_where(&self, is_wanted: impl Fn(&str) -> bool) -> Vec<Range<u64>> {
        let mut ranges = self.ranges_in_image_where(&is_wanted);
        if let Some(behind) = self.behind() {
            ranges.extend(behind.ranges_in_image_where(&is_wanted));
        }
        ranges
    }

    /// As [`Self::ranges_of`], of the functions that are in no module. Of all of these lists
    /// at once: names are long, and many.
    pub fn ranges_in_image(&self, lists: &[&[&str]]) -> Vec<Vec<Range<u64>>> {
        let mut lists_of = Stems::<Vec<usize>>::default();
        for (list, stems) in lists.iter().enumerate() {
            for stem in *stems {
                lists_of.entry(stem).push(list);
            }
        }
        let mut ranges = vec![Vec::new(); lists.len()];
        for (index, entry) in self.entries.iter().enumerate() {
            let lists = || lists_of.of_name(self.name(*entry));
            for &list in entry.text.then(lists).flatten().into_iter().flatten() {
                ranges[list].push(self.range(index));
            }
        }
        ranges
    }

    /// As [`Self::ranges_where`], of the functions that are in no module where the image's are
    /// known by themselves: others are not read for it.
    pub fn ranges_in_image_where(&self, is_wanted: impl Fn(&str) -> bool) -> Vec<Range<u64>> {
        let entries = self.entries.iter().enumerate();
        entries
            .filter(|(_, entry)| entry.text && is_wanted(stem(self.name(**entry))))
            .map(|(index, _)| self.range(index))
            .collect()
    }

    /// The names of the functions in no module that have a wanted stem, as they are spelled.
    pub fn spellings(&self, wanted: &Stems<'_, ()>) -> Spelled {
        let functions = self.entries.iter().filter(|entry| entry.text);
        spellings_of(functions.map(|entry| self.name(*entry)), wanted)
    }

    /// From a symbol to the next one that lies elsewhere.
    fn range(&self, index: usize) -> Range<u64> {
        let start = self.entries[index].address;
        let mut behind = self.entries[index..].iter();
        let next = behind.find(|next| next.address > start);
        start..next.map_or(start + 0x1000, |next| next.address)
    }
}

/// Where the kernel shows where its modules lie.
const MODULES: &str = "/proc/modules";

/// Where code lies that stays and has symbols: the kernel's own, and that of its modules. What
/// is outside (programs and trampolines of tracers) lies behind some symbol, too, which says
/// nothing of it.
#[derive(Debug, Default)]
pub struct CodeBounds {
    kernel: Option<Range<u64>>,
    modules: Vec<Range<u64>>,
}

impl CodeBounds {
    /// As they are now.
    pub fn from_proc(symbols: &Symbols) -> Self {
        Self::of(symbols, &fs::read_to_string(MODULES).unwrap_or_default())
    }

    /// Of the modules in a text in the format of /proc/modules (kernel/module/procfs.c: name,
    /// size, references, users, state, address; since 6.4 the size is that of all of the
    /// module's parts, and the address that of its code).
    fn of(symbols: &Symbols, modules: &str) -> Self {
        let start = symbols.address_of("_stext");
        let kernel = start.zip(symbols.address_of("_etext"));
        let module = |line: &str| {
            let fields: Vec<&str> = line.split_ascii_whitespace().collect();
            let start = u64::from_str_radix(fields.get(5)?.strip_prefix("0x")?, 16).ok()?;
            let size: u64 = fields.get(1)?.parse().ok()?;
            Some(start..start.checked_add(size)?)
        };
        Self {
            kernel: kernel.map(|(start, end)| start..end),
            modules: modules.lines().filter_map(module).collect(),
        }
    }

    /// Whether an address is in the kernel's own code, whose symbols never change. Without
    /// its bounds, all is.
    pub fn is_kernel(&self, address: u64) -> bool {
        self.kernel
            .as_ref()
            .is_none_or(|code| code.contains(&address))
    }

    /// Whether an address is in a module.
    pub fn is_module(&self, address: u64) -> bool {
        self.modules.iter().any(|code| code.contains(&address))
    }
}

/// Stems of functions with every name as it is spelled.
pub type Spelled = BTreeMap<String, Vec<String>>;

/// The names of the functions of the kernel's image that have a wanted stem, as they are
/// spelled, in the format of /proc/kallsyms: addresses may be hidden.
pub fn spellings(kallsyms: &str, wanted: &Stems<'_, ()>) -> Spelled {
    let functions = kallsyms.lines().filter_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        // A fourth field names a module.
        match (fields.next(), fields.next(), fields.next(), fields.next()) {
            (Some(_), Some("t" | "T" | "w" | "W"), Some(name), None) => Some(name),
            _ => None,
        }
    });
    spellings_of(functions, wanted)
}

/// As [`spellings`], of the names of functions.
fn spellings_of<'n>(functions: impl Iterator<Item = &'n str>, wanted: &Stems<'_, ()>) -> Spelled {
    let mut found = Spelled::new();
    // The rarely run half of a function is entered by a jump from the other.
    for name in functions.filter(|name| wanted.of_name(name).is_some() && !name.contains(".cold")) {
        let names = found.entry(stem(name).to_owned()).or_default();
        names.push(name.to_owned());
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Symbols {
        let text = "ffffffff81000200 t rwsem_down_read_slowpath.constprop.0\n\
            ffffffff81000100 T iterate_dir\n\
            ffffffff81000100 T __alias\n\
            garbage\n\
            ffffffff82000000 D some_data\n\
            ffffffff81000300 t rwsem_down_read_slowpath.cold\n\
            ffffffff81000400 T end\n";
        Symbols::parse(text.to_owned()).unwrap()
    }

    #[test]
    fn addresses_have_names() {
        let symbols = sample();
        assert_eq!(
            symbols.function_at(0xffff_ffff_8100_0105),
            Some(("iterate_dir", 5))
        );
        assert_eq!(
            symbols.function_at(0xffff_ffff_8200_0001),
            None,
            "data is no function"
        );
        assert_eq!(symbols.function_at(0x1000), None);
        let place = Place {
            stem: "rwsem_down_read_slowpath",
            start: 0xffff_ffff_8100_0200,
            offset: 0x100,
            size: 0x100,
        };
        assert_eq!(symbols.place_of_return(place.start + 0x100), Some(place));
        assert_eq!(symbols.exact(0xffff_ffff_8200_0000), Some("some_data"));
        assert_eq!(symbols.exact(0xffff_ffff_8200_0008), None);
    }

    #[test]
    fn stems_cover_compiler_suffixes() {
        let ranges = sample().ranges_of(&["rwsem_down_read_slowpath"]);
        assert_eq!(
            ranges,
            [
                0xffff_ffff_8100_0200..0xffff_ffff_8100_0300,
                0xffff_ffff_8100_0300..0xffff_ffff_8100_0400
            ]
        );
    }

    #[test]
    fn names_are_found_without_addresses() {
        let text = "0000000000000000 t __down.isra.0\n\
            0000000000000000 t __down.isra.0.cold\n\
            0000000000000000 t __down\t[module]\n\
            0000000000000000 D up_read\n";
        let found = spellings(text, &Stems::from_iter(["__down", "up_read"]));
        let expected = ("__down".to_owned(), vec!["__down.isra.0".to_owned()]);
        assert_eq!(found, BTreeMap::from([expected]));
    }

    #[test]
    fn code_behind_a_symbol_need_not_be_its() {
        let text = "ffffffff81000000 T _stext\n\
            ffffffff82000000 T _etext\n\
            ffffffffc0001000 t last_of_module\t[xfs]\n";
        let symbols = Symbols::parse(text.to_owned()).unwrap();
        let modules = "xfs 8192 1 - Live 0xffffffffc0000000 (E)\nhidden 4096 0 - Live\n";
        let bounds = CodeBounds::of(&symbols, modules);
        assert!(bounds.is_kernel(0xffff_ffff_8100_0010));
        assert!(!bounds.is_kernel(0xffff_ffff_c000_1010));
        assert!(bounds.is_module(0xffff_ffff_c000_1010));
        let trampoline = 0xffff_ffff_c000_8010;
        assert_eq!(symbols.stem_of_return(trampoline), "last_of_module");
        assert!(!bounds.is_kernel(trampoline) && !bounds.is_module(trampoline));
    }

    #[test]
    fn of_a_file_only_what_is_behind_is_taken() {
        let file = "ffffffff81000100 T iterate_dir\n\
            ffffffff82000000 D some_data\n\
            garbage\n\
            ffffffffc0001000 t last_of_module\t[xfs]\n\
            ffffffffc0000000 T first_of_module\t[xfs]\n";
        let behind = sample().those_behind(file.as_bytes()).unwrap().unwrap();
        let listed: Vec<_> = behind.listed().collect();
        let expected = [
            (0xffff_ffff_c000_0000, "first_of_module", true),
            (0xffff_ffff_c000_1000, "last_of_module", true),
        ];
        assert_eq!(listed, expected);
        let image = "ffffffff81000100 T iterate_dir\n";
        assert!(sample().those_behind(image.as_bytes()).unwrap().is_none());
    }

    #[test]
    fn hidden_addresses_are_an_error() {
        let hidden = "0000000000000000 T iterate_dir\n".to_owned();
        assert!(matches!(Symbols::parse(hidden), Err(SymbolsError::Hidden)));
    }
}
