//! What the kernel says of an open BPF object in `/proc/PID/fdinfo` (kernel/bpf/syscall.c).

/// Number of a map; `bpf_map_show_fdinfo`, 5.10+.
pub const MAP_ID: &str = "map_id:";
/// Memory of a map in bytes; by its size alone before 6.4.
pub const MEMORY: &str = "memlock:";
/// Runs of a program that were skipped, for it ran on that CPU already; `bpf_prog_show_fdinfo`,
/// 5.12+.
pub const MISSES: &str = "recursion_misses:";

/// The number of a field in the text of such a file; `None` without it.
pub fn number(text: &str, field: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(field))?;
    line.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_found_by_its_name_at_the_begin_of_a_line() {
        let text = "flags:\t02000000\nmap_id:\t17\nmemlock:\t6681664\n";
        assert_eq!(number(text, MAP_ID), Some(17));
        assert_eq!(number(text, MEMORY), Some(6_681_664));
        assert_eq!(number(text, "id:"), None);
        assert_eq!(number("map_id:\tx\n", MAP_ID), None);
    }
}
