//! A table in Markdown: written, read back, compared.

use std::fmt::{self, Display, Formatter};

/// Rows of cells below kernels.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Grid {
    /// Above the first column.
    pub(crate) corner: String,
    pub(crate) columns: Vec<String>,
    pub(crate) rows: Vec<(String, Vec<String>)>,
}

impl Grid {
    /// The tables of a text, in order.
    pub(crate) fn read_all(text: &str) -> Vec<Self> {
        let mut found: Vec<Self> = Vec::new();
        let mut is_inside = false;
        for line in text.lines() {
            let Some(cells) = cells(line) else {
                is_inside = false;
                continue;
            };
            let [first, rest @ ..] = &cells[..] else {
                continue;
            };
            match found.last_mut().filter(|_| is_inside) {
                None => found.push(Self {
                    corner: first.clone(),
                    columns: rest.to_vec(),
                    rows: Vec::new(),
                }),
                Some(_) if first.starts_with("--") => {}
                Some(grid) => grid.rows.push((first.clone(), rest.to_vec())),
            }
            is_inside = true;
        }
        found
    }

    fn cell(&self, row: &str, column: &str) -> Option<&str> {
        let column = self.columns.iter().position(|name| name == column)?;
        let (_, cells) = self.rows.iter().find(|(name, _)| name == row)?;
        cells.get(column).map(String::as_str)
    }

    /// How this differs from what is written, in the columns that both have.
    pub(crate) fn differences(&self, written: &Self) -> Vec<String> {
        let mut found = Vec::new();
        for (row, _) in &written.rows {
            if !self.rows.iter().any(|(name, _)| name == row) {
                found.push(format!("`{row}` is written and was not tried"));
            }
        }
        for (row, cells) in &self.rows {
            for (column, cell) in self.columns.iter().zip(cells) {
                if !written.columns.contains(column) {
                    found.push(format!("{column} is not written"));
                    continue;
                }
                match written.cell(row, column) {
                    Some(old) if old == cell => {}
                    Some(old) => found.push(format!(
                        "{column}, `{row}`: `{old}` is written, `{cell}` was found"
                    )),
                    None => found.push(format!("`{row}` is not written")),
                }
            }
        }
        found.dedup();
        found
    }
}

/// The cells of a table's line.
fn cells(line: &str) -> Option<Vec<String>> {
    let inner = line.trim().strip_prefix('|')?.strip_suffix('|')?;
    Some(
        inner
            .split('|')
            .map(|cell| cell.trim().to_owned())
            .collect(),
    )
}

impl Display for Grid {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "| {} | {} |", self.corner, self.columns.join(" | "))?;
        writeln!(f, "|---|{}", ":-:|".repeat(self.columns.len()))?;
        for (row, cells) in &self.rows {
            writeln!(f, "| {row} | {} |", cells.join(" | "))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grid(columns: &[&str], rows: &[(&str, &[&str])]) -> Grid {
        let owned = |cells: &[&str]| cells.iter().map(ToString::to_string).collect();
        Grid {
            corner: "stall".to_owned(),
            columns: owned(columns),
            rows: rows
                .iter()
                .map(|(row, cells)| ((*row).to_owned(), owned(cells)))
                .collect(),
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        let one = grid(&["5.10", "6.1"], &[("a lock", &["✓", "–"])]);
        let two = grid(&["7.3"], &[("another", &["✓"])]);
        let text = format!("# Title\n\n{one}\nmore\n\n{two}");
        assert_eq!(Grid::read_all(&text), [one, two]);
    }

    #[test]
    fn only_columns_of_both_are_compared() {
        let written = grid(
            &["5.10", "6.1"],
            &[("a lock", &["✓", "–"]), ("old", &["✓", "✓"])],
        );
        let found = grid(&["6.1"], &[("a lock", &["✓"]), ("new", &["✓"])]);
        assert_eq!(
            found.differences(&written),
            [
                "`old` is written and was not tried",
                "6.1, `a lock`: `–` is written, `✓` was found",
                "`new` is not written",
            ]
        );
        assert!(written.differences(&written).is_empty());
        assert_eq!(
            grid(&["7.3"], &[("old", &["✓"]), ("a lock", &["✓"])]).differences(&written),
            ["7.3 is not written"]
        );
    }
}
