//! The FUSE wire format, version 7.31: the few messages that the lab needs.
//!
//! Source: `include/uapi/linux/fuse.h`. 7.31 is what Linux 5.4 spoke; newer
//! kernels speak it on request and keep the sizes below for it.

use anyhow::{Result, bail};
use nix::libc;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Size of the buffer a request is read into. The kernel refuses less than
/// 8 KiB, and less than its header plus `MAX_WRITE`.
pub(crate) const REQUEST_BUFFER: usize = 64 << 10;

/// Largest payload of a WRITE: one page is all the lab ever dirties.
const MAX_WRITE: u32 = 4096;

const MAJOR: u32 = 7;
const MINOR: u32 = 31;

/// Lookups and readdirs of one directory run side by side. Without it FUSE
/// adds a mutex per directory, which would be a second lock to wait for.
const PARALLEL_DIROPS: u32 = 1 << 18;

const FOPEN_DIRECT_IO: u32 = 1;

/// How long the kernel may believe a name or an attribute: longer than any
/// stall, so that path walks over known names ask nothing.
const VALID_SECS: u64 = 3600;

/// Requests that the lab answers; all others get `ENOSYS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    Lookup,
    Forget,
    Getattr,
    Setattr,
    Mkdir,
    Open,
    Read,
    Write,
    Statfs,
    Release,
    Flush,
    Init,
    Opendir,
    Readdir,
    Releasedir,
    Interrupt,
    BatchForget,
    Syncfs,
    Other,
}

impl Op {
    fn from_wire(opcode: u32) -> Self {
        match opcode {
            1 => Self::Lookup,
            2 => Self::Forget,
            3 => Self::Getattr,
            4 => Self::Setattr,
            9 => Self::Mkdir,
            14 => Self::Open,
            15 => Self::Read,
            16 => Self::Write,
            17 => Self::Statfs,
            18 => Self::Release,
            25 => Self::Flush,
            26 => Self::Init,
            27 => Self::Opendir,
            28 => Self::Readdir,
            29 => Self::Releasedir,
            36 => Self::Interrupt,
            42 => Self::BatchForget,
            50 => Self::Syncfs,
            _ => Self::Other,
        }
    }

    /// The kernel expects no answer to these.
    pub(crate) fn is_silent(self) -> bool {
        matches!(self, Self::Forget | Self::BatchForget | Self::Interrupt)
    }
}

#[derive(FromBytes, KnownLayout, Immutable)]
#[repr(C)]
struct InHeader {
    len: u32,
    opcode: u32,
    unique: u64,
    node: u64,
    uid: u32,
    gid: u32,
    pid: u32,
    extensions: u32,
}
const _: () = assert!(size_of::<InHeader>() == 40);

/// Body of READ, READDIR and WRITE.
#[derive(FromBytes, KnownLayout, Immutable)]
#[repr(C)]
struct RangeIn {
    handle: u64,
    offset: u64,
    size: u32,
    flags: u32,
    lock_owner: u64,
    open_flags: u32,
    padding: u32,
}
const _: () = assert!(size_of::<RangeIn>() == 40);

#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct OutHeader {
    len: u32,
    error: i32,
    unique: u64,
}
const _: () = assert!(size_of::<OutHeader>() == 16);

#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct InitOut {
    major: u32,
    minor: u32,
    max_readahead: u32,
    flags: u32,
    max_background: u16,
    congestion_threshold: u16,
    max_write: u32,
    time_gran: u32,
    max_pages: u16,
    map_alignment: u16,
    unused: [u32; 8],
}
const _: () = assert!(size_of::<InitOut>() == 64);

#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct Attr {
    ino: u64,
    size: u64,
    blocks: u64,
    times: [u64; 3],
    times_ns: [u32; 3],
    mode: u32,
    nlink: u32,
    uid: u32,
    gid: u32,
    rdev: u32,
    blksize: u32,
    flags: u32,
}
const _: () = assert!(size_of::<Attr>() == 88);

#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct AttrOut {
    valid_secs: u64,
    valid_ns: u32,
    dummy: u32,
    attr: Attr,
}
const _: () = assert!(size_of::<AttrOut>() == 104);

#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct EntryOut {
    node: u64,
    generation: u64,
    entry_valid_secs: u64,
    attr_valid_secs: u64,
    entry_valid_ns: u32,
    attr_valid_ns: u32,
    attr: Attr,
}
const _: () = assert!(size_of::<EntryOut>() == 128);

#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct OpenOut {
    handle: u64,
    flags: u32,
    padding: u32,
}
const _: () = assert!(size_of::<OpenOut>() == 16);

#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct WriteOut {
    size: u32,
    padding: u32,
}
const _: () = assert!(size_of::<WriteOut>() == 8);

#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct StatfsOut {
    counts: [u64; 5],
    block_size: u32,
    name_len: u32,
    fragment_size: u32,
    padding: u32,
    spare: [u32; 6],
}
const _: () = assert!(size_of::<StatfsOut>() == 80);

#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct DirentHeader {
    ino: u64,
    next: u64,
    name_len: u32,
    kind: u32,
}
const _: () = assert!(size_of::<DirentHeader>() == 24);

/// A decoded request.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) unique: u64,
    pub(crate) op: Op,
    pub(crate) node: u64,
    /// Name of LOOKUP and MKDIR.
    pub(crate) name: Option<String>,
    /// Offset of READ, WRITE and READDIR.
    pub(crate) offset: u64,
    /// Size of READ, WRITE and READDIR.
    pub(crate) size: u32,
    /// OPEN of a file with `O_DIRECT`.
    pub(crate) direct: bool,
}

impl Request {
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self> {
        let Ok((header, body)) = InHeader::read_from_prefix(bytes) else {
            bail!("a FUSE request of {} bytes has no header", bytes.len());
        };
        let op = Op::from_wire(header.opcode);
        let name = match op {
            Op::Lookup => Some(c_string(body)?),
            // struct fuse_mkdir_in {mode, umask} comes before the name.
            Op::Mkdir => Some(c_string(body.get(8..).unwrap_or_default())?),
            _ => None,
        };
        let (offset, size) = match op {
            Op::Read | Op::Write | Op::Readdir => {
                let Ok((range, _)) = RangeIn::read_from_prefix(body) else {
                    bail!("a FUSE {op:?} request has no offset and size");
                };
                (range.offset, range.size)
            }
            _ => (0, 0),
        };
        // struct fuse_open_in begins with the flags of open(2).
        let flags = body
            .first_chunk()
            .map_or(0, |word| i32::from_ne_bytes(*word));
        Ok(Self {
            unique: header.unique,
            op,
            node: header.node,
            name,
            offset,
            size,
            direct: op == Op::Open && flags & libc::O_DIRECT != 0,
        })
    }
}

fn c_string(bytes: &[u8]) -> Result<String> {
    let Some(end) = bytes.iter().position(|byte| *byte == 0) else {
        bail!("a FUSE request has a name without an end");
    };
    Ok(String::from_utf8_lossy(&bytes[..end]).into_owned())
}

/// What a node looks like to `stat`.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) ino: u64,
    pub(crate) is_dir: bool,
    pub(crate) size: u64,
    /// The kernel must ask for the attributes each time.
    pub(crate) volatile: bool,
}

impl Shape {
    fn attr(self) -> Attr {
        let mode = if self.is_dir {
            libc::S_IFDIR | 0o700
        } else {
            libc::S_IFREG | 0o600
        };
        Attr {
            ino: self.ino,
            size: self.size,
            blocks: self.size.div_ceil(512),
            times: [0; 3],
            times_ns: [0; 3],
            mode,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }

    fn attr_valid_secs(self) -> u64 {
        if self.volatile { 0 } else { VALID_SECS }
    }
}

/// An error instead of an answer.
pub(crate) fn error(unique: u64, errno: i32) -> Vec<u8> {
    message(unique, -errno, &[])
}

/// A successful answer without a body.
pub(crate) fn empty(unique: u64) -> Vec<u8> {
    message(unique, 0, &[])
}

/// A successful answer with raw bytes, for READ and READDIR.
pub(crate) fn data(unique: u64, bytes: &[u8]) -> Vec<u8> {
    message(unique, 0, bytes)
}

pub(crate) fn init(unique: u64) -> Vec<u8> {
    let body = InitOut {
        major: MAJOR,
        minor: MINOR,
        // No readahead: each page fault sends exactly one READ per attempt,
        // so the server knows which attempt it is answering.
        max_readahead: 0,
        flags: PARALLEL_DIROPS,
        max_background: 16,
        congestion_threshold: 12,
        max_write: MAX_WRITE,
        time_gran: 1,
        max_pages: 1,
        map_alignment: 0,
        unused: [0; 8],
    };
    message(unique, 0, body.as_bytes())
}

pub(crate) fn entry(unique: u64, shape: Shape) -> Vec<u8> {
    let body = EntryOut {
        node: shape.ino,
        generation: 0,
        entry_valid_secs: VALID_SECS,
        attr_valid_secs: shape.attr_valid_secs(),
        entry_valid_ns: 0,
        attr_valid_ns: 0,
        attr: shape.attr(),
    };
    message(unique, 0, body.as_bytes())
}

pub(crate) fn attr(unique: u64, shape: Shape) -> Vec<u8> {
    let body = AttrOut {
        valid_secs: shape.attr_valid_secs(),
        valid_ns: 0,
        dummy: 0,
        attr: shape.attr(),
    };
    message(unique, 0, body.as_bytes())
}

/// `direct`: reads and writes of the opened file are to bypass the page cache.
pub(crate) fn opened(unique: u64, direct: bool) -> Vec<u8> {
    let body = OpenOut {
        handle: 0,
        flags: if direct { FOPEN_DIRECT_IO } else { 0 },
        padding: 0,
    };
    message(unique, 0, body.as_bytes())
}

pub(crate) fn written(unique: u64, size: u32) -> Vec<u8> {
    let body = WriteOut { size, padding: 0 };
    message(unique, 0, body.as_bytes())
}

pub(crate) fn statfs(unique: u64) -> Vec<u8> {
    let body = StatfsOut {
        counts: [0; 5],
        block_size: 4096,
        name_len: 255,
        fragment_size: 4096,
        padding: 0,
        spare: [0; 6],
    };
    message(unique, 0, body.as_bytes())
}

/// Appends a directory entry if it fits into `room`; tells whether it did.
pub(crate) fn push_dirent(
    out: &mut Vec<u8>,
    room: usize,
    next: u64,
    ino: u64,
    name: &str,
    is_dir: bool,
) -> bool {
    let kind = if is_dir { libc::DT_DIR } else { libc::DT_REG };
    let header = DirentHeader {
        ino,
        next,
        name_len: name.len() as u32,
        kind: u32::from(kind),
    };
    let end = out.len() + (size_of::<DirentHeader>() + name.len()).next_multiple_of(8);
    if end > room {
        return false;
    }
    out.extend_from_slice(header.as_bytes());
    out.extend_from_slice(name.as_bytes());
    out.resize(end, 0);
    true
}

fn message(unique: u64, error: i32, body: &[u8]) -> Vec<u8> {
    let header = OutHeader {
        len: (size_of::<OutHeader>() + body.len()) as u32,
        error,
        unique,
    };
    [header.as_bytes(), body].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(opcode: u32, node: u64, body: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend_from_slice(&(40 + body.len() as u32).to_ne_bytes());
        bytes.extend_from_slice(&opcode.to_ne_bytes());
        bytes.extend_from_slice(&77_u64.to_ne_bytes());
        bytes.extend_from_slice(&node.to_ne_bytes());
        bytes.resize(40, 0);
        bytes.extend_from_slice(body);
        bytes
    }

    #[test]
    fn a_mkdir_keeps_its_name() {
        let decoded = Request::decode(&request(9, 2, b"\0\0\0\0\0\0\0\0late\0")).unwrap();
        assert_eq!(decoded.op, Op::Mkdir);
        assert_eq!(decoded.unique, 77);
        assert_eq!(decoded.node, 2);
        assert_eq!(decoded.name.as_deref(), Some("late"));
    }

    #[test]
    fn a_read_keeps_its_range() {
        let mut body = vec![0; 40];
        body[8..16].copy_from_slice(&8192_u64.to_ne_bytes());
        body[16..20].copy_from_slice(&4096_u32.to_ne_bytes());
        let decoded = Request::decode(&request(15, 3, &body)).unwrap();
        assert_eq!((decoded.offset, decoded.size), (8192, 4096));
    }

    #[test]
    fn an_open_tells_whether_it_is_direct() {
        let direct = |opcode, flags: i32| {
            let body = [flags.to_ne_bytes(), [0; 4]].concat();
            Request::decode(&request(opcode, 3, &body)).unwrap().direct
        };
        assert!(direct(14, libc::O_RDONLY | libc::O_DIRECT));
        assert!(!direct(14, libc::O_RDWR));
        assert!(!direct(27, libc::O_DIRECT));
    }

    #[test]
    fn short_requests_are_errors() {
        assert!(Request::decode(&[0; 39]).is_err());
        assert!(Request::decode(&request(1, 1, b"no end")).is_err());
        assert!(Request::decode(&request(9, 1, b"\0\0")).is_err());
        assert!(Request::decode(&request(15, 1, &[0; 39])).is_err());
    }

    #[test]
    fn unknown_requests_are_named_other() {
        assert_eq!(
            Request::decode(&request(999, 1, &[])).unwrap().op,
            Op::Other
        );
    }

    #[test]
    fn an_error_is_a_bare_header_with_a_negative_number() {
        let bytes = error(7, libc::EIO);
        assert_eq!(bytes.len(), 16);
        assert_eq!(bytes[0..4], 16_u32.to_ne_bytes());
        assert_eq!(bytes[4..8], (-libc::EIO).to_ne_bytes());
        assert_eq!(bytes[8..16], 7_u64.to_ne_bytes());
    }

    #[test]
    fn dirents_are_padded_and_bounded() {
        let mut out = Vec::new();
        assert!(push_dirent(&mut out, 64, 1, 5, "abc", false));
        assert_eq!(out.len(), 32);
        assert!(push_dirent(&mut out, 64, 2, 6, "d", true));
        assert_eq!(out.len(), 64);
        assert!(!push_dirent(&mut out, 64, 3, 7, "e", true));
        assert_eq!(out.len(), 64);
    }
}
