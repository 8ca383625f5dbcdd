//! FUSE: where the kernel keeps which request a task waits for, and who reads requests.
//!
//! Sources: fs/fuse/fuse_i.h, dev.c, inode.c and control.c of 5.10, 6.1, 6.12 and 6.18;
//! members of 7.2 and 7.3 by their BTF, where a `fuse_chan` lies between a request and its
//! connection.

use std::ops::Range;

use super::{btf::Btf, stems::stem, symbols::Symbols};

/// The module that FUSE may be.
pub const MODULE: &str = "fuse";

/// Reads a request from a FUSE (or CUSE) device. The devices are told by it: the table of
/// their functions, `fuse_dev_operations`, is data, and kernels without `KALLSYMS_ALL` do
/// not name data.
const DEVICE_READ: &str = "fuse_dev_read";

/// Functions that sleep until a request is answered. Compilers put the first into its only
/// caller.
pub const ANSWER_WAITS: [&str; 4] = [
    "request_wait_answer",
    "__fuse_request_send",
    "__fuse_simple_request",
    "fuse_simple_request",
];

/// Functions in which a thread waits for the next request.
pub const NEXT_REQUEST_WAITS: [&str; 1] = ["fuse_dev_do_read"];

/// Low bits of a file's private word that are no address: `FUSE_DEV_SYNC_INIT` (6.18).
const DEVICE_FLAGS: u64 = 7;

/// Where things lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FuseLayout {
    /// `fuse_req`
    pub request: RequestLayout,
    /// `fuse_dev.fc`, `.chan` (7.2+)
    pub device_owner: u64,
    /// What devices and requests name instead of a connection and a mount (7.2+).
    pub channel: Option<ChannelLayout>,
    /// `fuse_mount.fc`
    pub mount_connection: usize,
    /// `fuse_mount.sb`: places where it may be, the first that fits is it.
    pub mount_super: [u64; 2],
    /// `fuse_conn.dev`
    pub number: Option<u64>,
    /// `fuse_conn.mounts`, `fuse_mount.fc_entry`
    pub mounts: Option<(u64, u64)>,
}

/// `struct fuse_chan`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChannelLayout {
    /// `fuse_chan.conn`
    pub connection: u64,
    /// `fuse_conn.chan`, which points back.
    pub of_connection: u64,
}

/// `struct fuse_req`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestLayout {
    /// `waitq.head`: the tasks that wait for the answer.
    pub waiters: usize,
    /// `flags`
    pub flags: usize,
    /// `fm`, `chan` (7.2+): places where it may be, the first that fits is it.
    pub owner: [usize; 2],
    /// `FR_PENDING`: not read by the daemon yet.
    pub pending: u64,
    /// `FR_FINISHED`: answered.
    pub finished: u64,
    /// Bytes to read of it.
    pub size: usize,
}

impl FuseLayout {
    /// From the types of the kernel and of its FUSE module. Where they do not show FUSE (the
    /// module of 5.10, which has no BTF), the layout of 5.10: whoever uses it checks each
    /// pointer by another that comes back to it.
    ///
    /// `None` if they show a FUSE that is not known.
    pub fn from_btf(btf: &Btf) -> Option<Self> {
        if btf.size_of("fuse_req").is_none() {
            return Some(Self::untyped(btf));
        }
        let at = |path: &str| btf.member(path).map(|member| member.offset as usize);
        let at64 = |path: &str| btf.member(path).map(|member| u64::from(member.offset));
        let flag = |name: &str| {
            let bit = btf.enumerator("fuse_req_flag", name)?;
            1u64.checked_shl(bit)
        };
        let channel = match at64("fuse_chan.conn") {
            Some(connection) => Some(ChannelLayout {
                connection,
                of_connection: at64("fuse_conn.chan")?,
            }),
            None => None,
        };
        let (owner, device_owner) = match channel {
            Some(_) => (at("fuse_req.chan")?, at64("fuse_dev.chan")?),
            None => (at("fuse_req.fm")?, at64("fuse_dev.fc")?),
        };
        Some(Self {
            request: RequestLayout {
                waiters: at("fuse_req.waitq.head")?,
                flags: at("fuse_req.flags")?,
                owner: [owner; 2],
                pending: flag("FR_PENDING")?,
                finished: flag("FR_FINISHED")?,
                size: usize::try_from(btf.size_of("fuse_req")?).ok()?,
            },
            device_owner,
            channel,
            mount_connection: at("fuse_mount.fc")?,
            mount_super: [at64("fuse_mount.sb")?; 2],
            number: at64("fuse_conn.dev"),
            mounts: at64("fuse_conn.mounts").zip(at64("fuse_mount.fc_entry")),
        })
    }

    /// As compiled from the source of 5.10 (fs/fuse/fuse_i.h). A request has a member more with
    /// `VIRTIO_FS`, a mount has one less in later versions: a count of its users. The number of a connection is also
    /// its super block's (fs/fuse/inode.c, `fuse_fill_super_common`).
    fn untyped(btf: &Btf) -> Self {
        let head = btf.member("wait_queue_head.head");
        let waiters = 112 + head.map_or(8, |head| head.offset as usize);
        Self {
            request: RequestLayout {
                waiters,
                flags: 48,
                owner: [144, 136],
                pending: 1 << 7,
                finished: 1 << 9,
                size: 152,
            },
            device_owner: 0,
            channel: None,
            mount_connection: 0,
            mount_super: [16, 8],
            number: None,
            mounts: None,
        }
    }
}

/// The address of a `fuse_dev`, of the private word of its file; `None` before it is
/// mounted.
pub const fn device(private: u64) -> Option<u64> {
    match private & !DEVICE_FLAGS {
        0 => None,
        device => Some(device),
    }
}

/// Where the function starts by which FUSE devices are told; `None` if FUSE is not there.
pub fn device_read(symbols: &Symbols) -> Option<u64> {
    let is_it = |start: &u64| {
        symbols
            .exact(*start)
            .is_some_and(|name| stem(name) == DEVICE_READ && !name.contains(".cold"))
    };
    let first = |ranges: Vec<Range<u64>>| ranges.into_iter().map(|range| range.start).find(is_it);
    // In the image or in a module.
    let in_image = symbols.ranges_in_image(&[&[DEVICE_READ]]).pop();
    in_image
        .and_then(first)
        .or_else(|| first(symbols.ranges_of(&[DEVICE_READ])))
}
