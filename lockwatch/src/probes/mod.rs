//! Loading programs into the kernel and attaching them: the only user of aya.

pub mod beats;
pub mod counts;
pub mod holds;
pub mod hook;
mod iterator;
mod loader;
mod log;
pub mod long_holds;
mod mapped;
pub mod offer;
mod slots;
pub mod stream;
pub mod survey;
#[cfg(test)]
mod tests;
pub mod types;

use std::{fs, io, iter};

use aya::{Ebpf, EbpfError, maps::Map, programs::ProgramError};

/// Gives aya the types shared with the programs as it wants them: under a name of this
/// crate.
macro_rules! pod {
    ($($name:ident($type:ty)),*) => {$(
        #[derive(Clone, Copy)]
        #[repr(transparent)]
        struct $name($type);

        // SAFETY: `repr(C)`, only integers, explicit padding.
        unsafe impl aya::Pod for $name {}
    )*};
}
use pod;

/// Why programs cannot be loaded, with the remedy.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The kernel refused the object's maps, or aya could not parse it.
    #[error("cannot load lockwatch's object into the kernel{}", hint(.0.as_ref()))]
    Object(#[source] Box<EbpfError>),
    /// The kernel refused a program.
    #[error("the kernel refused a program of lockwatch{}", hint(.0.as_ref()))]
    Program(#[source] Box<ProgramError>),
    /// The kernel's verifier found fault with a program.
    #[error(
        "this kernel's verifier refuses a program of lockwatch: please report it with the output of -v"
    )]
    Verifier(#[source] io::Error),
    /// We or the host lack something, which says nothing of what the kernel allows.
    #[error(
        "there are not enough files or memory for lockwatch's programs (for files: ulimit -n, LimitNOFILE=)"
    )]
    Want(#[source] io::Error),
    /// The embedded object is not the one this binary was written for.
    #[error("the embedded kernel object has no {0}: rebuild it with `cargo xtask ebpf`")]
    Missing(&'static str),
    /// The plan has a hook for which the embedded object has no program.
    #[error("lockwatch has no program {0} for it: please report the kernel version")]
    NoProgram(String),
    /// Pages shared with a program cannot be mapped.
    #[error("cannot map the pages shared with the kernel")]
    Map(#[source] io::Error),
    /// The lists of CPUs in /sys.
    #[error("cannot read the list of CPUs in /sys/devices/system/cpu: mount /sys")]
    Cpus(#[source] io::Error),
    /// The task iterator stopped.
    #[error("cannot read the kernel's tasks")]
    Iterate(#[source] io::Error),
}

impl LoadError {
    fn object(error: EbpfError) -> Self {
        want_in(&error).map_or_else(|| Self::Object(Box::new(error)), Self::Want)
    }

    fn program(error: ProgramError) -> Self {
        if let Some(want) = want_in(&error) {
            return Self::Want(want);
        }
        match error {
            // The log has hundreds of lines: for those who ask for more.
            ProgramError::LoadError {
                io_error,
                verifier_log,
            } if is_verdict(&io_error) && !verifier_log.to_string().trim().is_empty() => {
                tracing::info!("the verifier's log:\n{verifier_log}");
                Self::Verifier(io_error)
            }
            error => Self::Program(Box::new(error)),
        }
    }
}

/// Takes a map out of an object.
fn map(ebpf: &mut Ebpf, name: &'static str) -> Result<Map, LoadError> {
    ebpf.take_map(name).ok_or(LoadError::Missing(name))
}

/// What we or the host lack, if that is at the bottom of an error.
fn want_in(error: &(dyn std::error::Error + 'static)) -> Option<io::Error> {
    iter::successors(Some(error), |&error| error.source())
        .filter_map(|error| error.downcast_ref::<io::Error>()?.raw_os_error())
        .find(|code| WANTS.contains(code))
        .map(io::Error::from_raw_os_error)
}

/// Errors that say nothing of what the kernel can do or a policy allows.
const WANTS: [i32; 4] = [libc::EMFILE, libc::ENFILE, libc::ENOMEM, libc::EAGAIN];

/// The errors a verifier gives; others come before or after it.
fn is_verdict(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::PermissionDenied
            | io::ErrorKind::InvalidInput
            | io::ErrorKind::ArgumentListTooLong
    )
}

/// What on this host most likely explains a refusal, as the end of a sentence.
fn hint(error: &(dyn std::error::Error + 'static)) -> &'static str {
    let mut cause = Some(error);
    let mut is_permission = false;
    while let Some(error) = cause {
        is_permission |= error
            .downcast_ref::<io::Error>()
            .is_some_and(|error| error.kind() == io::ErrorKind::PermissionDenied);
        cause = error.source();
    }
    if !is_permission {
        return "";
    }
    // The active mode is the one in brackets.
    match fs::read_to_string("/sys/kernel/security/lockdown") {
        Ok(modes) if modes.contains("[confidentiality]") => {
            " (the kernel is locked down for confidentiality, which forbids reading its memory: boot with lockdown=integrity)"
        }
        _ => {
            " (a security policy forbids it, as in most containers: run it on the host, as its root)"
        }
    }
}
