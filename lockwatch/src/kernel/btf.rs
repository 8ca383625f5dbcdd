//! The running kernel's own type information.
//!
//! A reader of our own because the survey needs little of BTF, and at once:
//! offsets of named members, nested and anonymous ones too, from a cold start
//! within milliseconds. Format: Documentation/bpf/btf.rst.

#[cfg(test)]
pub(crate) mod made;

use std::{
    collections::hash_map::Entry, fs, hash::BuildHasher as _, io, path::Path, sync::OnceLock,
};

use lockwatch_ebpf::Member;
use rustc_hash::{FxBuildHasher, FxHashMap};

use crate::kernel::lock_functions::is_lock_function;

/// Where the kernel shows its BTF.
pub const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

/// Why type information cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BtfError {
    /// The file is not there.
    #[error(
        "this kernel shows no type information ({path} is missing): it needs a kernel built with CONFIG_DEBUG_INFO_BTF=y, and a mounted /sys"
    )]
    Missing {
        /// Which file.
        path: String,
    },
    /// The file cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// Which file.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// The bytes are not BTF.
    #[error("malformed BTF: {0}")]
    Malformed(&'static str),
    /// A member that the survey cannot do without is not in this kernel.
    #[error(
        "this kernel's types have no {0}: lockwatch does not know this layout yet; please report the kernel version"
    )]
    NoMember(String),
}

const KIND_INT: u32 = 1;
const KIND_PTR: u32 = 2;
const KIND_ARRAY: u32 = 3;
const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;
const KIND_ENUM: u32 = 6;
const KIND_TYPEDEF: u32 = 8;
const KIND_VOLATILE: u32 = 9;
const KIND_CONST: u32 = 10;
const KIND_RESTRICT: u32 = 11;
const KIND_FUNC: u32 = 12;
const KIND_FUNC_PROTO: u32 = 13;
const KIND_VAR: u32 = 14;
const KIND_DATASEC: u32 = 15;
const KIND_DECL_TAG: u32 = 17;
const KIND_TYPE_TAG: u32 = 18;
const KIND_ENUM64: u32 = 19;

/// What the kernel puts before a tracepoint's name in the typedef of its prototype
/// (`__DEFINE_EVENT`, include/trace/bpf_probe.h, 5.5+).
const TRACEPOINT_PREFIX: &[u8] = b"btf_trace_";

/// Nesting of anonymous members and typedefs that is followed; real kernels need 6.
const DEPTH_MAX: u32 = 16;

/// Parsed type information: an index over the raw bytes.
#[derive(Debug)]
pub struct Btf {
    bytes: Vec<u8>,
    /// Where the strings are, and how many bytes of them.
    strings: (usize, usize),
    /// Where the strings of a module are, whose offsets go on behind the kernel's own.
    module_strings: Option<usize>,
    /// Byte offset of each type, by id; id 0 is void.
    types: Vec<u32>,
    /// Structures, unions and enums by name.
    named: Named,
    /// Of the kernel itself: modules number theirs by another file.
    functions: Vec<u32>,
    /// Those that take, give back and wait for locks; found when they are first asked for.
    lock_functions: OnceLock<Vec<u32>>,
    /// Typedefs of the prototypes of tracepoints, of the kernel itself.
    tracepoints: Vec<u32>,
}

/// Types by the hash of their name: the names themselves are in the bytes.
#[derive(Debug, Default)]
struct Named {
    first: FxHashMap<u64, u32>,
    /// Those whose hash others had before.
    others: Vec<(u64, u32)>,
}

impl Named {
    fn hash(name: &[u8]) -> u64 {
        FxBuildHasher.hash_one(name)
    }

    fn push(&mut self, hash: u64, id: u32) {
        match self.first.entry(hash) {
            Entry::Vacant(entry) => {
                entry.insert(id);
            }
            Entry::Occupied(_) => self.others.push((hash, id)),
        }
    }

    /// What may have this name.
    fn ids(&self, name: &[u8]) -> impl Iterator<Item = u32> {
        let hash = Self::hash(name);
        let others = self.others.iter().filter(move |(other, _)| *other == hash);
        let first = self.first.get(&hash).copied();
        first.into_iter().chain(others.map(|&(_, id)| id))
    }
}

/// One bit of a structure, little endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bit {
    /// Offset of the byte it is in.
    pub byte: u64,
    /// That byte with nothing but the bit.
    pub mask: u8,
}

/// Where the types and strings of a blob lie.
struct Sections {
    types: usize,
    types_end: usize,
    strings: usize,
    strings_len: usize,
}

impl Sections {
    /// Of the blob that begins at `start` and fills the rest of the bytes.
    fn of(bytes: &[u8], start: usize) -> Result<Self, BtfError> {
        let word = |offset: usize| {
            read_u32(bytes, start + offset).ok_or(BtfError::Malformed("header cut short"))
        };
        if bytes.get(start..start + 2) != Some(&[0x9f, 0xeb]) {
            return Err(BtfError::Malformed("no magic number of this byte order"));
        }
        let body = start + word(4)? as usize;
        let types = body + word(8)? as usize;
        let strings = body + word(16)? as usize;
        let sections = Self {
            types,
            types_end: types + word(12)? as usize,
            strings,
            strings_len: word(20)? as usize,
        };
        let is_inside =
            sections.types_end <= bytes.len() && strings + sections.strings_len <= bytes.len();
        if !is_inside {
            return Err(BtfError::Malformed("section outside of the file"));
        }
        Ok(sections)
    }
}

#[derive(Clone, Copy)]
struct Type {
    /// Byte offset of what follows the 12-byte head.
    body: usize,
    name: u32,
    kind: u32,
    kind_flag: bool,
    count: usize,
    /// `size` or `type`, by kind.
    size_or_type: u32,
}

impl Btf {
    /// The running kernel's types.
    ///
    /// # Errors
    /// When the kernel shows none or they are malformed.
    pub fn from_sys() -> Result<Self, BtfError> {
        Self::from_file(Path::new(VMLINUX))
    }

    /// Types from a file in the format of `/sys/kernel/btf/vmlinux`.
    ///
    /// # Errors
    /// When the file cannot be read or is malformed.
    pub fn from_file(path: &Path) -> Result<Self, BtfError> {
        let shown = || path.display().to_string();
        match fs::read(path) {
            Ok(bytes) => Self::parse(bytes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(BtfError::Missing { path: shown() })
            }
            Err(source) => Err(BtfError::Read {
                path: shown(),
                source,
            }),
        }
    }

    /// Indexes raw BTF, little endian.
    ///
    /// # Errors
    /// When a length or an index points outside of the bytes.
    pub fn parse(bytes: Vec<u8>) -> Result<Self, BtfError> {
        let sections = Sections::of(&bytes, 0)?;
        let mut btf = Self {
            strings: (sections.strings, sections.strings_len),
            module_strings: None,
            bytes,
            types: vec![0],
            named: Named::default(),
            functions: Vec::new(),
            lock_functions: OnceLock::new(),
            tracepoints: Vec::new(),
        };
        btf.index(&sections)?;
        Ok(btf)
    }

    /// Adds the types of a module, in the format of `/sys/kernel/btf/MODULE` (5.11+). Their
    /// numbers go on behind the kernel's own (Documentation/bpf/btf.rst, split BTF). For one
    /// module only.
    ///
    /// # Errors
    /// When a length or an index points outside of the bytes.
    pub fn with_module(mut self, module: &[u8]) -> Result<Self, BtfError> {
        if self.module_strings.is_some() {
            return Err(BtfError::Malformed("more than one module"));
        }
        let start = self.bytes.len();
        self.bytes.extend_from_slice(module);
        let sections = Sections::of(&self.bytes, start)?;
        self.module_strings = Some(sections.strings);
        self.index(&sections)?;
        Ok(self)
    }

    /// The running kernel's types with those of a module, if it is loaded and shows any.
    ///
    /// # Errors
    /// As [`Self::from_sys`].
    pub fn from_sys_with(module: &str) -> Result<Self, BtfError> {
        let kernel = Self::from_sys()?;
        match fs::read(Path::new(VMLINUX).with_file_name(module)) {
            Ok(bytes) => kernel.with_module(&bytes),
            // Built in, not loaded, or before 5.11.
            Err(_) => Ok(kernel),
        }
    }

    /// Takes the types of a part of the bytes into the index.
    fn index(&mut self, sections: &Sections) -> Result<(), BtfError> {
        let is_kernel = self.module_strings.is_none();
        let mut offset = sections.types;
        while offset < sections.types_end {
            let id = u32::try_from(self.types.len())
                .map_err(|_| BtfError::Malformed("too many types"))?;
            self.types
                .push(u32::try_from(offset).map_err(|_| BtfError::Malformed("too large"))?);
            let ty = self.get(id).ok_or(BtfError::Malformed("type cut short"))?;
            offset = ty.body
                + match ty.kind {
                    KIND_INT | KIND_VAR | KIND_DECL_TAG => 4,
                    KIND_ARRAY => 12,
                    KIND_STRUCT | KIND_UNION | KIND_DATASEC | KIND_ENUM64 => 12 * ty.count,
                    KIND_ENUM | KIND_FUNC_PROTO => 8 * ty.count,
                    KIND_PTR..=KIND_TYPE_TAG => 0,
                    _ => return Err(BtfError::Malformed("unknown kind of type")),
                };
            match ty.kind {
                KIND_STRUCT | KIND_UNION | KIND_ENUM | KIND_ENUM64 => {
                    let name = self.string(ty.name);
                    if !name.is_empty() {
                        let hash = Named::hash(name);
                        self.named.push(hash, id);
                    }
                }
                KIND_FUNC if is_kernel => self.functions.push(id),
                KIND_TYPEDEF
                    if is_kernel && self.string_on(ty.name).starts_with(TRACEPOINT_PREFIX) =>
                {
                    self.tracepoints.push(id);
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Offset and size of a member, by a path like `task_struct.sched_info.last_arrival`.
    /// Anonymous structures and unions on the way are looked through.
    pub fn member(&self, path: &str) -> Option<Member> {
        let (bits, id) = self.place(path)?;
        let size = self.size_of_type(id, 0)?;
        Some(Member {
            offset: u32::try_from(bits / 8).ok()?,
            size: u32::try_from(size).ok()?,
        })
    }

    /// Where a member is that is a bit-field of one bit, by a path as for [`Self::member`].
    pub fn bit(&self, path: &str) -> Option<Bit> {
        let (bits, _) = self.place(path)?;
        Some(Bit {
            byte: bits / 8,
            mask: 1 << (bits % 8),
        })
    }

    /// Bit offset and type of a member.
    fn place(&self, path: &str) -> Option<(u64, u32)> {
        let mut parts = path.split('.');
        let mut id = self.named(parts.next()?)?;
        let mut bits = 0u64;
        for part in parts {
            let (offset, member) = self.find_member(id, part.as_bytes(), 0)?;
            bits += offset;
            id = member;
        }
        Some((bits, id))
    }

    /// As [`Self::member`], for a member that the survey cannot do without.
    ///
    /// # Errors
    /// Names the member.
    pub fn require(&self, path: &str) -> Result<Member, BtfError> {
        self.member(path)
            .ok_or_else(|| BtfError::NoMember(path.to_owned()))
    }

    /// Size in bytes of a structure or union.
    pub fn size_of(&self, name: &str) -> Option<u64> {
        self.size_of_type(self.named(name)?, 0)
    }

    /// The ID of a structure, union or enum: the first of this name.
    fn named(&self, name: &str) -> Option<u32> {
        let mut ids = self.named.ids(name.as_bytes());
        ids.find(|&id| {
            let ty = self.get(id);
            ty.is_some_and(|ty| self.is_string(ty.name, name.as_bytes()))
        })
    }

    /// Whether the kernel itself has a function of this name.
    pub fn has_function(&self, name: &str) -> bool {
        self.function_named(name).is_some()
    }

    /// The ID of the type of a function of the kernel itself.
    pub fn function_named(&self, name: &str) -> Option<u32> {
        let mut functions = self.functions.iter().copied();
        functions.find(|&id| {
            let ty = self.get(id);
            ty.is_some_and(|ty| self.is_string(ty.name, name.as_bytes()))
        })
    }

    /// Every function of the kernel itself: its type's ID, its name, and how many parameters
    /// it has.
    pub fn functions(&self) -> impl Iterator<Item = (u32, &str, u8)> {
        self.functions.iter().filter_map(|&id| self.function(id))
    }

    fn function(&self, id: u32) -> Option<(u32, &str, u8)> {
        let function = self.get(id)?;
        let prototype = self.get(function.size_or_type)?;
        let name = str::from_utf8(self.string(function.name)).ok()?;
        let count = u8::try_from(prototype.count).ok()?;
        (prototype.kind == KIND_FUNC_PROTO).then_some((id, name, count))
    }

    /// As [`Self::functions`], of those that take, give back and wait for locks.
    pub fn lock_functions(&self) -> impl Iterator<Item = (u32, &str, u8)> {
        let is_one = |id: u32| str::from_utf8(self.name_of(id)).is_ok_and(is_lock_function);
        let find = || {
            let all = self.functions.iter().copied();
            all.filter(|&id| is_one(id)).collect()
        };
        let found: &Vec<u32> = self.lock_functions.get_or_init(find);
        found.iter().filter_map(|&id| self.function(id))
    }

    /// Every tracepoint of the kernel itself: its type's ID and its name.
    pub fn tracepoints(&self) -> impl Iterator<Item = (u32, &str)> {
        self.tracepoints.iter().filter_map(|&id| {
            let name = self.name_of(id).strip_prefix(TRACEPOINT_PREFIX)?;
            self.prototype(id)?;
            Some((id, str::from_utf8(name).ok()?))
        })
    }

    /// The types of a tracepoint's arguments as C writes them: `struct task_struct *`. `id` is
    /// one of [`Self::tracepoints`].
    pub fn tracepoint_arguments(&self, id: u32) -> Option<Vec<String>> {
        let prototype = self.prototype(id)?;
        // The first is the tracepoint's own `void *__data`.
        (1..prototype.count)
            .map(|index| {
                let id = read_u32(&self.bytes, prototype.body + index * 8 + 4)?;
                Some(self.spelling(id, 0))
            })
            .collect()
    }

    /// What a typedef of a pointer to a function says of it.
    fn prototype(&self, id: u32) -> Option<Type> {
        let pointer = self.get(self.get(id)?.size_or_type)?;
        let prototype = self.get(pointer.size_or_type)?;
        ((pointer.kind, prototype.kind) == (KIND_PTR, KIND_FUNC_PROTO)).then_some(prototype)
    }

    /// A type as C writes it, as far as arguments of tracepoints need it.
    fn spelling(&self, id: u32, depth: u32) -> String {
        let Some(ty) = self.get(id).filter(|_| depth < DEPTH_MAX) else {
            return "void".to_owned();
        };
        let name = String::from_utf8_lossy(self.string(ty.name));
        let inner = || self.spelling(ty.size_or_type, depth + 1);
        match ty.kind {
            KIND_PTR => {
                let inner = inner();
                let gap = if inner.ends_with('*') { "" } else { " " };
                format!("{inner}{gap}*")
            }
            KIND_CONST => format!("const {}", inner()),
            KIND_VOLATILE | KIND_RESTRICT | KIND_TYPE_TAG => inner(),
            KIND_STRUCT => format!("struct {name}"),
            KIND_UNION => format!("union {name}"),
            KIND_ENUM | KIND_ENUM64 => format!("enum {name}"),
            _ => name.into_owned(),
        }
    }

    fn name_of(&self, id: u32) -> &[u8] {
        self.get(id).map_or(&[], |ty| self.string(ty.name))
    }

    /// Value of an enumerator of a named `enum`.
    pub fn enumerator(&self, name: &str, enumerator: &str) -> Option<u32> {
        let ty = self.get(self.named(name)?)?;
        let step = match ty.kind {
            KIND_ENUM => 8,
            KIND_ENUM64 => 12,
            _ => return None,
        };
        (0..ty.count)
            .map(|index| ty.body + index * step)
            .find_map(|at| {
                let found = self.string(read_u32(&self.bytes, at)?) == enumerator.as_bytes();
                found.then(|| read_u32(&self.bytes, at + 4)).flatten()
            })
    }

    fn get(&self, id: u32) -> Option<Type> {
        let offset = *self.types.get(id as usize)? as usize;
        if id == 0 {
            return None;
        }
        let info = read_u32(&self.bytes, offset + 4)?;
        Some(Type {
            body: offset + 12,
            name: read_u32(&self.bytes, offset)?,
            kind: (info >> 24) & 0x1f,
            kind_flag: info >> 31 == 1,
            count: (info & 0xffff) as usize,
            size_or_type: read_u32(&self.bytes, offset + 8)?,
        })
    }

    fn string(&self, offset: u32) -> &[u8] {
        let on = self.string_on(offset);
        on.split(|&byte| byte == 0).next().unwrap_or_default()
    }

    /// Whether it is this string: where it ends need not be looked for.
    fn is_string(&self, offset: u32, string: &[u8]) -> bool {
        let behind = self.string_on(offset).strip_prefix(string);
        behind.is_some_and(|behind| behind.first() == Some(&0))
    }

    /// A string and what lies behind it.
    fn string_on(&self, offset: u32) -> &[u8] {
        let offset = offset as usize;
        let (start, len) = self.strings;
        let at = match self.module_strings {
            Some(module) if offset >= len => module + (offset - len),
            _ => start + offset,
        };
        self.bytes.get(at..).unwrap_or_default()
    }

    /// Bit offset and type of the member `name`, looking through anonymous members.
    fn find_member(&self, id: u32, name: &[u8], depth: u32) -> Option<(u64, u32)> {
        let ty = self.strip(id)?;
        if !matches!(ty.kind, KIND_STRUCT | KIND_UNION) || depth > DEPTH_MAX {
            return None;
        }
        (0..ty.count).find_map(|index| {
            let at = ty.body + index * 12;
            let member_name = read_u32(&self.bytes, at)?;
            let member_type = read_u32(&self.bytes, at + 4)?;
            let raw = read_u32(&self.bytes, at + 8)?;
            let bits = u64::from(if ty.kind_flag { raw & 0x00ff_ffff } else { raw });
            if self.is_string(member_name, name) {
                Some((bits, member_type))
            } else if self.is_string(member_name, b"") {
                let (inner, found) = self.find_member(member_type, name, depth + 1)?;
                Some((bits + inner, found))
            } else {
                None
            }
        })
    }

    /// The type behind typedefs and qualifiers.
    fn strip(&self, mut id: u32) -> Option<Type> {
        for _ in 0..DEPTH_MAX {
            let ty = self.get(id)?;
            match ty.kind {
                KIND_TYPEDEF | KIND_VOLATILE | KIND_CONST | KIND_RESTRICT | KIND_TYPE_TAG => {
                    id = ty.size_or_type;
                }
                _ => return Some(ty),
            }
        }
        None
    }

    fn size_of_type(&self, id: u32, depth: u32) -> Option<u64> {
        let ty = self.strip(id)?;
        match ty.kind {
            KIND_PTR => Some(8),
            KIND_ARRAY if depth < DEPTH_MAX => {
                let element = self.size_of_type(read_u32(&self.bytes, ty.body)?, depth + 1)?;
                Some(element * u64::from(read_u32(&self.bytes, ty.body + 8)?))
            }
            KIND_INT | KIND_STRUCT | KIND_UNION | KIND_ENUM | KIND_ENUM64 => {
                Some(u64::from(ty.size_or_type))
            }
            _ => None,
        }
    }
}

fn read_u32(bytes: &[u8], offset: usize) -> Option<u32> {
    let word = bytes.get(offset..offset.checked_add(4)?)?;
    Some(u32::from_le_bytes([word[0], word[1], word[2], word[3]]))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A BTF blob with `struct outer { int a; union { int b; struct inner in; }; }`,
    /// `struct inner { int c; }` and `enum colour { RED = 1, BLUE = 7 }`.
    fn sample() -> Vec<u8> {
        let strings = b"\0int\0outer\0a\0b\0in\0inner\0c\0colour\0RED\0BLUE\0go\0btf_trace_tick\0";
        let at = |name: &str| {
            let needle = [b"\0", name.as_bytes(), b"\0"].concat();
            u32::try_from(
                strings
                    .windows(needle.len())
                    .position(|w| w == needle)
                    .unwrap()
                    + 1,
            )
            .unwrap()
        };
        let mut types: Vec<u32> = Vec::new();
        let info = |kind: u32, count: u32| kind << 24 | count;
        types.extend([at("int"), info(KIND_INT, 0), 4, 0]); // 1
        types.extend([at("inner"), info(KIND_STRUCT, 1), 4, at("c"), 1, 0]); // 2
        types.extend([0, info(KIND_UNION, 2), 4, at("b"), 1, 0, at("in"), 2, 0]); // 3
        types.extend([
            at("outer"),
            info(KIND_STRUCT, 2),
            8,
            at("a"),
            1,
            0,
            0,
            3,
            32,
        ]); // 4
        types.extend([
            at("colour"),
            info(KIND_ENUM, 2),
            4,
            at("RED"),
            1,
            at("BLUE"),
            7,
        ]); // 5
        types.extend([0, info(KIND_FUNC_PROTO, 0), 0]); // 6
        types.extend([at("go"), info(KIND_FUNC, 0), 6]); // 7
        types.extend([0, info(KIND_PTR, 0), 2]); // 8
        types.extend([0, info(KIND_FUNC_PROTO, 3), 0, 0, 8, 0, 8, 0, 1]); // 9
        types.extend([0, info(KIND_PTR, 0), 9]); // 10
        types.extend([at("btf_trace_tick"), info(KIND_TYPEDEF, 0), 10]); // 11
        let type_bytes: Vec<u8> = types.iter().flat_map(|word| word.to_le_bytes()).collect();
        let mut blob = vec![0x9f, 0xeb, 1, 0];
        let lens = [24, 0, type_bytes.len(), type_bytes.len(), strings.len()];
        blob.extend(
            lens.iter()
                .flat_map(|&len| u32::try_from(len).unwrap().to_le_bytes()),
        );
        blob.extend(type_bytes);
        blob.extend(strings);
        blob
    }

    #[test]
    fn members_are_found_through_anonymous_ones() {
        let btf = Btf::parse(sample()).unwrap();
        assert_eq!(btf.member("outer.a"), Some(Member { offset: 0, size: 4 }));
        assert_eq!(btf.member("outer.b"), Some(Member { offset: 4, size: 4 }));
        assert_eq!(
            btf.member("outer.in.c"),
            Some(Member { offset: 4, size: 4 })
        );
        assert_eq!(btf.member("outer.nothing"), None);
        assert_eq!(btf.size_of("outer"), Some(8));
        assert_eq!(btf.enumerator("colour", "BLUE"), Some(7));
        assert!(btf.has_function("go") && !btf.has_function("stop"));
    }

    #[test]
    fn a_bit_field_is_found_by_its_bit() {
        let mut blob = sample();
        let btf = Btf::parse(blob.clone()).unwrap();
        assert_eq!(btf.bit("outer.b"), Some(Bit { byte: 4, mask: 1 }));
        // `outer` as a structure with bit-fields: its `a` is one bit, the eleventh.
        let head = btf.types[btf.named("outer").unwrap() as usize] as usize;
        blob[head + 7] |= 0x80;
        blob[head + 12 + 8..head + 12 + 12].copy_from_slice(&(1u32 << 24 | 10).to_le_bytes());
        let btf = Btf::parse(blob).unwrap();
        assert_eq!(btf.bit("outer.a"), Some(Bit { byte: 1, mask: 4 }));
        assert_eq!(btf.bit("outer.nothing"), None);
    }

    #[test]
    fn places_for_programs_are_listed_with_their_arguments() {
        let btf = Btf::parse(sample()).unwrap();
        assert_eq!(btf.functions().collect::<Vec<_>>(), [(7, "go", 0)]);
        let arguments = ["struct inner *", "int"].map(str::to_owned).to_vec();
        assert_eq!(btf.tracepoints().collect::<Vec<_>>(), [(11, "tick")]);
        assert_eq!(btf.tracepoint_arguments(11), Some(arguments));
        assert_eq!(btf.tracepoint_arguments(7), None);
    }

    /// A module with `struct own { struct inner at; int b; }` over [`sample`].
    fn module() -> Vec<u8> {
        let base = Btf::parse(sample()).unwrap();
        let (_, kernel) = base.strings;
        let strings = b"own\0at\0";
        let at = |offset: usize| u32::try_from(kernel + offset).unwrap();
        let b = u32::try_from(b"\0int\0outer\0a\0".len()).unwrap();
        let types = [
            [at(0), KIND_STRUCT << 24 | 2, 8, at(4), 2, 0, b, 1, 32].as_slice(), // 12
            &[0, KIND_PTR << 24, 12],                                            // 13
        ]
        .concat();
        let type_bytes: Vec<u8> = types.iter().flat_map(|word| word.to_le_bytes()).collect();
        let mut blob = vec![0x9f, 0xeb, 1, 0];
        let lens = [24, 0, type_bytes.len(), type_bytes.len(), strings.len()];
        let lens = lens.iter();
        blob.extend(lens.flat_map(|&len| u32::try_from(len).unwrap().to_le_bytes()));
        blob.extend(type_bytes);
        blob.extend(strings);
        blob
    }

    #[test]
    fn types_of_a_module_refer_to_those_of_the_kernel() {
        let btf = Btf::parse(sample()).unwrap();
        let btf = btf.with_module(&module()).unwrap();
        assert_eq!(btf.member("own.at.c"), Some(Member { offset: 0, size: 4 }));
        assert_eq!(btf.member("own.b"), Some(Member { offset: 4, size: 4 }));
        assert_eq!(btf.size_of("own"), Some(8));
        assert_eq!(btf.member("outer.b"), Some(Member { offset: 4, size: 4 }));
        assert!(btf.with_module(&module()).is_err());
        let blob = module();
        for len in 0..blob.len() {
            let btf = Btf::parse(sample()).unwrap();
            assert!(btf.with_module(&blob[..len]).is_err(), "cut at {len}");
        }
    }

    #[test]
    fn any_cut_is_an_error_and_no_panic() {
        let blob = sample();
        for len in 0..blob.len() {
            assert!(Btf::parse(blob[..len].to_vec()).is_err(), "cut at {len}");
        }
    }
}
