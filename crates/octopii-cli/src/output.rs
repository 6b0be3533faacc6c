//! What is printed: lines for people, or JSON for programs.

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use octopii::Metadata;
use serde_json::{Value, json};
use tokio::sync::Notify;

use crate::exit::Failure;

/// Where results go. Diagnostics and progress go to standard error.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    json: bool,
}

impl Output {
    pub(crate) fn new(json: bool) -> Self {
        Self { json }
    }

    /// Whether progress bars make sense: people watch, on a terminal.
    pub(crate) fn interactive(self) -> bool {
        !self.json && io::stderr().is_terminal()
    }

    /// A result: a line for people, one object for programs. Neither drives a terminal, whatever a peer has put into it.
    pub(crate) fn result(self, line: impl Display, value: &Value) {
        print(self.rendered(line, value));
    }

    fn rendered(self, line: impl Display, value: &Value) -> String {
        if self.json { plain(&value.to_string()) } else { visible(&line.to_string()) }
    }

    /// A text that is itself the result: as it is where it is kept or read by programs, but not on a terminal.
    pub(crate) fn text(self, text: &str, value: &Value) {
        if self.json || io::stdout().is_terminal() { self.result(text, value) } else { print(text) }
    }

    /// A result that is JSON for everybody: one line for programs, indented for people.
    pub(crate) fn value(self, value: &Value) {
        print(plain(&if self.json { value.to_string() } else { format!("{value:#}") }));
    }

    /// A line for people only.
    pub(crate) fn line(self, line: impl Display) {
        if !self.json {
            print(visible(&line.to_string()));
        }
    }

    /// Whether anybody can read what is printed from now on.
    pub(crate) fn is_open(self) -> bool {
        !CLOSED.load(Ordering::Relaxed)
    }

    /// What came beside an answer, on standard error: text where it is text, hexadecimal digits otherwise.
    pub(crate) fn metadata(self, metadata: &Metadata) {
        for (name, value) in metadata.iter() {
            let text = std::str::from_utf8(value).ok().filter(|text| !text.chars().any(char::is_control));
            let hex = || value.iter().map(|b| format!("{b:02x}")).collect::<String>();
            let line = match (self.json, text) {
                (true, Some(text)) => json!({ "metadata": name, "value": text }).to_string(),
                (true, None) => json!({ "metadata": name, "value_hex": hex() }).to_string(),
                (false, Some(text)) => format!("{name}: {text}"),
                (false, None) => format!("{name}: 0x{}", hex()),
            };
            // As with failures: nobody is left to tell.
            let _ = writeln!(io::stderr(), "{line}");
        }
    }

    /// Why the command failed, on standard error.
    pub(crate) fn failure(self, failure: &Failure) {
        let line = if self.json {
            json!({ "error": failure.to_string(), "code": failure.code() }).to_string()
        } else {
            format!("octopii: {failure}")
        };
        // Nobody is left to tell when standard error is closed; the exit code still speaks.
        let _ = writeln!(io::stderr(), "{line}");
    }
}

fn print(line: impl Display) {
    let mut out = io::stdout().lock();
    if let Err(e) = writeln!(out, "{line}").and_then(|()| out.flush()) {
        CLOSED.store(true, Ordering::Relaxed);
        if e.kind() == io::ErrorKind::BrokenPipe {
            READER_LEFT.notify_one();
        } else {
            let _ = LOST.set(e);
        }
    }
}

/// A text whose control characters are shown, not obeyed. It keeps its lines.
fn visible(text: &str) -> String {
    let mut visible = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() && c != '\n' { visible.extend(c.escape_default()) } else { visible.push(c) }
    }
    visible
}

/// JSON in which nothing drives a terminal. Its writer escapes the controls that JSON asks for, but neither DEL nor those beyond,
/// of which one (CSI) begins commands; they can stand in strings only, where the escape means the same.
fn plain(json: &str) -> String {
    let mut plain = String::with_capacity(json.len());
    for c in json.chars() {
        if c.is_control() && c != '\n' {
            plain.push_str(&format!("\\u{:04x}", u32::from(c)));
        } else {
            plain.push(c);
        }
    }
    plain
}

/// Whether nothing more can be printed: long output may stop.
static CLOSED: AtomicBool = AtomicBool::new(false);

static READER_LEFT: Notify = Notify::const_new();

/// Ends when the reader has left (`octopii … | head`): that is no failure, and nobody wants the rest.
pub(crate) async fn reader_left() {
    READER_LEFT.notified().await;
}

static LOST: OnceLock<io::Error> = OnceLock::new();

/// The first error that kept something from being printed to who still reads.
pub(crate) fn lost() -> Option<Failure> {
    LOST.get().map(|e| Failure::failed(format!("cannot write to standard output: {e}")))
}

/// Bytes as people read them.
pub(crate) fn bytes(n: u64) -> String {
    indicatif::BinaryBytes(n).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_is_printed_drives_the_terminal() {
        let told = "a\u{1b}]0;x\u{7}\u{9b}2J\u{7f}\r\u{8}\u{85}\u{0}ä\nb";
        for json in [false, true] {
            let shown = Output::new(json).rendered(format_args!("role {told:<20}"), &json!({ "role": told }));
            assert!(shown.chars().all(|c| !c.is_control() || c == '\n'), "{shown:?}");
            assert!(shown.contains('ä'), "{shown}");
            assert_eq!(shown.lines().count(), if json { 1 } else { 2 });
        }
        assert_eq!(visible("\u{9b}2J\u{7f}\t\n\n"), "\\u{9b}2J\\u{7f}\\t\n\n");
    }

    #[test]
    fn what_a_peer_answers_cannot_drive_the_terminal() {
        let value = json!({ "na\u{9b}me": ["\u{9b}2J", "\u{1b}[2J", "\u{7f}\n\t", "tä"] });
        for text in [value.to_string(), format!("{value:#}")] {
            let shown = plain(&text);
            assert!(shown.chars().all(|c| !c.is_control() || c == '\n'), "{shown:?}");
            assert_eq!(serde_json::from_str::<Value>(&shown).unwrap(), value, "the same value");
        }
    }
}
