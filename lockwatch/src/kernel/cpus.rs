//! What the kernel says of its CPUs in /proc.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read as _},
};

use crate::lockup::CpuTimes;

const STAT: &str = "/proc/stat";
const INTERRUPTS: &str = "/proc/interrupts";
const CPUINFO: &str = "/proc/cpuinfo";

/// Where the time of each CPU that is online has gone.
///
/// # Errors
/// When /proc/stat cannot be read.
pub fn times() -> io::Result<BTreeMap<u32, CpuTimes>> {
    Ok(parse_times(&fs::read_to_string(STAT)?))
}

/// Interrupts of each online CPU's own timer so far; empty where the kernel does not count
/// them, or they have another name.
///
/// # Errors
/// When /proc/interrupts cannot be read.
pub fn timer_interrupts() -> io::Result<BTreeMap<u32, u64>> {
    Ok(parse_timer_interrupts(&fs::read_to_string(INTERRUPTS)?))
}

/// Whether a hypervisor runs this machine (X86_FEATURE_HYPERVISOR); false where it hides.
pub fn is_virtual() -> bool {
    // The first CPU's flags are near the beginning, and all of them would be long.
    let mut start = String::new();
    let read = File::open(CPUINFO).and_then(|file| file.take(8192).read_to_string(&mut start));
    read.is_ok() && has_hypervisor(&start)
}

fn has_hypervisor(cpuinfo: &str) -> bool {
    cpuinfo
        .lines()
        .find(|line| line.starts_with("flags"))
        .is_some_and(|line| line.split_whitespace().any(|flag| flag == "hypervisor"))
}

/// `cpuN user nice system idle iowait irq softirq steal guest guest_nice` (fs/proc/stat.c);
/// the times of guests are in those of users.
fn parse_times(stat: &str) -> BTreeMap<u32, CpuTimes> {
    const IDLE: std::ops::RangeInclusive<usize> = 3..=4;
    const STEAL: usize = 7;
    stat.lines()
        .filter_map(|line| {
            let mut words = line.strip_prefix("cpu")?.split_ascii_whitespace();
            // The sum of all has no number, and its first word is a time.
            if line.as_bytes().get(3)?.is_ascii_whitespace() {
                return None;
            }
            let cpu = words.next()?.parse().ok()?;
            let times: Vec<u64> = words.map_while(|word| word.parse().ok()).collect();
            let own = times.get(..=STEAL)?;
            Some((
                cpu,
                CpuTimes {
                    all: own.iter().sum(),
                    stolen: own[STEAL],
                    idle: own[IDLE].iter().sum(),
                },
            ))
        })
        .collect()
}

/// A line of CPUs' names, then for each interrupt its name and a count for each of those
/// (kernel/irq/proc.c; arch/x86/kernel/irq.c, `arch_show_interrupts`).
fn parse_timer_interrupts(interrupts: &str) -> BTreeMap<u32, u64> {
    const LOCAL_TIMER: &str = "LOC:";
    let mut lines = interrupts.lines();
    let cpus = lines.next().unwrap_or_default().split_ascii_whitespace();
    let cpus = cpus.filter_map(|name| name.strip_prefix("CPU")?.parse().ok());
    let counts = lines
        .find_map(|line| line.trim_start().strip_prefix(LOCAL_TIMER))
        .unwrap_or_default()
        .split_ascii_whitespace()
        .map_while(|word| word.parse().ok());
    let counts: BTreeMap<u32, u64> = cpus.zip(counts).collect();
    // Of a timer that is not used nothing can be told.
    if counts.values().all(|&count| count == 0) {
        return BTreeMap::new();
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_each_cpu_and_not_of_all() {
        let stat = "cpu  100 0 50 790 10 0 0 50 0 0\n\
                    cpu0 60 0 20 400 0 0 0 20 7 0\n\
                    cpu12 40 0 30 390 10 0 0 30 0 0\n\
                    intr 12 3\nctxt 5\n";
        let times = parse_times(stat);
        let expected = [(0, (500, 20)), (12, (500, 30))].map(|(cpu, (all, stolen))| {
            let idle = 400;
            (cpu, CpuTimes { all, stolen, idle })
        });
        assert_eq!(times, BTreeMap::from(expected));
        assert_eq!(
            parse_times("cpu0 1 2 3\n"),
            BTreeMap::new(),
            "before 2.6.11"
        );
    }

    #[test]
    fn the_local_timer_by_the_names_of_the_columns() {
        let interrupts = "            CPU0       CPU2       \n  \
                            1:          9          8   IO-APIC   1-edge      i8042\n \
                          LOC:       1234       5678   Local timer interrupts\n";
        let counts = parse_timer_interrupts(interrupts);
        assert_eq!(counts, BTreeMap::from([(0, 1234), (2, 5678)]));
        let unused = interrupts.replace("1234", "0").replace("5678", "0");
        assert_eq!(parse_timer_interrupts(&unused), BTreeMap::new());
        assert_eq!(parse_timer_interrupts(""), BTreeMap::new());
    }

    #[test]
    fn this_machine_has_them() {
        let times = times().unwrap();
        assert!(times.values().all(|cpu| cpu.all >= cpu.stolen), "{times:?}");
        assert!(!times.is_empty());
    }

    #[test]
    fn a_hypervisor_is_a_flag() {
        assert!(has_hypervisor(
            "processor\t: 0\nflags\t\t: fpu hypervisor lahf_lm\n"
        ));
        assert!(!has_hypervisor(
            "model name\t: hypervisor\nflags\t\t: fpu\n"
        ));
    }
}
