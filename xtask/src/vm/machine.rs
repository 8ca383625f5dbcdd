//! One virtual machine: QEMU, its serial ports, and how it ends.
//!
//! The processor is emulated (TCG): it needs no /dev/kvm, and stock kernels do
//! not boot everywhere with it. All processors of a machine share one thread: with one each,
//! a processor can meet the int3 of a kernel that patches its text after the patch is done
//! (seen on 5.10 and 7.3, where attaching programs ended in an oops).

use std::cell::Cell;
use std::fs::{self, File};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use crate::process::{self, End, Next};

/// The guest says "all is well" with 16 at its debug port, "tests failed" with
/// 17; QEMU makes 2·n + 1 of it, which no failure of its own looks like.
const ALL_WELL: i32 = 33;
const TESTS_FAILED: i32 = 35;

/// A kernel that has said this does nothing sensible any more.
const LAST_WORDS: [&str; 3] = ["Kernel panic", "BUG: soft lockup", "Attempted to kill init"];
/// What the lab says in the kernel's log when it locks a CPU up, and when that is over
/// (tests/src/lockup/main.rs): in between, the kernel may say what it likes about it.
const ON_PURPOSE: &str = "lockup-lab: a CPU is locked up on purpose";
const OVER: &str = "lockup-lab: the lockup is over";
/// … and for so long after it: its watchdog runs when the CPU takes interrupts again.
const AFTERWARDS: Duration = Duration::from_secs(1);
/// What the kernel may say of it.
const OF_A_LOCKUP: &str = "BUG: soft lockup";
/// Longer than any boot on a busy machine (60 s were seen with five times too much to do).
const BOOT_LIMIT: Duration = Duration::from_secs(300);
/// From last words to the end: the rest of the stack trace is worth having.
const MOURNING: Duration = Duration::from_secs(5);

/// What to boot.
#[derive(Debug)]
pub(crate) struct Machine<'m> {
    pub(crate) vmlinuz: &'m Path,
    pub(crate) initramfs: &'m Path,
    /// More words for the kernel's command line.
    pub(crate) append: &'m str,
    pub(crate) memory_mib: u32,
    pub(crate) cpus: u32,
    /// One processor, whose clock counts its instructions; the machine never waits for real
    /// time to pass.
    pub(crate) icount: bool,
    /// The folder for console.log, guest.log and qemu.log.
    pub(crate) logs: &'m Path,
}

/// How a machine ended.
#[derive(Debug)]
pub(crate) enum Ending {
    /// The guest switched itself off; whether all tests were well, by its own words.
    Off { well: bool },
    /// Anything else.
    Broken(String),
}

impl Machine<'_> {
    /// Runs the machine to its end, and hands the lines of the guest over.
    pub(crate) fn run(
        &self,
        limit: Duration,
        mut on_line: impl FnMut(&str) -> Next,
    ) -> Result<Ending> {
        fs::create_dir_all(self.logs)
            .with_context(|| format!("cannot create {}", self.logs.display()))?;
        let log = |name: &str| {
            let path = self.logs.join(name);
            File::create(&path).with_context(|| format!("cannot create {}", path.display()))
        };
        let mut guest_log = log("guest.log")?;
        let mut command = self.command();
        command.stderr(log("qemu.log")?);
        let mut console = Console::new(self.logs.join("console.log"));
        let begun = Instant::now();
        let has_spoken = Cell::new(false);
        let end = process::supervise_while(
            &mut command,
            limit,
            |line| {
                // A full disk must not end the machine; the lines are handed over anyhow.
                let _ = writeln!(guest_log, "{line}");
                has_spoken.set(true);
                on_line(line)
            },
            || console.is_alive() && (has_spoken.get() || begun.elapsed() < BOOT_LIMIT),
        )?;
        console.read();
        let broken = |why: String| Ending::Broken(why);
        let last_words = console.last_words.take();
        Ok(match end {
            End::Exited(status) if status.code() == Some(ALL_WELL) => Ending::Off { well: true },
            End::Exited(status) if status.code() == Some(TESTS_FAILED) => {
                Ending::Off { well: false }
            }
            _ if last_words.is_some() => broken(last_words.unwrap_or_default()),
            End::TimedOut if !has_spoken.get() => broken(format!(
                "no word from it in {} s",
                begun.elapsed().as_secs()
            )),
            End::TimedOut => broken(format!("killed after {} s", limit.as_secs())),
            End::Exited(status) => broken(format!(
                "qemu ended with {status}{}",
                first_line(&self.logs.join("qemu.log"))
            )),
        })
    }

    fn command(&self) -> Command {
        let console = self.logs.join("console.log");
        let mut command = Command::new("qemu-system-x86_64");
        command
            .args(["-accel", "tcg,thread=single", "-cpu", "max", "-M", "q35"])
            .args(["-smp", &if self.icount { 1 } else { self.cpus }.to_string()])
            .args(["-m", &self.memory_mib.to_string()])
            .args(["-nodefaults", "-display", "none", "-no-reboot"])
            .args(["-device", "isa-debug-exit,iobase=0xf4,iosize=0x04"])
            // First port: the kernel's console. Second: the guest's own words.
            .arg("-serial")
            .arg(format!("file:{}", console.display()))
            .args(["-serial", "stdio"])
            .arg("-kernel")
            .arg(self.vmlinuz)
            .arg("-initrd")
            .arg(self.initramfs)
            .arg("-append")
            .arg(format!(
                // A busy host makes the guest's CPUs stand still for seconds. A PREEMPT_RT
                // kernel gives up on the emulated serial port after much output.
                "console=ttyS0 panic=-1 oops=panic watchdog_thresh=30 noirqdebug {}",
                self.append
            ));
        if self.icount {
            // 2⁰ ns an instruction.
            command.args(["-icount", "shift=0,sleep=off"]);
        }
        command
    }
}

/// The kernel's console while it grows.
#[derive(Debug)]
struct Console {
    path: PathBuf,
    read: u64,
    next_look: Instant,
    /// Up to when, by the kernel's clock, lockups are on purpose.
    on_purpose_until: Duration,
    /// The line, and when it was seen.
    last_words: Option<String>,
    died: Option<Instant>,
}

impl Console {
    fn new(path: PathBuf) -> Self {
        Self {
            path,
            read: 0,
            next_look: Instant::now(),
            on_purpose_until: Duration::ZERO,
            last_words: None,
            died: None,
        }
    }

    /// Looks about once a second.
    fn is_alive(&mut self) -> bool {
        if Instant::now() >= self.next_look {
            self.next_look = Instant::now() + Duration::from_secs(1);
            self.read();
        }
        self.died.is_none_or(|died| died.elapsed() < MOURNING)
    }

    /// Reads whole lines that are new; an unreadable file has none.
    fn read(&mut self) {
        let mut text = Vec::new();
        let read = File::open(&self.path).and_then(|mut file| {
            file.seek(SeekFrom::Start(self.read))?;
            file.read_to_end(&mut text)
        });
        if read.is_err() {
            return;
        }
        let whole = text
            .iter()
            .rposition(|byte| *byte == b'\n')
            .map_or(0, |end| end + 1);
        self.read += whole as u64;
        if self.last_words.is_none() {
            let text = String::from_utf8_lossy(&text[..whole]);
            self.last_words = find_last_words(&text, &mut self.on_purpose_until);
            self.died = self.last_words.as_ref().map(|_| Instant::now());
        }
    }
}

fn find_last_words(text: &str, on_purpose_until: &mut Duration) -> Option<String> {
    let mut is_last = |line: &str| {
        let at = stamp(line).unwrap_or_default();
        if line.contains(ON_PURPOSE) {
            *on_purpose_until = Duration::MAX;
        } else if line.contains(OVER) {
            *on_purpose_until = at + AFTERWARDS;
        }
        LAST_WORDS.iter().any(|words| line.contains(words))
            && !(at <= *on_purpose_until && line.contains(OF_A_LOCKUP))
    };
    text.lines()
        .find(|line| is_last(line))
        .map(|line| line.trim().to_owned())
}

/// When the kernel said this, since its start.
fn stamp(line: &str) -> Option<Duration> {
    let (seconds, _) = line.trim_start().strip_prefix('[')?.split_once(']')?;
    Duration::try_from_secs_f64(seconds.trim().parse().ok()?).ok()
}

/// For a message: QEMU says why it does not start in its first line.
fn first_line(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    match text.lines().next() {
        Some(line) => format!(": {line}"),
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_words_are_one_line() {
        let text =
            "[ 1.0] all is well\r\n[ 2.0] Kernel panic - not syncing: why\r\n[ 2.1] more\r\n";
        let found = find_last_words(text, &mut Duration::default());
        assert_eq!(
            found.as_deref(),
            Some("[ 2.0] Kernel panic - not syncing: why")
        );
        assert_eq!(
            find_last_words("watchdog: fine\n", &mut Duration::default()),
            None
        );
    }

    #[test]
    fn a_lockup_on_purpose_is_none_of_them() {
        let told = |at: &str| {
            format!("[ {at}] watchdog: BUG: soft lockup - CPU#1 stuck for 22s! [lab-spinner:7]\n")
        };
        let begins = format!("[ 0.5] {ON_PURPOSE}\n");
        let ends = format!("[ 24.0] {OVER}\n");
        let mut until = Duration::default();
        let mut found = |text: &str| find_last_words(text, &mut until);
        assert_eq!(found(&format!("{begins}{}", told("23.0"))), None);
        assert_eq!(found(&format!("{}{ends}", told("23.9"))), None);
        assert_eq!(found(&told("24.1")), None);
        let later = told("25.1");
        assert_eq!(found(&later).as_deref(), Some(later.trim()));
    }
}
