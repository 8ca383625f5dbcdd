//! The kernel's log: what its own detectors said, from /dev/kmsg.
//!
//! Each read returns one record, formatted for this reader alone: a full ring of 256 KiB has
//! some 3,000. So the ring is read once, when everything is loaded, and afterwards what is new.

use std::{
    collections::VecDeque,
    fs::File,
    io::{self, Read},
    os::unix::fs::OpenOptionsExt as _,
    time::{Duration, Instant},
};

use crate::{
    kernel::{messages, watchdogs},
    kernel_log::{KernelDetectors, KernelLog, Message, Said},
};

const DEVICE: &str = "/dev/kmsg";

/// More messages than this are not kept: the newest count.
const KEPT: usize = 256;

/// Longer than any record: `CONSOLE_EXT_LOG_MAX` up to 6.3, `PRINTK_MESSAGE_MAX` (2,048)
/// after that (kernel/printk/).
const RECORD_MAX: usize = 8192;

/// A log without end must not keep a survey from its end.
const TIME: Duration = Duration::from_millis(100);

/// Follows the kernel's log, without ever waiting for it.
#[derive(Debug)]
pub struct KernelLogReader<D = File> {
    source: Source<D>,
    /// As they were set when the log was opened.
    detectors: KernelDetectors,
    /// Oldest first.
    messages: VecDeque<Logged>,
    /// Records were overwritten before they were read.
    has_lost: bool,
    /// The last reading did not come to the end of the log.
    is_behind: bool,
}

#[derive(Debug)]
enum Source<D> {
    Open(D),
    /// Why it cannot be read.
    Closed(String),
}

/// A message with the time that the log gives it.
#[derive(Debug)]
struct Logged {
    time_us: u64,
    said: Said,
}

impl KernelLogReader {
    /// Opens the log and reads what the ring still has. Where that is refused, the log that
    /// this gives says so.
    pub fn open() -> Self {
        let opened = File::options()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(DEVICE);
        match opened {
            Ok(device) => Self::over(device),
            Err(error) => Self {
                source: Source::Closed(refusal(&error)),
                detectors: watchdogs::detectors(),
                messages: VecDeque::new(),
                has_lost: false,
                is_behind: false,
            },
        }
    }
}

impl<D: Read> KernelLogReader<D> {
    /// Over something that gives a record a read, as the device does.
    fn over(device: D) -> Self {
        let mut log = Self {
            source: Source::Open(device),
            detectors: watchdogs::detectors(),
            messages: VecDeque::new(),
            has_lost: false,
            is_behind: false,
        };
        log.read_on();
        log
    }

    /// What the log says by now. `offset_ns`, added to the scheduler's clock, gives
    /// `CLOCK_MONOTONIC` as both are now: the log has that clock too (`local_clock`), in whole
    /// microseconds. What was printed long ago may be placed wrong by 1/2000 of the time since:
    /// `CLOCK_MONOTONIC` is disciplined, the other is not.
    pub fn log(&mut self, offset_ns: Option<i64>) -> KernelLog {
        self.read_on();
        let unread = match (&self.source, offset_ns) {
            (Source::Closed(why), _) => Some(why.clone()),
            (_, None) => Some("its clock could not be compared with ours".to_owned()),
            _ if self.is_behind => Some("the log is longer than could be read in time".to_owned()),
            _ if self.has_lost => Some("some of it was overwritten before it was read".to_owned()),
            _ => None,
        };
        let messages = offset_ns.map_or_else(Vec::new, |offset_ns| {
            let placed = |logged: &Logged| Message {
                at_ns: (logged.time_us.saturating_mul(1_000)).saturating_add_signed(offset_ns),
                said: logged.said.clone(),
            };
            self.messages.iter().map(placed).collect()
        });
        KernelLog {
            messages,
            detectors: Some(watchdogs::with_hung_task_now(self.detectors)),
            unread,
        }
    }

    /// Reads to the end of the log.
    fn read_on(&mut self) {
        let Source::Open(device) = &mut self.source else {
            return;
        };
        let began = Instant::now();
        let mut buffer = [0; RECORD_MAX];
        self.is_behind = false;
        while began.elapsed() < TIME {
            match device.read(&mut buffer) {
                Ok(0) => return,
                Ok(length) => {
                    let logged = logged(&buffer[..length]);
                    self.messages.extend(logged);
                    if self.messages.len() > KEPT {
                        self.messages.pop_front();
                    }
                }
                // Nothing more.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // The ring has overwritten what would have come next: the next read begins
                // with the oldest that is left.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => self.has_lost = true,
                // A record longer than any: it is passed over (`devkmsg_read`).
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    self.source = Source::Closed(format!("{DEVICE} cannot be read: {error}"));
                    return;
                }
            }
        }
        self.is_behind = true;
    }
}

fn logged(bytes: &[u8]) -> Option<Logged> {
    let record = messages::record(bytes)?;
    Some(Logged {
        time_us: record.time_us,
        said: messages::said(record.text)?,
    })
}

/// Why the device cannot be opened, with the remedy.
fn refusal(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => {
            format!("there is no {DEVICE} here: mount devtmpfs, or run on the host")
        }
        // `check_syslog_permissions`, kernel/printk/printk.c; and the device's own mode.
        io::ErrorKind::PermissionDenied => format!(
            "{DEVICE} may not be read: it takes CAP_SYSLOG where kernel.dmesg_restrict is 1, and the device's own permission"
        ),
        _ => format!("{DEVICE} cannot be opened: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        kernel_log::LoggedTask,
        task::{Nanos, Tid},
    };

    /// Gives these records, one a read; then nothing more, as a device that does not block.
    struct Records(VecDeque<io::Result<String>>);

    impl Records {
        fn of(records: impl IntoIterator<Item = io::Result<String>>) -> Self {
            Self(records.into_iter().collect())
        }
    }

    impl Read for Records {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let Some(record) = self.0.pop_front() else {
                return Err(io::ErrorKind::WouldBlock.into());
            };
            let record = record?;
            buffer[..record.len()].copy_from_slice(record.as_bytes());
            Ok(record.len())
        }
    }

    /// A record of a task that hung, printed so many seconds after the log's clock began.
    fn hung(tid: u32, seconds: u64) -> io::Result<String> {
        Ok(format!(
            "3,{tid},{seconds}000000,-;INFO: task dd:{tid} blocked for more than 120 seconds.\n"
        ))
    }

    fn said(tid: u32, at_ns: u64) -> Message {
        Message {
            at_ns,
            said: Said::HungTask {
                task: LoggedTask {
                    tid: Tid(tid),
                    comm: "dd".to_owned(),
                },
                io_wait: false,
                longer_than: Nanos(120_000_000_000),
            },
        }
    }

    #[test]
    fn what_comes_later_is_read_later() {
        let mut log = KernelLogReader::over(Records::of([
            Ok("6,1,1000000,-;something else\n".to_owned()),
            hung(812, 130),
            Ok("11,2,131000000,-;INFO: task dd:7 blocked for more than 120 seconds.\n".to_owned()),
        ]));
        let first = log.log(Some(-500));
        assert_eq!(first.messages, [said(812, 129_999_999_500)]);
        assert_eq!(first.unread, None);
        match &mut log.source {
            Source::Open(device) => device.0.push_back(hung(813, 250)),
            Source::Closed(why) => panic!("{why}"),
        }
        let second = log.log(Some(1));
        let expected = [said(812, 130_000_000_001), said(813, 250_000_000_001)];
        assert_eq!(second.messages, expected);
    }

    #[test]
    fn an_overrun_is_passed_and_told() {
        let mut log = KernelLogReader::over(Records::of([
            hung(1, 10),
            Err(io::ErrorKind::BrokenPipe.into()),
            Err(io::ErrorKind::InvalidInput.into()),
            Err(io::ErrorKind::Interrupted.into()),
            hung(2, 20),
        ]));
        let log = log.log(Some(0));
        assert_eq!(log.messages.len(), 2);
        let unread = log.unread.unwrap();
        assert!(unread.contains("overwritten"), "{unread}");
    }

    #[test]
    fn the_newest_are_kept() {
        let records = (0..1_000).map(|number| hung(number, u64::from(number)));
        let log = KernelLogReader::over(Records::of(records)).log(Some(0));
        assert_eq!(log.messages.len(), KEPT);
        assert_eq!(log.messages.last(), Some(&said(999, 999_000_000_000)));
    }

    #[test]
    fn without_its_clock_nothing_is_placed() {
        let log = KernelLogReader::over(Records::of([hung(1, 10)])).log(None);
        assert_eq!(log.messages, []);
        assert!(log.unread.is_some());
    }

    #[test]
    fn a_device_that_fails_says_why() {
        let failed = Err(io::ErrorKind::Unsupported.into());
        let mut log = KernelLogReader::over(Records::of([hung(1, 10), failed]));
        let log = log.log(Some(0));
        assert_eq!(log.messages.len(), 1);
        assert!(log.unread.unwrap().contains("/dev/kmsg cannot be read"));
    }

    #[test]
    fn a_refusal_names_the_remedy() {
        let refused = refusal(&io::ErrorKind::PermissionDenied.into());
        assert!(refused.contains("CAP_SYSLOG"), "{refused}");
    }
}
