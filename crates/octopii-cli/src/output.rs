//! What is printed: lines for people, or JSON for programs.

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};

use serde_json::{Value, json};

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

    /// A result: one line for people, one object for programs.
    pub(crate) fn result(self, line: impl Display, value: &Value) {
        if self.json { print(value) } else { print(line) }
    }

    /// A line for people only.
    pub(crate) fn line(self, line: impl Display) {
        if !self.json {
            print(line);
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
        // The reader has left (`octopii … | head`): that is no failure of ours, and nobody wants the rest.
        if e.kind() == io::ErrorKind::BrokenPipe {
            std::process::exit(0);
        }
    }
}

/// Bytes as people read them.
pub(crate) fn bytes(n: u64) -> String {
    indicatif::BinaryBytes(n).to_string()
}
