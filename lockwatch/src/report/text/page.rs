//! Words on a page of a given width: wrapping, tones, and nothing a terminal would obey.

use std::io::{self, Write};

use anstyle::{AnsiColor, Style as Ansi};
use unicode_width::UnicodeWidthChar;

/// How text is to look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Style {
    /// Columns of a line. Below [`Style::NARROWEST`] it is taken as that.
    pub width: usize,
    /// Use terminal colours.
    pub color: bool,
}

impl Style {
    /// Narrower than this no report makes sense.
    pub const NARROWEST: usize = 40;

    /// Columns to use.
    pub(super) fn columns(self) -> usize {
        self.width.max(Self::NARROWEST)
    }
}

/// What a piece of text is, for colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tone {
    Plain,
    /// The name of a line.
    Label,
    /// What the eye shall find first.
    Strong,
    /// What is wrong.
    Alarm,
    /// What is not known or not sure.
    Doubt,
    /// What most readers skip.
    Dim,
}

impl Tone {
    fn ansi(self) -> Ansi {
        match self {
            Self::Plain => Ansi::new(),
            Self::Label => AnsiColor::Cyan.on_default(),
            Self::Strong => Ansi::new().bold(),
            Self::Alarm => AnsiColor::Red.on_default().bold(),
            Self::Doubt => AnsiColor::Yellow.on_default(),
            Self::Dim => Ansi::new().dimmed(),
        }
    }
}

/// A space at which a line is never broken; printed as a plain one.
pub(super) const GLUE: char = '\u{a0}';

/// True for what is not shown as it is: control characters, and what changes the
/// direction or the shape of the text around it.
pub fn is_unprintable(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}'
            | '\u{61c}'
            | '\u{200b}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{2069}'
            | '\u{feff}'
            | '\u{fff9}'..='\u{fffb}'
            | '\u{e0000}'..='\u{e007f}')
}

/// A line of text as it is composed. Whatever comes in is made harmless here, once.
#[derive(Clone, Debug, Default)]
pub(super) struct Text(Vec<(Tone, char)>);

impl Text {
    pub(super) fn new() -> Self {
        Self::default()
    }

    pub(super) fn plain(text: impl AsRef<str>) -> Self {
        Self::new().with(Tone::Plain, text)
    }

    pub(super) fn with(mut self, tone: Tone, text: impl AsRef<str>) -> Self {
        self.push(tone, text);
        self
    }

    pub(super) fn push(&mut self, tone: Tone, text: impl AsRef<str>) {
        self.0.extend(
            text.as_ref()
                .chars()
                .map(|c| (tone, if is_unprintable(c) { '?' } else { c })),
        );
    }

    pub(super) fn append(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Writes it: `indent` columns are already filled, later lines are indented as far.
    pub(super) fn write(&self, out: &mut dyn Write, style: Style, indent: usize) -> io::Result<()> {
        for (number, line) in self.lines(style.columns(), indent).iter().enumerate() {
            if number > 0 {
                write!(out, "{:indent$}", "")?;
            }
            write_run(out, style, line)?;
            out.write_all(b"\n")?;
        }
        Ok(())
    }

    /// Breaks it at spaces, and words that fit no line anywhere.
    fn lines(&self, columns: usize, indent: usize) -> Vec<Vec<(Tone, char)>> {
        let room = columns.saturating_sub(indent).max(1);
        let mut lines = vec![Vec::new()];
        let mut filled = 0;
        let mut gap = Vec::new();
        for word in self.0.chunk_by(|a, b| (a.1 == ' ') == (b.1 == ' ')) {
            if word[0].1 == ' ' {
                gap = word.to_vec();
                continue;
            }
            let width: usize = word.iter().map(|&(_, c)| columns_of(c)).sum();
            if filled > 0 && filled + gap.len() + width > room {
                lines.push(Vec::new());
                filled = 0;
                gap.clear();
            }
            filled += gap.len();
            if let Some(line) = lines.last_mut() {
                line.append(&mut gap);
            }
            for &(tone, c) in word {
                if filled + columns_of(c) > room && filled > 0 {
                    lines.push(Vec::new());
                    filled = 0;
                }
                filled += columns_of(c);
                if let Some(line) = lines.last_mut() {
                    line.push((tone, if c == GLUE { ' ' } else { c }));
                }
            }
        }
        lines
    }
}

/// Columns that this text takes.
pub(super) fn width(text: &str) -> usize {
    text.chars().map(columns_of).sum()
}

fn columns_of(c: char) -> usize {
    c.width().unwrap_or(0)
}

fn write_run(out: &mut dyn Write, style: Style, line: &[(Tone, char)]) -> io::Result<()> {
    for run in line.chunk_by(|a, b| a.0 == b.0) {
        let text: String = run.iter().map(|&(_, c)| c).collect();
        let ansi = run[0].0.ansi();
        if style.color {
            write!(out, "{ansi}{text}{ansi:#}")?;
        } else {
            out.write_all(text.as_bytes())?;
        }
    }
    Ok(())
}

/// Column at which the text after a label begins.
pub(super) const TEXT_COLUMN: usize = 11;

/// Writes `  label    text`, later paragraphs under the first.
pub(super) fn write_field(
    out: &mut dyn Write,
    style: Style,
    label: &str,
    paragraphs: &[Text],
) -> io::Result<()> {
    let mut label = label;
    for text in paragraphs.iter().filter(|text| !text.is_empty()) {
        write!(out, "  ")?;
        let padded = format!("{label:<8}");
        if label.is_empty() {
            write!(out, "{padded}")?;
        } else {
            write_run(out, style, &Text::new().with(Tone::Label, padded).0)?;
        }
        write!(out, " ")?;
        text.write(out, style, TEXT_COLUMN)?;
        label = "";
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &Text, width: usize, indent: usize) -> String {
        let mut out = Vec::new();
        let style = Style {
            width,
            color: false,
        };
        text.write(&mut out, style, indent).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn lines_break_at_spaces_but_not_at_glue() {
        let text = Text::plain(format!("{} one{GLUE}word here", "x".repeat(34)));
        assert_eq!(
            shown(&text, 40, 2),
            format!("{}\n  one word here\n", "x".repeat(34))
        );
    }

    #[test]
    fn a_word_longer_than_a_line_is_cut_not_lost() {
        let text = Text::plain("y".repeat(100));
        assert_eq!(
            shown(&text, 40, 0),
            format!(
                "{}\n{}\n{}\n",
                "y".repeat(40),
                "y".repeat(40),
                "y".repeat(20)
            )
        );
    }

    #[test]
    fn wide_characters_take_two_columns() {
        let text = Text::plain("字".repeat(30));
        assert_eq!(
            shown(&text, 40, 0),
            format!("{}\n{}\n", "字".repeat(20), "字".repeat(10))
        );
    }

    #[test]
    fn nothing_a_terminal_obeys_gets_through() {
        let text = Text::plain("a\x1b[2J\u{9b}1m\u{202e}\n\r\u{7f}b");
        assert_eq!(shown(&text, 40, 0), "a?[2J?1m????b\n");
    }
}
