//! Parses the command line, runs the command, exits.

use std::process::ExitCode;

use clap::Parser as _;
use lockwatch::{cli::Cli, commands};

fn main() -> ExitCode {
    let cli = Cli::parse();
    cli.verbosity.start_logging();
    match commands::run(&cli.command) {
        Ok(outcome) => outcome.into(),
        Err(error) => {
            commands::print_error(&error);
            ExitCode::from(2)
        }
    }
}
