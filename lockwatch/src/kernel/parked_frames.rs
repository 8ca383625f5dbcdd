//! Calls in which a thread waits for user space or for a timer: a daemon's thread that is
//! in one has seldom a request to work on, but it may (an answer that comes by a socket, a
//! hand-over by a condition variable).
//!
//! Sources: kernel/futex, fs/select.c, fs/eventpoll.c, fs/eventfd.c, fs/signalfd.c,
//! fs/timerfd.c, fs/pipe.c, kernel/signal.c, kernel/exit.c, kernel/time, net/core,
//! net/unix/af_unix.c and net/ipv4 of 5.10 to 6.18. What is missing here makes a thread count
//! as one that may serve: when in doubt, leave it out. `io_cqring_wait` is left out because
//! what it waits for can be anything, requests of FUSE over io_uring (6.14+) among it.

/// By the stem of the innermost function outside of the scheduler.
const PARKED: &[&str] = &[
    // futex(2)
    "futex_wait",
    "__futex_wait",
    "futex_wait_queue",
    "futex_wait_queue_me",
    "futex_do_wait",
    "futex_wait_multiple",
    // poll(2), select(2), epoll_wait(2)
    "poll_schedule_timeout",
    "do_poll",
    "do_sys_poll",
    "do_select",
    "core_sys_select",
    "ep_poll",
    "do_epoll_wait",
    // nanosleep(2)
    "do_nanosleep",
    "hrtimer_nanosleep",
    "common_nsleep",
    // Signals
    "do_sigtimedwait",
    "sigsuspend",
    "signalfd_read",
    "signalfd_read_iter",
    "signalfd_dequeue",
    "do_pause",
    "__do_sys_pause",
    // wait4(2), waitid(2)
    "do_wait",
    "kernel_wait4",
    "kernel_waitid",
    // Pipes, eventfd, timerfd, inotify, message queues
    "pipe_read",
    "anon_pipe_read",
    "fifo_open",
    "wait_for_partner",
    "eventfd_read",
    "timerfd_read",
    "timerfd_read_iter",
    "inotify_read",
    "do_msgrcv",
    "do_mq_timedreceive",
    // Sockets
    "__skb_wait_for_more_packets",
    "sk_wait_data",
    "unix_stream_data_wait",
    "unix_stream_read_generic",
    "unix_wait_for_peer",
    "inet_csk_accept",
    "inet_csk_wait_for_connect",
    // Terminals
    "n_tty_read",
    "wait_woken",
];

/// Functions that sleep for others, and do not tell what for.
const SLEEPERS: &[&str] = &[
    "schedule_hrtimeout_range",
    "schedule_hrtimeout_range_clock",
    "schedule_timeout",
    "schedule_timeout_interruptible",
];

/// Whether a thread that is asleep, and that any signal would wake, waits for user space or
/// a timer: by the stems of its functions, innermost first.
pub fn is_parked(functions: &[&str]) -> bool {
    functions
        .iter()
        .find(|function| !SLEEPERS.contains(function))
        .is_some_and(|function| PARKED.contains(function))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_innermost_caller_of_the_scheduler_decides() {
        assert!(is_parked(&["futex_do_wait", "__futex_wait"]));
        assert!(is_parked(&["schedule_timeout", "wait_woken", "n_tty_read"]));
        assert!(is_parked(&["schedule_hrtimeout_range", "ep_poll"]));
        assert!(!is_parked(&["io_cqring_wait", "__do_sys_io_uring_enter"]));
        assert!(!is_parked(&["folio_wait_bit_common", "pipe_read"]));
        assert!(!is_parked(&["fuse_dev_do_read", "fuse_dev_read"]));
        assert!(!is_parked(&[]));
    }
}
