//! The commands of the command line.

pub mod check;
mod cost;
pub mod diagnose;
pub mod export;
pub mod histogram;
mod memory;
mod output;
mod priority;
pub mod record;
mod recorder;
pub mod report;
pub mod watch;

use std::{
    io::{self, Write},
    process::ExitCode,
};

use crate::cli::Command;

/// How a command ended, if not with an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// No stall was found, or nothing is missing: exit code 0.
    Clear,
    /// A stall was found: exit code 1.
    Stall,
    /// Something that lockwatch wants is missing: exit code 1.
    Gaps,
    /// Nothing was found in a recording that could be read in part only: exit code 2.
    Unread,
    /// Nothing of lockwatch works on this host: exit code 2.
    Unusable,
}

impl From<Outcome> for ExitCode {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Clear => Self::SUCCESS,
            Outcome::Stall | Outcome::Gaps => Self::from(1),
            Outcome::Unread | Outcome::Unusable => Self::from(2),
        }
    }
}

/// Runs a command to its end.
///
/// # Errors
/// When it cannot do what it was asked to; the chain of causes is fit to be printed.
pub fn run(command: &Command) -> anyhow::Result<Outcome> {
    raise_file_limit();
    memory::give_back_big_pieces();
    match command {
        Command::Check(args) => check::run(args),
        Command::Diagnose(args) => diagnose::run(args),
        Command::Watch(args) => watch::run(args),
        Command::Export(args) => export::run(args),
        Command::Record(args) => record::run(args),
        Command::Report(args) => report::run(args),
        Command::Histogram(args) => histogram::run(args),
    }
}

/// Lets this process have all the files that it may: each map and each program is one, and
/// the usual limit of a shell or a service may be below what they come to. Best effort.
fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let maximum = getrlimit(Resource::Nofile).maximum;
    let most = Rlimit {
        current: maximum,
        maximum,
    };
    if let Err(error) = setrlimit(Resource::Nofile, most) {
        tracing::info!("cannot raise the limit of open files: {error}");
    }
}

/// Prints an error and its causes as one line on standard error.
pub fn print_error(error: &anyhow::Error) {
    // Nobody is left to be told if this fails.
    let _ = writeln!(io::stderr(), "lockwatch: error: {}", one_line(error));
}

/// The causes joined by colons; a cause that the text before it repeats is left out.
fn one_line(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        if line.is_empty() {
            line = cause;
        } else if !line.ends_with(&cause) {
            line.push_str(": ");
            line.push_str(&cause);
        }
    }
    line
}

/// Turns the error of a closed pipe into success: the reader has seen enough.
///
/// # Errors
/// Every other error is passed on.
pub fn allow_closed_pipe(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;

    use super::*;

    #[test]
    fn each_cause_is_said_once() {
        let error = Err::<(), _>(io::Error::other("permission denied"))
            .context("load program survey: permission denied")
            .context("open the survey")
            .unwrap_err();
        assert_eq!(
            one_line(&error),
            "open the survey: load program survey: permission denied"
        );
    }

    #[test]
    fn a_closed_pipe_is_no_error_but_a_full_disk_is() {
        assert!(allow_closed_pipe(Err(io::ErrorKind::BrokenPipe.into())).is_ok());
        assert!(allow_closed_pipe(Err(io::ErrorKind::StorageFull.into())).is_err());
    }
}
