//! The clock of everything that is seen.

/// `CLOCK_MONOTONIC` in ns: the clock of all events, of the programs' too
/// (`bpf_ktime_get_ns`).
pub fn now_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec.unsigned_abs() * 1_000_000_000 + now.tv_nsec.unsigned_abs()
}
