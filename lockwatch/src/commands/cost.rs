//! What lockwatch itself costs.

use std::{collections::BTreeMap, fs, time::Duration};

use rustix::time::{ClockId, clock_gettime};

use crate::{
    export::Cost,
    kernel::{arch::PAGE_SIZE, bpf_files},
};

/// The cost so far.
pub(super) fn now() -> Cost {
    let cpu = clock_gettime(ClockId::ProcessCPUTime);
    let nanos = u32::try_from(cpu.tv_nsec).unwrap_or(0);
    Cost {
        cpu: Duration::new(u64::try_from(cpu.tv_sec).unwrap_or(0), nanos),
        resident_bytes: resident_bytes().unwrap_or(0),
        map_bytes: map_bytes().unwrap_or(0),
    }
}

/// Memory of our maps in the kernel, as it says itself.
fn map_bytes() -> Option<u64> {
    let mut bytes = BTreeMap::new();
    for entry in fs::read_dir("/proc/self/fdinfo").ok()?.flatten() {
        let Ok(text) = fs::read_to_string(entry.path()) else {
            continue;
        };
        let field = |name| bpf_files::number(&text, name);
        if let (Some(id), Some(memory)) = (field(bpf_files::MAP_ID), field(bpf_files::MEMORY)) {
            bytes.insert(id, memory);
        }
    }
    Some(bytes.into_values().sum())
}

/// Resident memory of this process.
fn resident_bytes() -> Option<u64> {
    // Our own: no lock of another process is waited for.
    let statm = fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split(' ').nth(1)?.parse().ok()?;
    Some(pages * PAGE_SIZE)
}
