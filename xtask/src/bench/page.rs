//! The tables of docs/performance.md.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use anyhow::Result;

use super::figure::{Committed, Measured};
use super::goal::GOALS;
use crate::document::Document;
use crate::grid::Grid;
use crate::workspace::Workspace;

const DOCUMENT: Document = Document {
    path: "docs/performance.md",
    verb: "bench",
};

/// Writes the document's generated parts: `goals`, and one for each part that was measured.
pub(crate) fn write(workspace: &Workspace, committed: &Committed) -> Result<()> {
    let mut parts = vec![("goals", goals(committed))];
    for (name, measured) in &committed.0 {
        let mut text = table(measured).to_string();
        let _ = write!(
            text,
            "\nMeasured on {}: {} × {}, kernel {}.\n",
            measured.date, measured.cpus, measured.processor, measured.release
        );
        parts.push((name, text));
    }
    DOCUMENT.write(workspace, &parts)
}

fn goals(committed: &Committed) -> String {
    let columns = ["goal", "measured", "met"].map(str::to_owned);
    let rows = GOALS.iter().map(|goal| {
        let [what, bound, measured, met] = goal.cells(committed);
        (what, vec![bound, measured, met])
    });
    Grid {
        corner: "what".to_owned(),
        columns: columns.to_vec(),
        rows: rows.collect(),
    }
    .to_string()
}

/// The figures of a part: a row a name, a column a kernel.
pub(crate) fn table(measured: &Measured) -> Grid {
    let kernels: BTreeSet<&str> = measured
        .figures
        .iter()
        .map(|figure| figure.kernel.as_str())
        .collect();
    let mut rows: Vec<(String, Vec<String>)> = Vec::new();
    for figure in &measured.figures {
        let column = kernels
            .iter()
            .position(|kernel| *kernel == figure.kernel)
            .unwrap_or_default();
        let row = match rows.iter().position(|(name, _)| *name == figure.name) {
            Some(row) => row,
            None => {
                rows.push((figure.name.clone(), vec!["–".to_owned(); kernels.len()]));
                rows.len() - 1
            }
        };
        rows[row].1[column] = figure.unit.tell(figure.value);
    }
    Grid {
        corner: "what".to_owned(),
        columns: kernels
            .iter()
            .map(|kernel| match *kernel {
                "" => "any".to_owned(),
                kernel => kernel.to_owned(),
            })
            .collect(),
        rows,
    }
}
