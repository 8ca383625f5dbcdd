//! How sure builds of lockwatch are of the lab's readers.

use std::{path::PathBuf, process::Command, str::FromStr, time::Duration};

use anyhow::{Context, Result};
use lockwatch_tests::{
    trial::{Lab, Program, Report, report::Confidence},
    truth::{Ready, Scenario},
};
use serde::Serialize;

/// The stalls with readers.
const SCENARIOS: [Scenario; 6] = [
    Scenario::MmapReadHeld,
    Scenario::InodeReadHeld,
    Scenario::InodeReadHeldOverlay,
    Scenario::SuperReadHeld,
    Scenario::SuperReadHeldSync,
    Scenario::VmaReadHeld,
];

/// Each is made so often.
const STALLS: u32 = 2;

const LIMIT: Duration = Duration::from_secs(30);

/// A build of lockwatch and what it is called.
#[derive(Clone, Debug)]
pub(crate) struct Variant {
    name: String,
    binary: PathBuf,
}

impl FromStr for Variant {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (name, binary) = text.split_once('=').context("write it as NAME=PATH")?;
        Ok(Self {
            name: name.to_owned(),
            binary: binary.into(),
        })
    }
}

/// What one build said of one scenario's stalls.
#[derive(Debug, Default, Serialize)]
struct Row {
    scenario: String,
    variant: String,
    /// Holders by how sure they are named.
    certain: u32,
    likely: u32,
    possible: u32,
    missing: u32,
    /// Names that are no holder's, likely or certain.
    accused: u32,
    /// Names that are no holder's, possible.
    suspected: u32,
}

#[derive(Debug, Serialize)]
struct Rows {
    rows: Vec<Row>,
}

/// Makes each stall, has it diagnosed with each build, and prints the sums as JSON.
pub(crate) fn measure(variants: &[Variant]) -> Result<()> {
    let mut rows = Vec::new();
    for scenario in SCENARIOS {
        let first = rows.len();
        for stall in 0..STALLS {
            let lab = match Lab::raise(scenario, 3) {
                Ok(lab) => lab,
                Err(error) => {
                    eprintln!("hold-learner: {}: {error:#}", scenario.name());
                    break;
                }
            };
            for (index, variant) in variants.iter().enumerate() {
                if stall == 0 {
                    rows.push(Row {
                        scenario: scenario.name(),
                        variant: variant.name.clone(),
                        ..Row::default()
                    });
                }
                let mut command = Command::new(&variant.binary);
                command.args(["diagnose", "--format", "json", "--threshold", "1ms"]);
                command.args(["--deadline", "10s"]);
                let report = Report::read(&Program::run(&mut command, LIMIT)?)?;
                rows[first + index].add(&report, &lab.truth);
            }
            lab.finish()?;
        }
    }
    println!("{}", serde_json::to_string(&Rows { rows })?);
    Ok(())
}

impl Row {
    fn add(&mut self, report: &Report, truth: &Ready) {
        let lock = report
            .locks
            .iter()
            .find(|lock| lock.name.starts_with(&truth.lock.name));
        let named = lock.map_or(&[][..], |lock| &lock.holders);
        for holder in &truth.holders {
            let name = named.iter().find(|named| named.tid == holder.tid);
            match name.map(|name| name.confidence) {
                Some(Confidence::Certain) => self.certain += 1,
                Some(Confidence::Likely) => self.likely += 1,
                Some(Confidence::Possible) => self.possible += 1,
                None => self.missing += 1,
            }
        }
        for other in named {
            if truth.holders.iter().all(|holder| holder.tid != other.tid) {
                match other.confidence {
                    Confidence::Possible => self.suspected += 1,
                    Confidence::Certain | Confidence::Likely => self.accused += 1,
                }
            }
        }
    }
}
