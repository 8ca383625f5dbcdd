//! Type information made by hand, for tests: of kernels that cannot be had.

use std::collections::BTreeMap;

use super::{Btf, KIND_INT, KIND_STRUCT};

/// Types from lines like `rw_semaphore 32: count@0=8 wait_list@16=list_head`: a structure
/// with its size, and its members with their offsets, all in bytes, and with what they are:
/// a structure of an earlier line, or so many bytes.
pub(crate) fn btf(lines: &str) -> Btf {
    let mut made = Made::default();
    for line in lines.lines().filter(|line| !line.trim().is_empty()) {
        made.structure(line);
    }
    made.finish()
}

#[derive(Default)]
struct Made {
    strings: Vec<u8>,
    words: Vec<u32>,
    ids: BTreeMap<String, u32>,
}

impl Made {
    fn string(&mut self, name: &str) -> u32 {
        if self.strings.is_empty() {
            self.strings.push(0);
        }
        let at = u32::try_from(self.strings.len()).unwrap();
        self.strings.extend(name.bytes().chain([0]));
        at
    }

    /// Adds a type and says its id.
    fn push(&mut self, name: &str, words: &[u32]) -> u32 {
        let id = u32::try_from(self.ids.len()).unwrap() + 1;
        self.words.extend(words);
        assert_eq!(self.ids.insert(name.to_owned(), id), None, "{name} twice");
        id
    }

    /// The id of a structure, or of so many bytes.
    fn id(&mut self, what: &str) -> u32 {
        if let Some(&id) = self.ids.get(what) {
            return id;
        }
        let size = what.parse().unwrap_or_else(|_| panic!("no type {what}"));
        let name = self.string("int");
        self.push(what, &[name, KIND_INT << 24, size, 0])
    }

    fn structure(&mut self, line: &str) {
        let (head, members) = line.split_once(':').unwrap();
        let (name, size) = head.trim().split_once(' ').unwrap();
        let mut words = Vec::new();
        for member in members.split_ascii_whitespace() {
            let (member, rest) = member.split_once('@').unwrap();
            let (offset, what) = rest.split_once('=').unwrap();
            let id = self.id(what);
            let bits = 8 * offset.parse::<u32>().unwrap();
            words.extend([self.string(member), id, bits]);
        }
        let count = u32::try_from(words.len() / 3).unwrap();
        let head = [
            self.string(name),
            KIND_STRUCT << 24 | count,
            size.parse().unwrap(),
        ];
        let words = [head.as_slice(), &words].concat();
        self.push(name, &words);
    }

    fn finish(self) -> Btf {
        let types: Vec<u8> = self
            .words
            .iter()
            .flat_map(|word| word.to_le_bytes())
            .collect();
        let lens = [24, 0, types.len(), types.len(), self.strings.len()];
        let mut blob = vec![0x9f, 0xeb, 1, 0];
        for len in lens {
            blob.extend(u32::try_from(len).unwrap().to_le_bytes());
        }
        blob.extend(types);
        blob.extend(self.strings);
        Btf::parse(blob).unwrap()
    }
}
