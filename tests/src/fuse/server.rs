//! The server thread: mounts the file system, answers, and keeps late answers.

use std::{
    collections::VecDeque,
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::Path,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::{
    errno::Errno,
    fcntl::{OFlag, open},
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

/// Something that the thread that serves does itself.
type Errand = Box<dyn FnOnce() + Send>;

/// A mounted file system and the one thread that serves it.
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
    parked: VecDeque<(&'static str, Vec<u8>)>,
    /// Labels whose requests are late no more.
    released: Vec<&'static str>,
    /// Label of the request that the server has an errand for, while it has.
    out: Option<&'static str>,
    /// What it has been sent for, by label.
    errands: Vec<(&'static str, Errand)>,
    /// After this moment nothing is late any more, whatever the lab does.
    expires: Instant,
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
                        shared.serve(&device, tree);
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

    /// The thread that serves.
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
                state.out != Some(label) && !state.parked.iter().any(|(one, _)| *one == label)
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

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        // It fails only if the counter is full: then the server is awake.
        let _ = self.wake.write(1);
    }

    fn serve(&self, device: &OwnedFd, mut tree: Tree) {
        let mut buffer = vec![0; REQUEST_BUFFER];
        loop {
            for answer in self.due() {
                send(device, &answer);
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
            loop {
                match read(device, &mut buffer) {
                    Ok(size) => self.handle(device, &mut tree, &buffer[..size]),
                    Err(Errno::EAGAIN) => break,
                    // ENOENT: the request was taken back by its sender.
                    Err(Errno::EINTR | Errno::ENOENT) => {}
                    // ENODEV: unmounted or aborted.
                    Err(_) => return,
                }
            }
        }
    }

    fn handle(&self, device: &OwnedFd, tree: &mut Tree, bytes: &[u8]) {
        let Ok(request) = Request::decode(bytes) else {
            return;
        };
        match tree.answer(&request) {
            Answer::None => {}
            Answer::Now(answer) => send(device, &answer),
            Answer::Late(label, answer) => {
                self.lock().parked.push_back((label, answer));
                self.changed.notify_all();
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
    fn due(&self) -> Vec<Vec<u8>> {
        let mut state = self.lock();
        let expired = state.expires <= Instant::now();
        let State {
            parked, released, ..
        } = &mut *state;
        let (due, kept) = parked
            .drain(..)
            .partition::<VecDeque<_>, _>(|(label, _)| expired || released.contains(label));
        *parked = kept;
        due.into_iter().map(|(_, answer)| answer).collect()
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
