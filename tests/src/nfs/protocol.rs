//! What the server answers: MOUNT and NFS, each version 3 (RFC 1813), one directory with one
//! file in it, which is all zeros.

use super::xdr::{Received, Sent};

/// The only file, and how long it is.
pub(crate) const FILE_NAME: &str = "asked";
pub(crate) const FILE_BYTES: u64 = 64 << 20;

const MOUNT: u32 = 100_005;
const NFS: u32 = 100_003;
const VERSION: u32 = 3;

/// Numbers of the directory and the file; a handle is the number as eight bytes.
const ROOT: u64 = 1;
const FILE: u64 = 2;

/// Most bytes of one answer to a read.
const READ_MAX: u32 = 32 << 10;

/// Answers of RPC itself (RFC 5531, `accept_stat`).
const PROG_UNAVAIL: u32 = 1;
const PROC_UNAVAIL: u32 = 3;
const GARBAGE_ARGS: u32 = 4;

const NOENT: u32 = 2;
const STALE: u32 = 70;

/// An answer, ready to be sent.
pub(super) struct Answer {
    /// As a record of the stream.
    pub(super) record: Vec<u8>,
    /// It is about the file system, not about mounting it, nor a mere sign of life.
    pub(super) of_files: bool,
}

/// Answers a call; `None` if it is none.
pub(super) fn answer(call: &[u8]) -> Option<Answer> {
    let mut call = Received(call);
    let id = call.number()?;
    // A call, of RPC version 2.
    if (call.number()?, call.number()?) != (0, 2) {
        return None;
    }
    let (program, version, procedure) = (call.number()?, call.number()?, call.number()?);
    for _ in ["credential", "verifier"] {
        call.number()?;
        call.bytes()?;
    }
    let results = match (program, version) {
        (MOUNT, VERSION) => mount(procedure, &mut call),
        (NFS, VERSION) => nfs(procedure, &mut call),
        _ => Err(PROG_UNAVAIL),
    };
    // A reply, accepted, without a verifier.
    let head = Sent::default().numbers(&[id, 1, 0, 0, 0]);
    let sent = match results {
        Ok(add) => add(head.number(0)),
        Err(why) => head.number(why),
    };
    Some(Answer {
        record: sent.into_record(),
        of_files: program == NFS && procedure != 0,
    })
}

/// What is added to an answer.
type Add = Box<dyn FnOnce(Sent) -> Sent>;

fn add(what: impl FnOnce(Sent) -> Sent + 'static) -> Result<Add, u32> {
    Ok(Box::new(what))
}

fn mount(procedure: u32, call: &mut Received<'_>) -> Result<Add, u32> {
    match procedure {
        // NULL, UMNT
        0 | 3 => add(|sent| sent),
        // MNT: the handle, and that credentials of AUTH_SYS will do.
        1 => {
            call.bytes().ok_or(GARBAGE_ARGS)?;
            add(|sent| sent.number(0).bytes(&ROOT.to_be_bytes()).numbers(&[1, 1]))
        }
        _ => Err(PROC_UNAVAIL),
    }
}

fn nfs(procedure: u32, call: &mut Received<'_>) -> Result<Add, u32> {
    if procedure == 0 {
        return add(|sent| sent);
    }
    let handle = call.bytes().ok_or(GARBAGE_ARGS)?;
    let node = handle.try_into().map_or(0, u64::from_be_bytes);
    if ![ROOT, FILE].contains(&node) {
        // Without attributes where they are due; GETATTR has none then either.
        let has_attributes = procedure != 1;
        return add(move |sent| {
            let sent = sent.number(STALE);
            if has_attributes { sent.number(0) } else { sent }
        });
    }
    match procedure {
        // GETATTR
        1 => add(move |sent| attributes(sent.number(0), node)),
        // LOOKUP
        3 => {
            let name = call.bytes().ok_or(GARBAGE_ARGS)?;
            let is_there = node == ROOT && name == FILE_NAME.as_bytes();
            add(move |sent| {
                if !is_there {
                    return known(sent.number(NOENT), node);
                }
                let sent = sent.number(0).bytes(&FILE.to_be_bytes());
                known(known(sent, FILE), node)
            })
        }
        // ACCESS: all that is asked for.
        4 => {
            let wanted = call.number().ok_or(GARBAGE_ARGS)?;
            add(move |sent| known(sent.number(0), node).number(wanted))
        }
        // READ
        6 => {
            let offset = call.long().ok_or(GARBAGE_ARGS)?;
            let wanted = call.number().ok_or(GARBAGE_ARGS)?.min(READ_MAX);
            let left = FILE_BYTES.saturating_sub(offset);
            let count = left.min(wanted.into());
            add(move |sent| {
                let is_end = u32::from(count == left);
                known(sent.number(0), node)
                    .numbers(&[count as u32, is_end])
                    .bytes(&vec![0; count as usize])
            })
        }
        // FSSTAT: bytes and files in all, free, and free for the caller; for how long.
        18 => add(move |sent| {
            let sent = known(sent.number(0), node);
            let sent = [FILE_BYTES, 0, 0, 2, 0, 0]
                .into_iter()
                .fold(sent, Sent::long);
            sent.number(0)
        }),
        // FSINFO: sizes of reads, writes and listings; the longest file; how exact times are;
        // what it can do.
        19 => add(move |sent| {
            known(sent.number(0), node)
                .numbers(&[READ_MAX, READ_MAX, 512])
                .numbers(&[READ_MAX, READ_MAX, 512])
                .number(READ_MAX)
                .long(u64::MAX >> 1)
                .numbers(&[1, 0])
                .number(0)
        }),
        // PATHCONF: links, length of names, and how they are treated.
        20 => add(move |sent| known(sent.number(0), node).numbers(&[1, 255, 1, 1, 0, 1])),
        _ => Err(PROC_UNAVAIL),
    }
}

/// Attributes that are there.
fn known(sent: Sent, node: u64) -> Sent {
    attributes(sent.number(1), node)
}

/// `fattr3`
fn attributes(sent: Sent, node: u64) -> Sent {
    const DIRECTORY: u32 = 2;
    const REGULAR: u32 = 1;
    let (kind, mode, links, bytes) = match node {
        ROOT => (DIRECTORY, 0o755, 2, 4096),
        _ => (REGULAR, 0o644, 1, FILE_BYTES),
    };
    let sent = sent
        .numbers(&[kind, mode, links])
        // Owner and group.
        .numbers(&[0, 0])
        .long(bytes)
        .long(bytes)
        // The device that it would be.
        .numbers(&[0, 0])
        // The file system, and the number in it.
        .long(1)
        .long(node);
    // Never read, written nor changed since.
    sent.numbers(&[1, 0, 1, 0, 1, 0])
}

#[cfg(test)]
mod tests {
    use super::{super::xdr::take_record, *};

    fn call(program: u32, procedure: u32, arguments: Sent) -> Answer {
        let arguments = take_record(&mut arguments.into_record()).unwrap();
        let head = Sent::default()
            .numbers(&[77, 0, 2, program, VERSION, procedure])
            // A credential of some bytes, and no verifier.
            .number(1)
            .bytes(&[5; 20])
            .number(0)
            .bytes(&[]);
        let mut call = take_record(&mut head.into_record()).unwrap();
        call.extend(arguments);
        answer(&call).unwrap()
    }

    fn results(answer: &Answer) -> Vec<u32> {
        let record = take_record(&mut answer.record.clone()).unwrap();
        let numbers = record.chunks_exact(4);
        let numbers = numbers.map(|four| u32::from_be_bytes(four.try_into().unwrap()));
        let numbers: Vec<u32> = numbers.collect();
        assert_eq!(numbers[..5], [77, 1, 0, 0, 0]);
        numbers[5..].to_vec()
    }

    fn root() -> Sent {
        Sent::default().bytes(&ROOT.to_be_bytes())
    }

    #[test]
    fn a_mount_leads_to_the_file() {
        let mounted = call(MOUNT, 1, Sent::default().bytes(b"/export"));
        assert!(!mounted.of_files);
        // Handle, and one flavour.
        assert_eq!(results(&mounted), [0, 0, 8, 0, 1, 1, 1]);
        let found = call(NFS, 3, root().bytes(FILE_NAME.as_bytes()));
        assert!(found.of_files);
        let found = results(&found);
        assert_eq!(found[..5], [0, 0, 8, 0, 2]);
        // Both attributes, of 21 numbers.
        assert_eq!(found.len(), 5 + 2 * 22);
        assert_eq!((found[5], found[6]), (1, 1));
        assert_eq!((found[27], found[28]), (1, 2));
        assert_eq!(results(&call(NFS, 3, root().bytes(b"else")))[1], NOENT);
    }

    #[test]
    fn a_read_gives_zeros_up_to_the_end() {
        let at = |offset: u64| {
            let file = Sent::default().bytes(&FILE.to_be_bytes());
            results(&call(NFS, 6, file.long(offset).number(8)))
        };
        let answer = at(0);
        // Status of RPC and NFS, attributes, count, end, bytes.
        assert_eq!(answer[..2], [0, 0]);
        assert_eq!(answer[24..], [8, 0, 8, 0, 0]);
        assert_eq!(at(FILE_BYTES - 4)[24..], [4, 1, 4, 0]);
        assert_eq!(at(FILE_BYTES + 4)[24..], [0, 1, 0]);
    }

    #[test]
    fn what_is_not_known_is_refused() {
        let nothing = Sent::default;
        assert_eq!(results(&call(100_227, 0, nothing())), [PROG_UNAVAIL]);
        assert_eq!(results(&call(NFS, 7, root())), [PROC_UNAVAIL]);
        assert_eq!(results(&call(NFS, 1, nothing())), [GARBAGE_ARGS]);
        let other = nothing().bytes(&9_u64.to_be_bytes());
        assert_eq!(results(&call(NFS, 1, other)), [0, STALE]);
        assert!(answer(&[0; 8]).is_none());
        assert!(answer(&[0, 0, 0, 1, 0, 0, 0, 1]).is_none(), "a reply");
    }
}
