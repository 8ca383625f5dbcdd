//! Loading programs into the kernel and attaching them: the only user of aya.

mod log;
pub mod stream;
pub mod survey;

use std::{fs, io};

use aya::{EbpfError, programs::ProgramError};

/// Why programs cannot be loaded, with the remedy.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The kernel refused the object's maps, or aya could not parse it.
    #[error("cannot load lockwatch's object into the kernel{}", hint())]
    Object(#[source] Box<EbpfError>),
    /// The kernel refused a program.
    #[error("the kernel refused a program of lockwatch{}", hint())]
    Program(#[source] Box<ProgramError>),
    /// The embedded object is not the one this binary was written for.
    #[error("the embedded kernel object has no {0}: rebuild it with `cargo xtask ebpf`")]
    Missing(&'static str),
    /// Pages shared with a program cannot be mapped.
    #[error("cannot map the pages shared with the kernel")]
    Map(#[source] io::Error),
    /// The task iterator stopped.
    #[error("cannot read the kernel's tasks")]
    Iterate(#[source] io::Error),
}

impl LoadError {
    fn object(error: EbpfError) -> Self {
        Self::Object(Box::new(error))
    }

    fn program(error: ProgramError) -> Self {
        Self::Program(Box::new(error))
    }
}

/// What on this host most likely explains a refusal, as the end of a sentence.
fn hint() -> &'static str {
    // The active mode is the one in brackets.
    match fs::read_to_string("/sys/kernel/security/lockdown") {
        Ok(modes) if modes.contains("[confidentiality]") => {
            " (the kernel is locked down for confidentiality, which forbids reading its memory: boot with lockdown=integrity)"
        }
        _ => " (root of a container or user namespace is not enough: run it on the host)",
    }
}
