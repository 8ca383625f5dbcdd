//! Options of how results look, and how much is said beside them.

use std::io::IsTerminal as _;

use clap::{Args, ValueEnum};
use tracing_subscriber::filter::LevelFilter;

use crate::report::text::Style;

/// How a result is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For a person
    Text,
    /// For a program
    Json,
}

/// How text looks.
#[derive(Clone, Copy, Debug, Args)]
pub struct Look {
    /// Use colours; auto: on a terminal, unless NO_COLOR is set
    #[arg(long, value_name = "WHEN", value_enum, default_value_t = When::Auto)]
    pub color: When,
}

/// When to use colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum When {
    /// On a terminal, unless `NO_COLOR` is set.
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// Columns where the terminal does not tell.
const COLUMNS: usize = 120;

impl Look {
    /// The style for standard output.
    pub fn for_stdout(self) -> Style {
        let stdout = std::io::stdout();
        let color = match self.color {
            When::Auto => anstream::AutoStream::choice(&stdout) != anstream::ColorChoice::Never,
            When::Always => true,
            When::Never => false,
        };
        let width = if stdout.is_terminal() {
            rustix::termios::tcgetwinsize(&stdout)
                .ok()
                .map(|size| usize::from(size.ws_col))
                .filter(|&columns| columns > 0)
        } else {
            std::env::var("COLUMNS").ok().and_then(|c| c.parse().ok())
        };
        Style {
            width: width.unwrap_or(COLUMNS),
            color,
        }
    }

    /// The style for a file.
    pub fn for_file(self) -> Style {
        Style {
            width: COLUMNS,
            color: self.color == When::Always,
        }
    }
}

/// How much to say on standard error.
#[derive(Clone, Copy, Debug, Args)]
pub struct Verbosity {
    /// Say more on standard error; -vv even more
    #[arg(short, long, global = true, display_order = 100, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// Say only errors on standard error
    #[arg(
        short,
        long,
        global = true,
        display_order = 101,
        conflicts_with = "verbose"
    )]
    pub quiet: bool,
}

impl Verbosity {
    /// From here on, log lines of the chosen levels go to standard error.
    pub fn start_logging(self) {
        let level = match (self.quiet, self.verbose) {
            (true, _) => LevelFilter::ERROR,
            (false, 0) => LevelFilter::WARN,
            (false, 1) => LevelFilter::INFO,
            (false, 2) => LevelFilter::DEBUG,
            (false, _) => LevelFilter::TRACE,
        };
        let color = anstream::AutoStream::choice(&std::io::stderr());
        tracing_subscriber::fmt()
            .with_max_level(level)
            .with_writer(std::io::stderr)
            .with_ansi(color != anstream::ColorChoice::Never)
            .with_target(level >= LevelFilter::DEBUG)
            .without_time()
            // They would go to standard error too, by a macro that panics if it cannot write.
            .log_internal_errors(false)
            .init();
    }
}
