//! The table of programs and kernels.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Display, Formatter};
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

use super::Loaded;
use crate::ebpf;

/// The kernel's own limit is a million; a program near it would fail on the next kernel.
const MOST: u64 = 200_000;
/// What the kernel keeps of a name.
const KEPT: usize = 15;

/// The programs of all objects in the tree.
#[derive(Debug)]
pub(crate) struct Programs {
    /// Family → whole names, and the objects that have them.
    by_family: BTreeMap<String, (BTreeSet<String>, BTreeSet<String>)>,
}

impl Programs {
    /// Reads every `.bpf.o` that lockwatch embeds.
    pub(crate) fn of_objects(root: &Path) -> Result<Self> {
        let folder = ebpf::object_directory(root);
        let entries =
            fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?;
        let mut all = Vec::new();
        for entry in entries {
            let path = entry?.path();
            let file = path.file_name().unwrap_or_default().to_string_lossy();
            let Some(object) = file.strip_suffix(".bpf.o") else {
                continue;
            };
            for program in ebpf::program_names(&fs::read(&path)?)? {
                all.push((program, object.to_owned()));
            }
        }
        Ok(Self::new(all))
    }

    fn new(all: impl IntoIterator<Item = (String, String)>) -> Self {
        let mut by_family: BTreeMap<String, (BTreeSet<String>, BTreeSet<String>)> = BTreeMap::new();
        for (program, object) in all {
            let kept: String = program.chars().take(KEPT).collect();
            let (names, objects) = by_family.entry(family(&kept)).or_default();
            names.insert(family(&program));
            objects.insert(object);
        }
        Self { by_family }
    }
}

/// What one program came to on one kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Cell {
    /// Not loaded: not chosen here.
    Absent,
    /// Instructions processed, and the time of the load in µs; the most of several loads.
    Loaded {
        instructions: Option<u64>,
        took_us: u64,
    },
    /// Every attempt was refused, with this `errno`.
    Refused(i32),
}

/// One row: a program, in the order of the kernels.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) program: String,
    pub(crate) objects: String,
    pub(crate) cells: Vec<Cell>,
}

/// All programs on all kernels.
#[derive(Debug)]
pub(crate) struct Table {
    pub(crate) kernels: Vec<String>,
    pub(crate) rows: Vec<Row>,
    /// Bytes of all maps of one process, per kernel.
    pub(crate) map_bytes: Vec<u64>,
}

impl Table {
    /// Only programs of ours: a loader also tries what the kernel can do.
    pub(crate) fn new(programs: &Programs, kernels: &[(&str, &Loaded)]) -> Self {
        let rows = programs
            .by_family
            .iter()
            .map(|(family, (names, objects))| Row {
                program: joined(names),
                objects: joined(objects),
                cells: kernels
                    .iter()
                    .map(|(_, loaded)| cell(family, loaded))
                    .collect(),
            });
        let mut rows: Vec<Row> = rows.collect();
        rows.sort_by(|one, other| one.objects.cmp(&other.objects));
        Self {
            kernels: kernels.iter().map(|(name, _)| (*name).to_owned()).collect(),
            rows,
            map_bytes: kernels
                .iter()
                .map(|(_, loaded)| map_bytes(loaded))
                .collect(),
        }
    }

    /// What must not be. `on_all`: the kernels are all there are, so that each program must
    /// have been loaded on one.
    pub(crate) fn complaints(&self, on_all: bool) -> Vec<String> {
        let mut found = Vec::new();
        for row in &self.rows {
            for (kernel, cell) in self.kernels.iter().zip(&row.cells) {
                match cell {
                    Cell::Loaded {
                        instructions: Some(number),
                        ..
                    } if *number > MOST => {
                        found.push(format!(
                            "{kernel}: {} needs {number} verified instructions, more than {MOST}",
                            row.program
                        ));
                    }
                    Cell::Loaded {
                        instructions: None, ..
                    } => found.push(format!(
                        "{kernel}: the verifier has not said what {} needs",
                        row.program
                    )),
                    Cell::Refused(error) => found.push(format!(
                        "{kernel}: {} was refused: {}",
                        row.program,
                        std::io::Error::from_raw_os_error(*error)
                    )),
                    Cell::Loaded { .. } | Cell::Absent => {}
                }
            }
            if on_all && row.cells.iter().all(|cell| *cell == Cell::Absent) {
                found.push(format!(
                    "{} of {} is loaded on none of these kernels",
                    row.program, row.objects
                ));
            }
        }
        for (number, kernel) in self.kernels.iter().enumerate() {
            if self
                .rows
                .iter()
                .all(|row| row.cells[number] == Cell::Absent)
            {
                found.push(format!("{kernel}: no program was loaded"));
            }
        }
        found
    }
}

fn joined(names: &BTreeSet<String>) -> String {
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    names.join(", ")
}

/// Copies of one program, for one place each, differ by a number: `wait_begin_7` is of the
/// family `wait_begin_N`.
fn family(program: &str) -> String {
    match program.rsplit_once('_') {
        Some((stem, number)) if number.parse::<u32>().is_ok() => format!("{stem}_N"),
        _ => program.to_owned(),
    }
}

fn cell(of: &str, loaded: &Loaded) -> Cell {
    let mut refused = None;
    let mut most: Option<(Option<u64>, u64)> = None;
    for load in loaded.loads.iter().filter(|load| family(&load.name) == of) {
        match load.error {
            Some(error) => refused = Some(error),
            None => {
                let (instructions, took) = most.unwrap_or((load.instructions, 0));
                most = Some((
                    // One load that says nothing makes the sum unknown.
                    instructions
                        .zip(load.instructions)
                        .map(|(one, other)| one.max(other)),
                    took.max(load.took_us),
                ));
            }
        }
    }
    match (most, refused) {
        (Some((instructions, took_us)), _) => Cell::Loaded {
            instructions,
            took_us,
        },
        (None, Some(error)) => Cell::Refused(error),
        (None, None) => Cell::Absent,
    }
}

/// The largest of each name: each command makes its own, and they do not run together.
fn map_bytes(loaded: &Loaded) -> u64 {
    let mut largest: BTreeMap<&str, u64> = BTreeMap::new();
    for map in loaded.maps.iter().filter(|map| !map.name.is_empty()) {
        let bytes = largest.entry(&map.name).or_default();
        *bytes = (*bytes).max(map.bytes);
    }
    largest.values().sum()
}

impl Display for Table {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let width = |title: &str, of: fn(&Row) -> &str| {
            let lengths = self.rows.iter().map(|row| of(row).chars().count());
            lengths.chain([title.len()]).max().unwrap_or_default()
        };
        let (program, object) = (
            width("program", |row| &row.program),
            width("object", |row| &row.objects),
        );
        let mut line = |first: &str, second: &str, cells: Vec<String>| {
            write!(f, "{first:<program$}  {second:<object$}")?;
            for cell in cells {
                write!(f, " {cell:>15}")?;
            }
            writeln!(f)
        };
        line("program", "object", self.kernels.clone())?;
        for row in &self.rows {
            let cells = row.cells.iter().map(ToString::to_string).collect();
            line(&row.program, &row.objects, cells)?;
        }
        let kib = self
            .map_bytes
            .iter()
            .map(|bytes| format!("{} KiB", bytes >> 10));
        line("maps", "", kib.collect())?;
        writeln!(f, "verified instructions (ms to load); limit {MOST}")
    }
}

impl Cell {
    /// The number alone.
    pub(crate) fn instructions(&self) -> String {
        match self {
            Self::Absent => "–".to_owned(),
            Self::Refused(_) => "refused".to_owned(),
            Self::Loaded { instructions, .. } => {
                instructions.map_or_else(|| "?".to_owned(), |number| number.to_string())
            }
        }
    }
}

impl Display for Cell {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent => f.pad("-"),
            Self::Refused(error) => f.pad(&format!("refused ({error})")),
            Self::Loaded {
                instructions,
                took_us,
            } => {
                let number =
                    instructions.map_or_else(|| "?".to_owned(), |number| number.to_string());
                f.pad(&format!("{number} ({:.1})", *took_us as f64 / 1e3))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verified::{Load, Map};

    fn programs() -> Programs {
        let all = [
            ("tasks", "survey"),
            ("rwsem_down_read_begin", "stream"),
            ("rwsem_down_read_end", "stream"),
            ("hold", "holds"),
            ("hold", "holds_by_tid"),
            ("wait_9", "stream"),
            ("wait_10", "stream"),
        ];
        Programs::new(all.map(|(program, object)| (program.to_owned(), object.to_owned())))
    }

    fn load(name: &str, instructions: u64, error: Option<i32>) -> Load {
        Load {
            name: name.to_owned(),
            instructions: error.is_none().then_some(instructions),
            took_us: 1500,
            error,
        }
    }

    fn loaded(loads: &[Load]) -> Loaded {
        let map = |bytes| Map {
            name: "WAITS".to_owned(),
            bytes,
        };
        Loaded {
            loads: loads.to_vec(),
            maps: vec![map(2048), map(4096)],
        }
    }

    #[test]
    fn the_most_of_all_loads_counts_and_a_second_try_mends_a_refusal() {
        let found = loaded(&[
            load("tasks", 7, Some(22)),
            load("tasks", 10, None),
            load("tasks", 30, None),
            load("rwsem_down_read", 9, Some(1)),
            load("wait_9", 40, None),
            load("wait_10", 50, None),
            load("aya_probe", 2, None),
        ]);
        let table = Table::new(&programs(), &[("6.1", &found)]);
        let text = table.to_string();
        assert!(
            text.contains("30 (1.5)") && !text.contains("aya_probe"),
            "{text}"
        );
        assert!(
            text.contains("rwsem_down_read_begin, rwsem_down_read_end"),
            "{text}"
        );
        assert!(text.contains("holds, holds_by_tid"), "{text}");
        let families: Vec<&str> = text.lines().filter(|line| line.contains("wait_")).collect();
        assert_eq!(families.len(), 1, "{text}");
        assert!(
            families[0].starts_with("wait_N ") && families[0].contains(" 50 (1.5)"),
            "{text}"
        );
        assert!(text.contains("4 KiB"), "{text}");
        let complaints = table.complaints(false);
        assert_eq!(complaints.len(), 1, "{complaints:?}");
        assert!(complaints[0].contains("was refused"), "{complaints:?}");
    }

    #[test]
    fn too_many_instructions_and_unused_programs_are_told() {
        let (small, large) = (
            loaded(&[load("tasks", MOST, None)]),
            loaded(&[load("tasks", MOST + 1, None)]),
        );
        let table = Table::new(&programs(), &[("6.1", &small), ("7.3", &large)]);
        let complaints = table.complaints(true);
        assert!(
            complaints
                .iter()
                .any(|line| line.starts_with("7.3: tasks needs 200001"))
        );
        assert!(
            !complaints.iter().any(|line| line.starts_with("6.1:")),
            "{complaints:?}"
        );
        assert!(
            complaints
                .iter()
                .any(|line| line.starts_with("hold of holds, holds_by_tid is loaded on none"))
        );
    }

    #[test]
    fn a_kernel_where_nothing_was_loaded_is_told() {
        let table = Table::new(&programs(), &[("6.1", &Loaded::default())]);
        assert_eq!(table.complaints(false), ["6.1: no program was loaded"]);
    }
}
