//! The server thread: mounts the file system, answers, and keeps late answers. Others may
//! join it.

use std::{
    collections::VecDeque,
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::Path,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc},
    thread::{self, JoinHandle, Scope},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::{
    errno::Errno,
    fcntl::{OFlag, open},
    libc,
    mount::{MsFlags, mount},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sched::{CloneFlags, unshare},
    sys::{
        eventfd::{EfdFlags, EventFd},
        stat::Mode,
    },
    unistd::{read, write},
};

use super::{
    protocol::{REQUEST_BUFFER, Request},
    tree::{Answer, Tree},
    writeback,
};
use crate::{device::Device, inherit, task::Task};

/// How it is mounted.
pub(crate) const MOUNT_FLAGS: MsFlags = MsFlags::MS_NOSUID
    .union(MsFlags::MS_NODEV)
    .union(MsFlags::MS_NOATIME);

/// What the file system is mounted from.
#[derive(Clone, Copy)]
pub(crate) enum Source {
    /// Nothing, as most FUSE file systems (`fuse`).
    Nothing,
    /// A block device (`fuseblk`).
    Device,
}

/// FUSE never reads the device it is mounted from (`fuseblk`).
const DEVICE_BYTES: usize = 64 << 10;

/// How long it may take to start a thread that joins the server.
const RECRUITING: Duration = Duration::from_secs(5);

/// Something that the thread that serves does itself.
pub(crate) type Errand = Box<dyn FnOnce() + Send>;

/// Joins a new `/dev/fuse` to the connection of another (include/uapi/linux/fuse.h).
const FUSE_DEV_IOC_CLONE: libc::Ioctl = 0x8004_e500_u32 as libc::Ioctl;

/// What a thread does that joins the one that serves.
pub(crate) enum Duty {
    /// Waits in `read` for requests, and answers them; late answers are given by the first
    /// thread.
    Serve,
    /// Something that takes no request.
    Other(Errand),
}

/// A thread that is to be started, and who wants to know of it.
type Recruit = (String, Duty, mpsc::Sender<Result<Task>>);

/// A mounted file system and the threads that serve it: one, and those that joined it.
pub(crate) struct Server {
    shared: Arc<Shared>,
    task: Task,
    thread: JoinHandle<()>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    wake: EventFd,
}

struct State {
    /// Late answers, in the order of their requests.
    parked: VecDeque<Parked>,
    /// Labels whose requests are late no more.
    released: Vec<&'static str>,
    /// Label of the request that the server has an errand for, while it has.
    out: Option<&'static str>,
    /// Threads that are to join the server.
    recruits: Vec<Recruit>,
    /// What it has been sent for, by label.
    errands: Vec<(&'static str, Errand)>,
    /// After this moment nothing is late any more, whatever the lab does.
    expires: Instant,
}

/// A late answer.
struct Parked {
    label: &'static str,
    answer: Vec<u8>,
    /// The request was read from it: the kernel takes no answer from another.
    device: Arc<OwnedFd>,
}

impl Server {
    /// Mounts `tree` on the directory `at`, served by a thread named `comm`. No answer
    /// will be later than `max_delay` from now, see also [`Server::limit`], unless an errand
    /// takes longer.
    pub(crate) fn start(
        comm: &str,
        at: &Path,
        source: Source,
        tree: Tree,
        max_delay: Duration,
    ) -> Result<Self> {
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                parked: VecDeque::new(),
                released: Vec::new(),
                out: None,
                recruits: Vec::new(),
                errands: Vec::new(),
                expires: Instant::now() + max_delay,
            }),
            changed: Condvar::new(),
            wake: EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
                .context("cannot make an eventfd")?,
        });
        let (mounted, outcome) = mpsc::channel();
        let thread = {
            let (shared, at) = (Arc::clone(&shared), at.to_owned());
            thread::Builder::new()
                .name(comm.into())
                .spawn(move || match mount_privately(&at, source, &shared.wake) {
                    Ok(device) => {
                        // Nobody waits for the outcome once the lab gave up.
                        let _ = mounted.send(Ok(Task::current()));
                        let (device, tree) = (Arc::new(device), Mutex::new(tree));
                        thread::scope(|scope| shared.serve(scope, &device, &tree));
                    }
                    Err(error) => {
                        let _ = mounted.send(Err(error));
                    }
                })
                .context("cannot start the FUSE server thread")?
        };
        let task = match outcome.recv() {
            Ok(outcome) => outcome?,
            Err(_) => bail!("the FUSE server thread ended before it mounted anything"),
        };
        if matches!(source, Source::Nothing) {
            writeback::ensure_share(at)?;
        }
        Ok(Self {
            shared,
            task,
            thread,
        })
    }

    /// Starts one more thread of this daemon, which has its device among its open files. The
    /// server must be free to do so. It ends with the file system at the latest, unless its
    /// duty keeps it.
    pub(crate) fn enlist(&self, comm: &str, duty: Duty) -> Result<Task> {
        let (report, reported) = mpsc::channel();
        self.shared
            .lock()
            .recruits
            .push((comm.to_owned(), duty, report));
        self.shared.wake();
        reported
            .recv_timeout(RECRUITING)
            .with_context(|| format!("the FUSE server does not start thread {comm}"))?
    }

    /// The thread that served first.
    pub(crate) fn task(&self) -> Task {
        self.task
    }

    /// Tells the server what to do before it answers the request with this label.
    pub(crate) fn send(&self, label: &'static str, errand: impl FnOnce() + Send + 'static) {
        self.shared.lock().errands.push((label, Box::new(errand)));
        self.shared.changed.notify_all();
    }

    /// Waits until a request with this label is kept waiting, by a late answer or by an
    /// errand.
    pub(crate) fn wait_parked(&self, label: &str, timeout: Duration) -> Result<()> {
        let (state, outcome) = self
            .shared
            .changed
            .wait_timeout_while(self.shared.lock(), timeout, |state| {
                state.out != Some(label) && !state.parked.iter().any(|one| one.label == label)
            })
            .unwrap_or_else(PoisonError::into_inner);
        drop(state);
        if outcome.timed_out() {
            bail!("no FUSE request came for the late answer `{label}` within {timeout:?}");
        }
        Ok(())
    }

    /// Answers the requests with this label, now and later.
    pub(crate) fn release(&self, label: &'static str) {
        self.shared.lock().released.push(label);
        self.shared.wake();
    }

    /// Sets anew how late an answer may be, counted from now.
    pub(crate) fn limit(&self, max_delay: Duration) {
        self.shared.lock().expires = Instant::now() + max_delay;
        self.shared.wake();
        self.shared.changed.notify_all();
    }

    /// The thread has seen the unmount.
    pub(crate) fn has_ended(&self) -> bool {
        self.thread.is_finished()
    }
}

/// Opens a FUSE connection that belongs to the calling thread alone.
///
/// The thread leaves the shared table of file descriptors first. So the death
/// of this one thread, which never waits for a lock of the lab, closes the
/// connection and thereby ends every wait for it: a process killed in
/// mid-stall frees itself.
fn mount_privately(at: &Path, source: Source, wake: &EventFd) -> Result<OwnedFd> {
    unshare(CloneFlags::CLONE_FILES).context("cannot get a private table of file descriptors")?;
    // SAFETY: the table belongs to this thread alone, which so far uses no descriptor but
    // `wake`.
    unsafe { inherit::keep_only(wake.as_raw_fd()) }
        .context("cannot close the lab's descriptors in the FUSE server thread")?;
    let device = open(
        "/dev/fuse",
        OFlag::O_RDWR | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC,
        Mode::empty(),
    )
    .context(
        "cannot open /dev/fuse: the lab needs root and a kernel with FUSE (`modprobe fuse`)",
    )?;
    let options = format!(
        "fd={},rootmode=40700,user_id=0,group_id=0",
        device.as_raw_fd()
    );
    let block = match source {
        Source::Nothing => None,
        Source::Device => Some(Device::attach(&[0; DEVICE_BYTES])?),
    };
    let (from, kind) = match &block {
        None => ("stall-lab", "fuse"),
        Some(device) => (&*device.path, "fuseblk"),
    };
    mount(
        Some(from),
        at,
        Some(kind),
        MOUNT_FLAGS,
        Some(options.as_str()),
    )
    .with_context(|| {
        format!(
            "cannot mount {kind} on {}: the lab needs CAP_SYS_ADMIN",
            at.display()
        )
    })?;
    Ok(device)
}

/// Another device of the same connection, whose reads wait.
fn joined(device: &OwnedFd) -> Result<OwnedFd> {
    let other = open("/dev/fuse", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty())
        .context("cannot open /dev/fuse a second time")?;
    let of = device.as_raw_fd();
    // SAFETY: both descriptors are open; the kernel reads one u32 there.
    let outcome = unsafe { libc::ioctl(other.as_raw_fd(), FUSE_DEV_IOC_CLONE, &raw const of) };
    Errno::result(outcome).context("cannot join a second /dev/fuse to a connection")?;
    Ok(other)
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        // It fails only if the counter is full: then the server is awake.
        let _ = self.wake.write(1);
    }

    fn serve<'scope>(
        &'scope self,
        scope: &'scope Scope<'scope, '_>,
        device: &Arc<OwnedFd>,
        tree: &'scope Mutex<Tree>,
    ) {
        let mut buffer = vec![0; REQUEST_BUFFER];
        loop {
            for parked in self.due() {
                send(&parked.device, &parked.answer);
            }
            let recruits = std::mem::take(&mut self.lock().recruits);
            for (comm, duty, report) in recruits {
                self.start(scope, comm, duty, &report, device, tree);
            }
            let mut fds = [
                PollFd::new(device.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.wake.as_fd(), PollFlags::POLLIN),
            ];
            match poll(&mut fds, self.until_expiry()) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(_) => return,
            }
            // EAGAIN: the wake-up was for a request or for the timer.
            let _ = self.wake.read();
            if self.take_requests(device, tree, &mut buffer) != Errno::EAGAIN {
                return;
            }
        }
    }

    /// Starts a thread that shares the table of file descriptors with the calling one.
    fn start<'scope>(
        &'scope self,
        scope: &'scope Scope<'scope, '_>,
        comm: String,
        duty: Duty,
        report: &mpsc::Sender<Result<Task>>,
        device: &OwnedFd,
        tree: &'scope Mutex<Tree>,
    ) {
        let work: Box<dyn FnOnce() + Send + 'scope> = match duty {
            Duty::Other(errand) => errand,
            Duty::Serve => match joined(device) {
                Ok(device) => {
                    let device = Arc::new(device);
                    Box::new(move || {
                        self.take_requests(&device, tree, &mut vec![0; REQUEST_BUFFER]);
                    })
                }
                Err(error) => {
                    // Nobody waits for it once the lab gave up; so below.
                    let _ = report.send(Err(error));
                    return;
                }
            },
        };
        let told = report.clone();
        let started = thread::Builder::new()
            .name(comm)
            .spawn_scoped(scope, move || {
                let _ = told.send(Ok(Task::current()));
                work();
            });
        if let Err(error) = started {
            let _ = report.send(Err(error).context("cannot start a thread of the FUSE server"));
        }
    }

    /// Takes requests until the device has none, if it is one that does not wait, or until
    /// the end; returns why it stopped.
    fn take_requests(&self, device: &Arc<OwnedFd>, tree: &Mutex<Tree>, buffer: &mut [u8]) -> Errno {
        loop {
            match read(&**device, buffer) {
                Ok(size) => self.handle(device, tree, &buffer[..size]),
                // ENOENT: the request was taken back by its sender.
                Err(Errno::EINTR | Errno::ENOENT) => {}
                // ENODEV: unmounted or aborted.
                Err(error) => return error,
            }
        }
    }

    fn handle(&self, device: &Arc<OwnedFd>, tree: &Mutex<Tree>, bytes: &[u8]) {
        let Ok(request) = Request::decode(bytes) else {
            return;
        };
        let answer = {
            let mut tree = tree.lock().unwrap_or_else(PoisonError::into_inner);
            tree.answer(&request)
        };
        match answer {
            Answer::None => {}
            Answer::Now(answer) => send(device, &answer),
            Answer::Late(label, answer) => {
                self.lock().parked.push_back(Parked {
                    label,
                    answer,
                    device: Arc::clone(device),
                });
                self.changed.notify_all();
                // The first thread may have slept without a limit.
                self.wake();
            }
            Answer::AfterErrand(label, answer) => {
                if let Some(errand) = self.errand(label) {
                    errand();
                }
                self.lock().out = None;
                send(device, &answer);
            }
        }
    }

    /// Waits for what the server has to do for this label; `None` if nobody says so in time.
    fn errand(&self, label: &'static str) -> Option<Errand> {
        let mut state = self.lock();
        state.out = Some(label);
        self.changed.notify_all();
        loop {
            if let Some(at) = state.errands.iter().position(|(sent, _)| *sent == label) {
                return Some(state.errands.swap_remove(at).1);
            }
            let left = state.expires.checked_duration_since(Instant::now())?;
            let wait = self.changed.wait_timeout(state, left);
            state = wait.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Takes out the answers that need wait no longer.
    fn due(&self) -> VecDeque<Parked> {
        let mut state = self.lock();
        let expired = state.expires <= Instant::now();
        let State {
            parked, released, ..
        } = &mut *state;
        let (due, kept) = parked
            .drain(..)
            .partition(|one| expired || released.contains(&one.label));
        *parked = kept;
        due
    }

    fn until_expiry(&self) -> PollTimeout {
        let state = self.lock();
        if state.parked.is_empty() {
            return PollTimeout::NONE;
        }
        let left = state.expires.saturating_duration_since(Instant::now());
        // A round trip too many is better than one that rounds down to a spin.
        PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX)
    }
}

fn send(device: &OwnedFd, answer: &[u8]) {
    // ENOENT: the sender no longer waits. ENODEV: read() will see it too.
    if let Err(error) = write(device, answer)
        && !matches!(error, Errno::ENOENT | Errno::ENODEV)
    {
        eprintln!(
            "stall-lab: the kernel refused a FUSE answer: {}",
            io::Error::from(error)
        );
    }
}
