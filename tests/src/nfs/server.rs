//! The thread that answers, and is mute once it is told to be.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream},
    os::fd::AsFd as _,
    path::Path,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::{
    errno::Errno,
    mount::{MsFlags, mount},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::eventfd::{EfdFlags, EventFd},
};

use super::{protocol, xdr::take_record};
use crate::task::Task;

/// Comm of the thread that serves.
const COMM: &str = "lab-nfs";

/// What it is mounted from.
const EXPORT: &str = "127.0.0.1:/export";

/// A client that takes no bytes for so long is given up.
const SEND: Duration = Duration::from_secs(5);

/// The server, and its thread.
pub(crate) struct Server {
    shared: Arc<Shared>,
    task: Task,
    thread: JoinHandle<()>,
    port: u16,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    wake: EventFd,
}

struct State {
    /// What is asked of files is not answered.
    is_mute: bool,
    /// After this moment it is not mute any more, whatever the lab does.
    expires: Instant,
    /// What has been asked and not answered.
    kept: usize,
    is_over: bool,
}

/// A connection of a client.
struct Client {
    stream: TcpStream,
    received: Vec<u8>,
    /// Answers that it has not got.
    kept: Vec<Vec<u8>>,
}

impl Server {
    /// Starts to serve, on a port of its own. It will not be mute for longer than `max_delay`
    /// from now, see also [`Server::limit`].
    pub(crate) fn start(max_delay: Duration) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .context("cannot listen on the loopback interface: is it up?")?;
        let port = listener.local_addr()?.port();
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                is_mute: false,
                expires: Instant::now() + max_delay,
                kept: 0,
                is_over: false,
            }),
            changed: Condvar::new(),
            wake: EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
                .context("cannot make an eventfd")?,
        });
        let (report, reported) = mpsc::channel();
        let serving = Arc::clone(&shared);
        let thread = thread::Builder::new()
            .name(COMM.into())
            .spawn(move || {
                // The receiver waits for just this.
                let _ = report.send(Task::current());
                if let Err(error) = serving.serve(&listener) {
                    eprintln!("stall-lab: the NFS server ends: {error:#}");
                }
            })
            .context("cannot start the NFS server thread")?;
        let task = reported
            .recv()
            .context("the NFS server thread ended before it told its tid")?;
        Ok(Self {
            shared,
            task,
            thread,
            port,
        })
    }

    /// Mounts it, so that its attributes are asked for when somebody wants them fresh, and
    /// only then. No other server of the host takes part: neither a port mapper nor one of
    /// locks.
    pub(crate) fn mount(&self, at: &Path) -> Result<()> {
        let port = self.port;
        let options = format!(
            "vers=3,proto=tcp,mountproto=tcp,mountvers=3,port={port},mountport={port},\
             addr=127.0.0.1,mountaddr=127.0.0.1,nolock,noacl,hard,actimeo=600"
        );
        mount(
            Some(EXPORT),
            at,
            Some("nfs"),
            MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOATIME,
            Some(options.as_str()),
        )
        .with_context(|| format!("cannot mount {EXPORT} on {}", at.display()))
    }

    /// The thread that serves.
    pub(crate) fn task(&self) -> Task {
        self.task
    }

    /// From now on it hears, and says nothing.
    pub(crate) fn be_mute(&self) {
        self.shared.lock().is_mute = true;
    }

    /// Waits until so many calls have not been answered.
    pub(crate) fn wait_kept(&self, count: usize, timeout: Duration) -> Result<()> {
        let (state, outcome) = self
            .shared
            .changed
            .wait_timeout_while(self.shared.lock(), timeout, |state| state.kept < count)
            .unwrap_or_else(PoisonError::into_inner);
        if outcome.timed_out() {
            bail!("{} of {count} calls came within {timeout:?}", state.kept);
        }
        Ok(())
    }

    /// Sets anew how long it may be mute, counted from now.
    pub(crate) fn limit(&self, max_delay: Duration) {
        self.shared.lock().expires = Instant::now() + max_delay;
        self.shared.wake();
    }

    /// Ends it: nothing is mounted any more.
    pub(crate) fn end(&self) {
        self.shared.lock().is_over = true;
        self.shared.wake();
    }

    /// The thread has ended.
    pub(crate) fn has_ended(&self) -> bool {
        self.thread.is_finished()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        // Full: it is awake.
        let _ = self.wake.write(1);
    }

    fn serve(&self, listener: &TcpListener) -> Result<()> {
        let mut clients: Vec<Client> = Vec::new();
        loop {
            let left = {
                let mut state = self.lock();
                if state.is_over {
                    return Ok(());
                }
                let left = state.expires.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    state.is_mute = false;
                }
                if !state.is_mute {
                    state.kept = 0;
                }
                state.is_mute.then_some(left)
            };
            if left.is_none() {
                clients.retain_mut(|client| client.send_kept().is_ok());
            }
            // A bit later than that: what is left then is nothing.
            let timeout = left.map_or(PollTimeout::NONE, |left| {
                PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX)
            });
            let is_ready: Vec<bool> = {
                let others = [self.wake.as_fd(), listener.as_fd()];
                let streams = clients.iter().map(|client| client.stream.as_fd());
                let mut fds: Vec<PollFd<'_>> = (others.into_iter().chain(streams))
                    .map(|fd| PollFd::new(fd, PollFlags::POLLIN))
                    .collect();
                match poll(&mut fds, timeout) {
                    Ok(_) | Err(Errno::EINTR) => {}
                    Err(error) => return Err(error).context("cannot wait for clients"),
                }
                fds.iter().map(|fd| fd.any().unwrap_or(false)).collect()
            };
            if is_ready[0] {
                let _ = self.wake.read();
            }
            let mut are_ready = is_ready[2..].iter();
            clients.retain_mut(|client| {
                let is_ready = are_ready.next().is_some_and(|&ready| ready);
                !is_ready || self.hear(client).is_some()
            });
            if is_ready[1] {
                let (stream, _) = listener.accept().context("cannot accept a client")?;
                stream.set_write_timeout(Some(SEND))?;
                clients.push(Client {
                    stream,
                    received: Vec::new(),
                    kept: Vec::new(),
                });
            }
        }
    }

    /// Takes what a client has sent; `None` if it is gone.
    fn hear(&self, client: &mut Client) -> Option<()> {
        let mut bytes = [0; 16 << 10];
        let size = client.stream.read(&mut bytes).ok()?;
        client.received.extend(bytes.get(..size)?);
        if size == 0 {
            return None;
        }
        while let Some(call) = take_record(&mut client.received) {
            let answer = protocol::answer(&call)?;
            let mut state = self.lock();
            if answer.of_files && state.is_mute {
                state.kept += 1;
                client.kept.push(answer.record);
                self.changed.notify_all();
            } else {
                drop(state);
                client.stream.write_all(&answer.record).ok()?;
            }
        }
        Some(())
    }
}

impl Client {
    fn send_kept(&mut self) -> std::io::Result<()> {
        for record in self.kept.drain(..) {
            self.stream.write_all(&record)?;
        }
        Ok(())
    }
}
