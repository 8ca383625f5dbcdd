//! The kernel's symbols as a survey reads them, from the kernel's own tables in its memory,
//! against the whole of /proc/kallsyms.

#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

use lockwatch::{
    kernel::symbols::{self, Symbols},
    probes::types::Types,
    survey::Parts,
};
use lockwatch_tests::trial;

/// Those lines of /proc/kallsyms that are of the kernel's image: others have a fourth field.
fn lines_of_image() -> String {
    let text = symbols::read().unwrap();
    let lines = text.lines();
    lines
        .filter(|line| line.split_ascii_whitespace().count() == 3)
        .map(|line| format!("{line}\n"))
        .collect()
}

#[test]
#[ignore = "live: needs root and BPF on the running kernel; run by cargo xtask test"]
fn the_tables_in_memory_say_what_the_file_says() {
    let types = Types::read().unwrap();
    let test = "the_tables_in_memory_say_what_the_file_says";
    let Some(read) = Parts::load(&types).unwrap().symbols_of_the_image() else {
        let why = "they are not found in memory, and the file is read instead";
        assert!(trial::is_skipped(test, why));
        return;
    };
    let shown = Symbols::parse(lines_of_image()).unwrap();
    let (read, shown): (Vec<_>, Vec<_>) = (read.listed().collect(), shown.listed().collect());
    assert!(shown.len() > 10_000, "{} symbols", shown.len());
    let differ = read.iter().zip(&shown).find(|(read, shown)| read != shown);
    assert_eq!(differ, None, "(of the tables, of the file)");
    assert_eq!(read.len(), shown.len());
    println!("{} symbols of the tables are those of the file", read.len());
}
