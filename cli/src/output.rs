//! What is printed, and how: text for people, JSON for programs, progress on standard error.
//!
//! Names, reasons and arguments come from agents and servers. Whatever could steer a terminal or
//! reorder what a person reads (control characters, bidirectional overrides) is shown as an escape.

use std::{
    env,
    fmt::Write as _,
    io::{self, IsTerminal as _, Write as _},
    time::{Duration, Instant},
};

use serde::Serialize;

/// How results are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// How results are to be printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Wanted {
    /// For people.
    Text,
    /// For programs.
    Json,
    /// For forges: SARIF 2.1.0, of `check` alone.
    Sarif,
}

/// Colours, by what they mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tone {
    /// All is well.
    Good,
    /// Something waits or is not complete.
    Warn,
    /// Something is refused or wrong.
    Bad,
}

impl Tone {
    /// The tone of a verdict or state.
    pub(crate) fn of(word: &str) -> Self {
        match word {
            "allow" | "approved" | "ready" | "success" | "consumed" => Self::Good,
            "deny" | "denied" | "failed" | "failure" | "expired" => Self::Bad,
            _ => Self::Warn,
        }
    }
}

/// Several things that are wrong at once: each gets a line.
#[derive(Debug)]
pub(crate) struct Several {
    /// One sentence each.
    pub(crate) problems: Vec<String>,
    /// What to do.
    pub(crate) advice: String,
}

impl std::fmt::Display for Several {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}; {}", self.problems.join("; "), self.advice)
    }
}

impl std::error::Error for Several {}

/// "1 thing", "2 things".
pub(crate) fn count(number: impl Into<u64>, thing: &str) -> String {
    let number = number.into();
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {thing}{plural}")
}

/// Makes a text harmless to a terminal.
pub(crate) fn clean(text: &str) -> String {
    let steers = |c: char| {
        c.is_control()
            || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if steers(c) {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    out
}

/// Text for people, built line by line.
#[derive(Debug)]
pub(crate) struct Text {
    text: String,
    colours: bool,
}

impl Text {
    /// Nothing yet; colours only where a terminal shows them and nobody said NO_COLOR.
    pub(crate) fn new() -> Self {
        let refused = env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self { text: String::new(), colours: io::stdout().is_terminal() && !refused }
    }

    /// One line.
    pub(crate) fn line(&mut self, line: impl AsRef<str>) {
        self.text.push_str(&clean(line.as_ref()));
        self.text.push('\n');
    }

    /// One line in a colour.
    pub(crate) fn toned(&mut self, tone: Tone, line: impl AsRef<str>) {
        let line = clean(line.as_ref());
        if self.colours {
            let code = match tone {
                Tone::Good => 32,
                Tone::Warn => 33,
                Tone::Bad => 31,
            };
            let _ = writeln!(self.text, "\u{1b}[{code}m{line}\u{1b}[0m");
        } else {
            self.text.push_str(&line);
            self.text.push('\n');
        }
    }

    /// A name and its value.
    pub(crate) fn field(&mut self, name: &str, value: impl std::fmt::Display) {
        self.line(format!("{name:<14} {value}"));
    }

    /// Indented lines.
    pub(crate) fn items<S: AsRef<str>>(&mut self, items: &[S]) {
        for item in items {
            self.line(format!("  {}", item.as_ref()));
        }
    }

    /// A heading with a list below it; nothing where the list is empty.
    pub(crate) fn list<S: AsRef<str>>(&mut self, heading: &str, items: &[S]) {
        if !items.is_empty() {
            self.line(heading);
            self.items(items);
        }
    }

    /// Rows in columns as wide as their widest cell.
    pub(crate) fn table(&mut self, header: &[&str], rows: Vec<Vec<String>>) {
        let mut all = vec![header.iter().map(|cell| (*cell).to_owned()).collect::<Vec<_>>()];
        all.extend(rows.into_iter().map(|row| row.iter().map(|cell| clean(cell)).collect()));
        let width = |column: usize| {
            all.iter().filter_map(|row| row.get(column)).map(|c| c.chars().count()).max()
        };
        let widths: Vec<usize> = (0..header.len()).map(|c| width(c).unwrap_or(0)).collect();
        for row in &all {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                let _ = write!(line, "{cell:<width$}  ");
            }
            self.text.push_str(line.trim_end());
            self.text.push('\n');
        }
    }

    /// Prints it to standard error, where the output proper is something else.
    pub(crate) fn print_aside(&self) {
        let _ = io::stderr().lock().write_all(self.text.as_bytes());
    }

    /// Prints it.
    ///
    /// # Errors
    /// When standard output is closed.
    pub(crate) fn print(&self) -> anyhow::Result<()> {
        emit(&self.text)
    }
}

/// Prints a text as it is.
///
/// # Errors
/// When standard output is closed.
pub(crate) fn emit(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()?;
    Ok(())
}

/// Prints a value as JSON.
///
/// # Errors
/// When standard output is closed.
pub(crate) fn json<T: Serialize + ?Sized>(value: &T) -> anyhow::Result<()> {
    emit(&format!("{}\n", serde_json::to_string_pretty(value)?))
}

/// Prints a value as one line of JSON.
///
/// # Errors
/// When standard output is closed.
pub(crate) fn json_line<T: Serialize + ?Sized>(value: &T) -> anyhow::Result<()> {
    emit(&format!("{}\n", serde_json::to_string(value)?))
}

/// How far long work is, on standard error, where that is a terminal.
#[derive(Debug)]
pub(crate) struct Progress {
    what: &'static str,
    shown: Option<Instant>,
    visible: bool,
}

impl Progress {
    /// Of work that handles so many `what`.
    pub(crate) fn new(what: &'static str) -> Self {
        Self { what, shown: None, visible: io::stderr().is_terminal() }
    }

    /// So many are done.
    pub(crate) fn at(&mut self, done: u64, total: u64) {
        let lately = self.shown.is_some_and(|at| at.elapsed() < Duration::from_millis(100));
        if self.visible && !lately {
            self.shown = Some(Instant::now());
            let _ = write!(io::stderr(), "\r{done} of {total} {}\u{1b}[K", self.what);
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.shown.is_some() {
            let _ = write!(io::stderr(), "\r\u{1b}[K");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_cannot_steer_the_terminal() {
        assert_eq!(clean("a\u{1b}[2Jb\nc"), "a\\u{1b}[2Jb\\nc");
        assert_eq!(clean("x\u{202e}y"), "x\\u{202e}y");
        assert_eq!(clean("R > τ, 日本"), "R > τ, 日本");
    }

    #[test]
    fn one_is_not_many() {
        assert_eq!(
            (count(1_u8, "approver").as_str(), count(2_u8, "approver").as_str()),
            ("1 approver", "2 approvers")
        );
    }

    #[test]
    fn columns_line_up() {
        let mut text = Text { text: String::new(), colours: false };
        let row = |a: &str, b: &str| vec![a.to_owned(), b.to_owned()];
        text.table(&["NAME", "N"], vec![row("long name", "1"), row("é\n", "2")]);
        assert_eq!(text.text, "NAME       N\nlong name  1\né\\n        2\n");
    }
}
