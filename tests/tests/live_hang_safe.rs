//! `lockwatch diagnose` touches nothing that could hang on the stall it is
//! asked about.

#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

use std::{
    fs,
    path::Path,
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use lockwatch_tests::{
    trial::{
        self, Ended, Lab, Program,
        touched::{Call, Touched},
    },
    truth::Scenario,
};

/// It is killed then; under strace it may be slow.
const LIMIT: Duration = Duration::from_secs(30);

/// More than this at its peak would be a burden on a host short of memory.
const MOST_RSS_KIB: u64 = 256 << 10;

/// Files that `diagnose` may touch once it runs: the kernel answers for them
/// without asking a file system, a process or a device.
const ALLOWED: [&str; 16] = [
    // Opened so that it does not block.
    "/dev/kmsg",
    "/proc/kallsyms",
    "/proc/self/ns/pid",
    "/proc/self/ns/user",
    "/proc/sys/kernel/hung_task_timeout_secs",
    "/proc/sys/kernel/hung_task_warnings",
    "/proc/sys/kernel/nmi_watchdog",
    "/proc/sys/kernel/random/boot_id",
    "/proc/sys/kernel/soft_watchdog",
    "/proc/sys/kernel/watchdog",
    "/proc/sys/kernel/watchdog_thresh",
    // aya asks for the version of Ubuntu's kernels there.
    "/proc/version_signature",
    // glibc's allocator, before it gives memory back.
    "/proc/sys/vm/overcommit_memory",
    // The types of FUSE, where it is a module: a copy that the kernel keeps in memory.
    "/sys/kernel/btf/fuse",
    "/sys/kernel/btf/vmlinux",
    "/sys/kernel/security/lockdown",
];

/// Runs a program under strace; the record of the files it touched.
fn traced(program: &Path, arguments: &[&str]) -> (Ended, String) {
    static RECORDS: AtomicU32 = AtomicU32::new(0);
    let number = RECORDS.fetch_add(1, Ordering::Relaxed);
    let name = format!("lockwatch-touched-{}-{number}", std::process::id());
    let record = std::env::temp_dir().join(name);
    let mut command = Command::new("strace");
    command
        .args(["-f", "-y", "-s", "4096", "-e", "trace=%file,openat2", "-o"])
        .arg(&record)
        .arg(program)
        .args(arguments)
        // Cargo's makes the loader look for libraries in its own folders.
        .env_remove("LD_LIBRARY_PATH");
    let ended = Program::run(&mut command, trial::bound(LIMIT))
        .unwrap_or_else(|error| panic!("install strace (cargo xtask test does): {error:#}"));
    let text = fs::read_to_string(&record).unwrap_or_default();
    let _ = fs::remove_file(&record);
    (ended, text)
}

/// Before this, the loader is at work; with it, Rust's start-up begins.
fn is_start_up(call: &Call) -> bool {
    call.is_loaders() || call.is_rusts_start()
}

fn complaints(touched: &Touched) -> Vec<String> {
    let mut wrong = Vec::new();
    let started = touched
        .calls
        .iter()
        .position(|call| !is_start_up(call))
        .unwrap_or(touched.calls.len());
    let (start, run) = touched.calls.split_at(started);
    let own_maps = start
        .iter()
        .filter(|call| call.is_rusts_start() && call.name.starts_with("open"))
        .count();
    if own_maps > 1 {
        wrong.push(format!("its own maps were opened {own_maps} times"));
    }
    for call in run {
        if let Some(file) = call.forbidden() {
            wrong.push(format!("{} {} may hang: {file}", call.name, call.path));
        } else if !ALLOWED.contains(&&*call.path) {
            wrong.push(format!("{} {} is not on the list", call.name, call.path));
        }
    }
    if !run.iter().any(|call| call.path == "/proc/kallsyms") {
        wrong.push("strace saw no survey: /proc/kallsyms was not opened".into());
    }
    wrong
}

fn try_scenario(scenario: Scenario) {
    let lab = Lab::raise(scenario, 4).unwrap();
    let lockwatch = trial::lockwatch().unwrap();
    // strace stops it at each call, an emulated machine is slow as well.
    let arguments = ["diagnose", "--threshold", "1ms", "--deadline", "20s"];
    let (traced, text) = traced(&lockwatch, &arguments);
    let mut command = Command::new(&lockwatch);
    command.args(arguments);
    let plain = Program::run(&mut command, trial::bound(LIMIT)).unwrap();

    let truth = lab.truth.clone();
    lab.finish().unwrap();
    for ended in [&traced, &plain] {
        assert_eq!(ended.code(), Some(1), "{}\n{truth:#?}", ended.describe());
        assert!(
            ended.stdout.contains(&truth.lock.name),
            "{} is not named\n{}",
            truth.lock.name,
            ended.describe()
        );
    }
    let touched = Touched::read(&text);
    let wrong = complaints(&touched);
    eprintln!(
        "{}: {} calls on files, peak {} MiB",
        scenario.name(),
        touched.calls.len(),
        plain.peak_rss_kib >> 10
    );
    assert!(
        wrong.is_empty(),
        "{}:\n  {}\nstrace's record:\n{text}",
        scenario.name(),
        wrong.join("\n  ")
    );
    assert!(
        plain.peak_rss_kib <= MOST_RSS_KIB,
        "peak of {} KiB",
        plain.peak_rss_kib
    );
}

#[test]
#[ignore = "live: needs root and BPF on the running kernel; run by cargo xtask test"]
fn nothing_that_hangs_is_touched_while_a_directory_is_held() {
    try_scenario(Scenario::InodeWriteHeld);
}

#[test]
#[ignore = "live: needs root and BPF on the running kernel; run by cargo xtask test"]
fn nothing_that_hangs_is_touched_while_an_address_space_is_read_held() {
    try_scenario(Scenario::MmapReadHeld);
}

#[test]
#[ignore = "live: needs root and BPF on the running kernel; run by cargo xtask test"]
fn nothing_that_hangs_is_touched_while_an_address_space_is_write_held() {
    try_scenario(Scenario::MmapWriteHeld);
}

/// The judge itself: what a careless tool does is seen, also by strace.
#[test]
#[ignore = "live: needs root and BPF on the running kernel; run by cargo xtask test"]
fn a_tool_that_reads_command_lines_is_caught() {
    let own = format!("/proc/{}/cmdline", std::process::id());
    let (_, text) = traced(Path::new("cat"), &["/proc/kallsyms", &own]);
    let wrong = complaints(&Touched::read(&text));
    assert!(
        wrong.iter().any(|one| one.contains("may hang: cmdline")),
        "{wrong:?}\n{text}"
    );
}
