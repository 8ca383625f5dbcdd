//! Made-up tables, in each order and with each way to write addresses, and nonsense.

use super::{names::TOKENS, *};

/// Where the made-up image begins.
const START: u64 = 0xffff_ffff_8120_0000;

/// Before the tables: as much as may be read there.
const BEFORE: usize = 1 << 20;

/// So many symbols that a glance every 64 KiB sees their addresses.
const COUNT: usize = 20_000;

/// … and so many that the number of markers is even: nothing fills them up to a multiple of 8.
const EVEN_COUNT: usize = COUNT + 256;

/// So many of them are of each CPU, where those have small numbers.
const OF_EACH_CPU: usize = 50;

/// Memory in one piece.
struct Memory {
    bytes: Vec<u8>,
    /// A page that cannot be read.
    missing: Option<u64>,
    /// Bytes that were asked for.
    asked: usize,
}

impl Memory {
    fn new(bytes: Vec<u8>) -> Self {
        Self {
            bytes,
            missing: None,
            asked: 0,
        }
    }
}

impl KernelMemory for Memory {
    fn read_batch(&mut self, reads: &[(u64, usize)]) -> Result<Vec<Option<Vec<u8>>>, MemoryError> {
        self.asked += reads.iter().map(|&(_, len)| len).sum::<usize>();
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

/// With each way to write addresses; none is relative to its place before 7.
const FORMATS: [(Order, Written); 5] = [
    (Order::AddressesFirst, Written::From),
    (Order::AddressesFirst, Written::Complement),
    (Order::AddressesLast, Written::From),
    (Order::AddressesLast, Written::Complement),
    (Order::AddressesLast, Written::Place),
];

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
    /// Where the first one begins, behind a multiple of 8.
    shift: usize,
}

/// Tokens of more than a letter.
const LONG: [&str; 4] = ["do_", "sys_", "t__x64_", "lock"];

impl Tables {
    fn new(order: Order, written: Written, count: usize) -> Self {
        let symbol = |number: usize| {
            let kind = ["t", "T", "D", "t__x64_"][number % 4];
            let address = match number {
                0..OF_EACH_CPU if written == Written::Complement => 64 * number as u64,
                // Some share theirs.
                _ => START + 16 * (number as u64 - number as u64 % 3),
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
            symbols: (0..count).map(symbol).collect(),
            count,
            markers_off: 0,
            shift: 0,
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

    /// Each of the tables begins at a multiple of it.
    fn alignment(&self) -> usize {
        match self.written {
            Written::From | Written::Complement => 8,
            Written::Place => 4,
        }
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
        let mut bytes = (self.count as u32).to_le_bytes().to_vec();
        bytes.resize(self.alignment(), 0);
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
            parts.push(self.sequences());
        }
        for part in parts.into_iter().chain([texts, starts]) {
            bytes.extend(part);
            bytes.resize(bytes.len().next_multiple_of(self.alignment()), 0);
        }
        bytes
    }

    /// The order of their names, of no use here.
    fn sequences(&self) -> Vec<u8> {
        (0..3 * self.count).map(|number| number as u8).collect()
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
        bytes.resize(bytes.len().next_multiple_of(self.alignment()), 0);
        bytes
    }

    fn memory(&self) -> Memory {
        // What is no table: code, say.
        let mut bytes: Vec<u8> = (0..(BEFORE + self.shift) as u64)
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
                bytes.extend(addresses);
                if self.written != Written::Place {
                    bytes.extend(base);
                }
                bytes.extend(self.sequences());
            }
        }
        bytes.resize((bytes.len() + BEFORE).next_multiple_of(1 << 16), 0);
        Memory::new(bytes)
    }

    fn found(&self) -> Option<Symbols> {
        find(&self.lines(), &mut self.memory()).unwrap()
    }

    fn all() -> impl Iterator<Item = Self> {
        FORMATS.into_iter().flat_map(|(order, written)| {
            let of = |count| Self::new(order, written, count);
            let mut tables = vec![of(COUNT), of(EVEN_COUNT)];
            if written == Written::Place {
                tables.extend([of(COUNT), of(EVEN_COUNT)].map(|it| Self { shift: 4, ..it }));
            }
            tables
        })
    }

    /// Any of its order and alignment that will do.
    fn some() -> [Self; 3] {
        let [_, first, last, _, placed] = FORMATS;
        [first, last, placed].map(|(order, written)| Self::new(order, written, COUNT))
    }

    /// For a message.
    fn format(&self) -> (Order, Written, usize, usize) {
        (self.order, self.written, self.symbols.len(), self.shift)
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
        let format = tables.format();
        let symbols = tables.found();
        let symbols = symbols.unwrap_or_else(|| panic!("{format:?}: not found"));
        assert!(are_of(&symbols, &tables), "{format:?}");
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
    for mut tables in Tables::some() {
        tables.symbols[COUNT - 5].0 = START + 0x1000;
        assert!(tables.found().is_none(), "{:?}", tables.format());
    }
}

#[test]
fn a_wrong_number_of_symbols_is_not_believed() {
    for wrong in [COUNT - 300, COUNT - 1, COUNT + 1, COUNT + 300] {
        for mut tables in Tables::some() {
            tables.count = wrong;
            assert!(tables.found().is_none(), "{:?}: {wrong}", tables.format());
        }
    }
}

#[test]
fn markers_that_are_elsewhere_are_not_believed() {
    for mut tables in Tables::some() {
        tables.markers_off = 1;
        assert!(tables.found().is_none(), "{:?}", tables.format());
    }
}

#[test]
fn a_page_that_is_missing_is_not_made_up() {
    for tables in Tables::some() {
        let mut memory = tables.memory();
        // The first pages have what was compared; the tables take up 80 and 450 KiB.
        for page in (BEFORE..memory.bytes.len() - BEFORE).step_by(32 * PAGE_SIZE as usize) {
            memory.missing = Some(START + page as u64);
            let found = find(&tables.lines(), &mut memory).unwrap();
            // Behind what is needed nothing is missed.
            let is_right = found.is_none_or(|symbols| are_of(&symbols, &tables));
            assert!(is_right, "{:?}: {page:#x}", tables.format());
        }
    }
}

#[test]
fn memory_without_tables_has_none() {
    let [_, tables, _] = Tables::some();
    let lines = tables.lines();
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
        let mut memory = Memory::new(bytes);
        assert!(find(&lines, &mut memory).unwrap().is_none());
    }
    assert!(TOKENS.is_multiple_of(8));
}

/// The file that would be read instead has 5 MiB and more, and writing it is dear.
#[test]
fn a_search_in_vain_reads_little() {
    for tables in Tables::some() {
        let asked = |lines: &[Line], mut memory: Memory| {
            assert!(find(lines, &mut memory).unwrap().is_none());
            memory.asked
        };
        let lines = tables.lines();
        let mut others = lines.clone();
        others[OF_EACH_CPU].address += 1;
        let mut nameless = lines.clone();
        nameless[0].spelled.push('x');
        // Those of two digits, in other places.
        let mut tokenless = tables.memory();
        let bytes = &mut tokenless.bytes;
        let digits = bytes.windows(4).rposition(|bytes| bytes == b"3\x004\0");
        bytes[digits.unwrap() + 1] = b'x';
        let asked = [
            ("another address", asked(&others, tables.memory())),
            ("another name", asked(&nameless, tables.memory())),
            ("other tokens", asked(&lines, tokenless)),
        ];
        for (what, asked) in asked {
            assert!(asked < 2 << 20, "{:?}: {what}: {asked}", tables.format());
        }
    }
    // As many rows of numbers that rise as fit.
    let row = (0..STEP as u32 / 4).map(|number| number * 16);
    let row: Vec<u8> = row.flat_map(u32::to_le_bytes).collect();
    let rows = [row, vec![0; STEP as usize]].concat();
    let mut memory = Memory::new(rows.repeat((IMAGE_MAX / STEP / 2) as usize));
    let [_, tables, _] = Tables::some();
    assert!(find(&tables.lines(), &mut memory).unwrap().is_none());
    assert!(memory.asked < 4 << 20, "{}", memory.asked);
}
