//! How fast events go from the kernel to the detectors, and what is lost on the way:
//! measured for `cargo xtask bench events`. Prints one figure a line, as JSON.

mod allocations;
mod figures;
mod loss;
mod rates;
mod replay;
mod scene;

use std::path::PathBuf;

use anyhow::Result;
use clap::{Parser, Subcommand};

use figures::Figure;

#[derive(Debug, Parser)]
#[command(about)]
struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Events a second through decoding, graph and detectors, and allocations
    Rates {
        /// A recording of a real stall, whose survey the detectors look at
        #[arg(long)]
        recording: PathBuf,
        /// Only allocations and sizes, which repeat
        #[arg(long)]
        only_steady: bool,
    },
    /// What is lost of the most waits that this machine makes; as root
    Loss {
        /// The released binary
        #[arg(long)]
        lockwatch: PathBuf,
    },
    /// Waits handed to the programs by BPF_PROG_TEST_RUN: how many, and what is lost; as root
    Replay,
    /// Hands them in
    #[command(hide = true)]
    Drive {
        /// Number of the program for begins
        #[arg(long)]
        begin: u32,
        /// Number of the program for ends
        #[arg(long)]
        end: u32,
        /// Threads
        #[arg(long)]
        drivers: u32,
    },
}

fn main() -> Result<()> {
    match Args::parse().what {
        What::Rates {
            recording,
            only_steady,
        } => print(&rates::measure(&recording, only_steady)?),
        What::Loss { lockwatch } => print(&loss::measure(&lockwatch)?),
        What::Replay => print(&replay::measure()?),
        What::Drive {
            begin,
            end,
            drivers,
        } => replay::drive(begin, end, drivers),
    }
}

fn print(figures: &[Figure]) -> Result<()> {
    for figure in figures {
        println!("{}", serde_json::to_string(figure)?);
    }
    Ok(())
}
