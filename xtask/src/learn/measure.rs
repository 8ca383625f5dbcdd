//! What the tables of functions add: the same stalls, diagnosed with each.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use serde::Deserialize;

use super::{Args, LEARNER, MORE, here, variant};
use crate::process;
use crate::vm::{self, Besides, Question, Settings};
use crate::workspace::Workspace;

/// Builds of lockwatch, by which tables they have, and what leaves the others out.
const VARIANTS: [(&str, &str); 3] = [
    ("none", "mutation-no-hand-frames,mutation-no-learned-frames"),
    ("hand", "mutation-no-learned-frames"),
    ("learned", "mutation-no-hand-frames"),
];

/// For all stalls with all tables.
const LIMIT: Duration = Duration::from_secs(300);

/// What one build said of one scenario's stalls.
#[derive(Debug, Deserialize)]
struct Row {
    scenario: String,
    variant: String,
    certain: u32,
    likely: u32,
    possible: u32,
    missing: u32,
    /// Names that are no holder's, likely or certain.
    accused: u32,
    /// Names that are no holder's, possible.
    suspected: u32,
}

#[derive(Debug, Deserialize)]
struct Rows {
    rows: Vec<Row>,
}

/// Exit code 0: every kernel could be measured.
pub(super) fn run(workspace: &Workspace, args: &Args, learner: &Path) -> Result<ExitCode> {
    let mut programs = vec![(LEARNER.to_owned(), learner.to_path_buf())];
    for (name, features) in VARIANTS {
        let built = process::timed(
            &format!("building lockwatch with {name} of the tables"),
            || variant(workspace, name, features),
        )?;
        programs.push((format!("lockwatch-{name}"), built));
    }
    let named = |path: &dyn Fn(&str) -> String| -> Vec<String> {
        VARIANTS
            .iter()
            .map(|(name, _)| format!("{name}={}", path(&format!("lockwatch-{name}"))))
            .chain([format!("both={}", path("lockwatch"))])
            .collect()
    };
    let limit = LIMIT + MORE;
    let found: Vec<(String, Result<Rows, String>)> = match &args.here {
        Some(name) => {
            let path = |wanted: &str| {
                let found = programs.iter().find(|(name, _)| name == wanted);
                let path = found.map_or_else(
                    || workspace.release_binary(wanted),
                    |(_, path)| path.clone(),
                );
                path.display().to_string()
            };
            let arguments = [vec!["measure".to_owned()], named(&path)].concat();
            let told = here(workspace, learner, &arguments, limit)
                .and_then(|json| Ok(serde_json::from_value(json)?));
            vec![(name.clone(), told.map_err(|error| format!("{error:#}")))]
        }
        None => {
            let path = |name: &str| format!("/bin/{name}");
            let question = Question {
                subject: "measure",
                command: format!("{LEARNER} measure {}", named(&path).join(" ")),
                limit_s: limit.as_secs(),
            };
            vm::ask(
                workspace,
                &args.kernels,
                &Settings::USUAL,
                &question,
                Besides {
                    programs: &programs,
                    ..Besides::default()
                },
            )?
        }
    };
    println!(
        "{:<10} {:<24} {:<8} {:>7} {:>6} {:>8} {:>7} {:>7} {:>9}",
        "kernel",
        "scenario",
        "tables",
        "certain",
        "likely",
        "possible",
        "missing",
        "accused",
        "suspected"
    );
    let mut well = true;
    for (kernel, rows) in found {
        match rows {
            Ok(rows) => show(&kernel, &rows.rows),
            Err(why) => {
                println!("{kernel}: FAILED: {why}");
                well = false;
            }
        }
    }
    Ok(if well {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn show(kernel: &str, rows: &[Row]) {
    let mut sums: BTreeMap<&str, [u32; 6]> = BTreeMap::new();
    for row in rows {
        let figures = [
            row.certain,
            row.likely,
            row.possible,
            row.missing,
            row.accused,
            row.suspected,
        ];
        line(kernel, &row.scenario, &row.variant, figures);
        let sum = sums.entry(&row.variant).or_default();
        for (sum, figure) in sum.iter_mut().zip(figures) {
            *sum += figure;
        }
    }
    for (variant, sum) in sums {
        line(kernel, "all", variant, sum);
    }
}

fn line(kernel: &str, scenario: &str, variant: &str, figures: [u32; 6]) {
    let [certain, likely, possible, missing, accused, suspected] = figures;
    println!(
        "{kernel:<10} {scenario:<24} {variant:<8} {certain:>7} {likely:>6} {possible:>8} {missing:>7} {accused:>7} {suspected:>9}"
    );
}
