//! Documents whose text is written by hand and whose tables are made by a verb.

use std::fs;
use std::ops::Range;
use std::path::PathBuf;

use anyhow::{Context as _, Result};

use crate::workspace::Workspace;

/// A document of the tree, and the verb that makes its tables.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Document {
    /// From the workspace's root.
    pub(crate) path: &'static str,
    /// As in `cargo xtask VERB`.
    pub(crate) verb: &'static str,
}

impl Document {
    pub(crate) fn read(self, workspace: &Workspace) -> Result<String> {
        let path = self.place(workspace);
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
    }

    /// Writes it anew with these contents of its generated parts, by their names.
    pub(crate) fn write(self, workspace: &Workspace, parts: &[(&str, String)]) -> Result<()> {
        let mut text = self.read(workspace)?;
        for (name, contents) in parts {
            text = self.replaced(&text, name, contents)?;
        }
        let path = self.place(workspace);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    }

    /// The generated part of that name, without its marks.
    pub(crate) fn part<'t>(self, text: &'t str, name: &str) -> Result<&'t str> {
        Ok(&text[self.range(text, name)?])
    }

    fn place(self, workspace: &Workspace) -> PathBuf {
        workspace.root.join(self.path)
    }

    fn range(self, text: &str, name: &str) -> Result<Range<usize>> {
        let (begin, end) = (
            format!("<!-- begin {name}: made by cargo xtask {} -->\n", self.verb),
            format!("<!-- end {name} -->"),
        );
        let found = text.find(&begin).and_then(|at| {
            let from = at + begin.len();
            let to = from + text[from..].find(&end)?;
            Some(from..to)
        });
        found.with_context(|| {
            format!(
                "{} has no part between `{}` and `{end}`",
                self.path,
                begin.trim()
            )
        })
    }

    fn replaced(self, text: &str, name: &str, contents: &str) -> Result<String> {
        let mut text = text.to_owned();
        text.replace_range(self.range(&text, name)?, &format!("\n{contents}\n"));
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_part_between_the_marks_is_replaced() {
        let document = Document {
            path: "docs/x.md",
            verb: "x",
        };
        let text = "one\n<!-- begin x: made by cargo xtask x -->\nold\n<!-- end x -->\ntwo\n";
        let new = document.replaced(text, "x", "| new |\n").unwrap();
        assert_eq!(new, text.replace("old", "\n| new |\n"));
        assert_eq!(document.part(&new, "x").unwrap(), "\n| new |\n\n");
        assert!(document.replaced(&new, "y", "").is_err());
    }
}
