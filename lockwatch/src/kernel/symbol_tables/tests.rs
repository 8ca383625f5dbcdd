//! Made-up tables, in each order and with each way to write addresses, and nonsense.

use super::{names::TOKENS, *};

/// Where the made-up image begins.
const START: u64 = 0xffff_ffff_8120_0000;

/// Before the tables: as much as may be read there.
const BEFORE: usize = 1 << 20;

/// So many symbols that a glance every 64 KiB sees their addresses.
const COUNT: usize = 40_000;

/// So many of them are of each CPU, where those have small numbers.
const OF_EACH_CPU: usize = 50;

/// Memory in one piece.
struct Memory {
    bytes: Vec<u8>,
    /// A page that cannot be read.
    missing: Option<u64>,
}

impl KernelMemory for Memory {
    fn read_batch(&mut self, reads: &[(u64, usize)]) -> Result<Vec<Option<Vec<u8>>>, MemoryError> {
        let read = |&(address, len): &(u64, usize)| {
            let is_missing = self
                .missing
                .is_some_and(|page| address < page + PAGE_SIZE && page < address + len as u64);
            let at = usize::try_from(address.checked_sub(START)?).ok()?;
            let bytes = self.bytes.get(at..at.checked_add(len)?)?;
            (!is_missing).then(|| bytes.to_vec())
        };
        Ok(reads.iter().map(read).collect())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    /// As up to 6.4.
    AddressesFirst,
    /// As since 6.5.
    AddressesLast,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Written {
    From,
    Complement,
    Place,
}

/// Tables as scripts/kallsyms.c writes them, but of symbols that no kernel has.
struct Tables {
    order: Order,
    written: Written,
    symbols: Vec<(u64, String)>,
    /// What the table of numbers says of them: their number, if it is right.
    count: usize,
    /// What each marker is off by.
    markers_off: u32,
}

/// Tokens of more than a letter.
const LONG: [&str; 4] = ["do_", "sys_", "t__x64_", "lock"];

impl Tables {
    fn new(order: Order, written: Written) -> Self {
        let symbol = |number: usize| {
            let kind = ["t", "T", "D", "t__x64_"][number % 4];
            let address = match number {
                0..OF_EACH_CPU if written == Written::Complement => 64 * number as u64,
                // Some share theirs.
                _ => START + 16 * (number as u64 - number as u64 % 7),
            };
            let mut name = format!("{kind}do_lock_{number}_sys_{}", number * number);
            if number.is_multiple_of(1_000) {
                // Its length does not fit into seven bits.
                name.push_str(&"_".repeat(200));
            }
            (address, name)
        };
        Self {
            order,
            written,
            symbols: (0..COUNT).map(symbol).collect(),
            count: COUNT,
            markers_off: 0,
        }
    }

    /// What /proc/kallsyms would begin with.
    fn lines(&self) -> Vec<Line> {
        let text: String = self.symbols[..OF_EACH_CPU + COMPARED + 1]
            .iter()
            .map(|(address, spelled)| {
                format!("{address:016x} {} {}\n", &spelled[..1], &spelled[1..])
            })
            .collect();
        lines(&text)
    }

    fn tokens() -> Vec<String> {
        let token = |byte: u8| match byte {
            b'!'..=b'~' => char::from(byte).to_string(),
            0x80.. => LONG
                .get(usize::from(byte) - 0x80)
                .unwrap_or(&"")
                .to_string(),
            _ => String::new(),
        };
        (0..=255).map(token).collect()
    }

    fn packed(spelled: &str) -> Vec<u8> {
        let mut packed = Vec::new();
        let mut rest = spelled;
        while let Some(&first) = rest.as_bytes().first() {
            let long = LONG.iter().position(|token| rest.starts_with(token));
            packed.push(long.map_or(first, |number| 0x80 + number as u8));
            rest = &rest[long.map_or(1, |number| LONG[number].len())..];
        }
        let len = packed.len();
        let mut bytes = match len {
            0..0x80 => vec![len as u8],
            _ => vec![len as u8 | 0x80, (len >> 7) as u8],
        };
        bytes.extend(packed);
        bytes
    }

    /// The number, names, markers, and tokens.
    fn names(&self) -> Vec<u8> {
        let mut bytes = (self.count as u64).to_le_bytes().to_vec();
        let mut names = Vec::new();
        let mut markers = Vec::new();
        for (number, (_, spelled)) in self.symbols.iter().enumerate() {
            if number.is_multiple_of(256) {
                let marker = names.len() as u32 + self.markers_off * number as u32;
                markers.extend(marker.to_le_bytes());
            }
            names.extend(Self::packed(spelled));
        }
        let tokens = Self::tokens();
        let starts = tokens.iter().scan(0u16, |next, token| {
            let start = *next;
            *next += token.len() as u16 + 1;
            Some(start.to_le_bytes())
        });
        let starts: Vec<u8> = starts.flatten().collect();
        let texts: Vec<u8> = tokens
            .iter()
            .flat_map(|token| [token.as_bytes(), b"\0"].concat())
            .collect();
        let mut parts = vec![names, markers];
        if self.order == Order::AddressesFirst {
            // The order of their names, as in 6.2–6.4.
            parts.push((0..3 * COUNT).map(|number| number as u8).collect());
        }
        for part in parts.into_iter().chain([texts, starts]) {
            bytes.extend(part);
            bytes.resize(bytes.len().next_multiple_of(8), 0);
        }
        bytes
    }

    fn addresses(&self, at: u64) -> Vec<u8> {
        let place = (at..).step_by(4);
        let written = self.symbols.iter().zip(place).map(|((address, _), place)| {
            let written = match self.written {
                Written::From => address - START,
                Written::Complement if *address < START => *address,
                Written::Complement => !(address - START),
                Written::Place => address.wrapping_sub(place),
            };
            written as u32
        });
        let mut bytes: Vec<u8> = written.flat_map(u32::to_le_bytes).collect();
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        bytes
    }

    fn memory(&self) -> Memory {
        // What is no table: code, say.
        let mut bytes: Vec<u8> = (0..BEFORE as u64)
            .map(|at| (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8)
            .collect();
        let names = self.names();
        let base = START.to_le_bytes();
        match self.order {
            Order::AddressesFirst => {
                let addresses = self.addresses(START + bytes.len() as u64);
                bytes.extend([&addresses[..], &base, &names].concat());
            }
            Order::AddressesLast => {
                bytes.extend(names);
                let addresses = self.addresses(START + bytes.len() as u64);
                bytes.extend([&addresses[..], &base].concat());
            }
        }
        bytes.resize((bytes.len() + BEFORE).next_multiple_of(1 << 16), 0);
        Memory {
            bytes,
            missing: None,
        }
    }

    fn found(&self) -> Option<Symbols> {
        find(&self.lines(), &mut self.memory()).unwrap()
    }

    fn all() -> impl Iterator<Item = Self> {
        let written = [Written::From, Written::Complement, Written::Place];
        [Order::AddressesFirst, Order::AddressesLast]
            .into_iter()
            .flat_map(move |order| written.map(|written| Self::new(order, written)))
    }

    /// Any that will do.
    fn one_of_each_order() -> [Self; 2] {
        [
            Self::new(Order::AddressesFirst, Written::Complement),
            Self::new(Order::AddressesLast, Written::From),
        ]
    }
}

/// Whether these are the symbols of the tables.
fn are_of(symbols: &Symbols, tables: &Tables) -> bool {
    // What has no address is no symbol that could be looked up.
    let made = tables.symbols.iter().filter(|(address, _)| *address != 0);
    made.map(|(address, spelled)| (*address, &spelled[1..], !spelled.starts_with('D')))
        .eq(symbols.listed())
}

#[test]
fn tables_are_found_in_each_order_and_writing() {
    for tables in Tables::all() {
        let Tables { order, written, .. } = tables;
        let symbols = tables.found();
        let symbols = symbols.unwrap_or_else(|| panic!("{order:?}, {written:?}: not found"));
        assert!(are_of(&symbols, &tables), "{order:?}, {written:?}");
        assert!(symbols.are_from_tables());
    }
}

#[test]
fn what_the_file_does_not_say_is_not_believed() {
    for tables in Tables::all() {
        let mut memory = tables.memory();
        for changed in [OF_EACH_CPU, OF_EACH_CPU + COMPARED] {
            let mut lines = tables.lines();
            lines[changed].spelled.push('x');
            assert!(find(&lines, &mut memory).unwrap().is_none(), "a name");
            let mut lines = tables.lines();
            lines[changed].address += 1;
            assert!(find(&lines, &mut memory).unwrap().is_none(), "an address");
        }
        let mut lines = tables.lines();
        lines.iter_mut().for_each(|line| line.address = 0);
        assert!(find(&lines, &mut memory).unwrap().is_none(), "hidden");
        assert!(find(&[], &mut memory).unwrap().is_none(), "no file");
    }
}

#[test]
fn addresses_that_fall_are_not_believed() {
    for mut tables in Tables::one_of_each_order() {
        tables.symbols[COUNT - 5].0 = START + 0x1000;
        assert!(tables.found().is_none(), "{:?}", tables.order);
    }
}

#[test]
fn a_wrong_number_of_symbols_is_not_believed() {
    for wrong in [COUNT - 300, COUNT - 1, COUNT + 1, COUNT + 300] {
        for mut tables in Tables::one_of_each_order() {
            tables.count = wrong;
            assert!(tables.found().is_none(), "{:?}: {wrong}", tables.order);
        }
    }
}

#[test]
fn markers_that_are_elsewhere_are_not_believed() {
    for mut tables in Tables::one_of_each_order() {
        tables.markers_off = 1;
        assert!(tables.found().is_none(), "{:?}", tables.order);
    }
}

#[test]
fn a_page_that_is_missing_is_not_made_up() {
    for tables in Tables::one_of_each_order() {
        let mut memory = tables.memory();
        // The first pages have what was compared; the tables take up 160 and 900 KiB.
        for page in (BEFORE..memory.bytes.len() - BEFORE).step_by(16 * PAGE_SIZE as usize) {
            memory.missing = Some(START + page as u64);
            let found = find(&tables.lines(), &mut memory).unwrap();
            // Behind what is needed nothing is missed.
            let is_right = found.is_none_or(|symbols| are_of(&symbols, &tables));
            assert!(is_right, "{:?}: {page:#x}", tables.order);
        }
    }
}

#[test]
fn memory_without_tables_has_none() {
    let lines = Tables::new(Order::AddressesLast, Written::From).lines();
    let len = 4 * BEFORE;
    let rising = (0..len as u32 / 4).map(|number| number * 16);
    let texts = [
        Vec::new(),
        vec![0; len],
        vec![0xff; len],
        rising.flat_map(u32::to_le_bytes).collect(),
        b"0\x001\x002\x003\x004\x005\x006\x007\x008\x009\x00".repeat(20),
    ];
    for bytes in texts {
        let mut memory = Memory {
            bytes,
            missing: None,
        };
        assert!(find(&lines, &mut memory).unwrap().is_none());
    }
    assert!(TOKENS.is_multiple_of(8));
}
