//! How the command fails: one line for people, one code for programs.

use std::fmt;
use std::process::ExitCode;

use octopii::{Code, Status};

/// Shown at the end of `--help`.
pub(crate) const CODES: &str = "Exit codes: 0 done; 1 failed; 2 wrong usage; 3 the outcome is unknown (a change may have \
been made); 4 nobody could be reached; 5 the key does not exist; 130 stopped before the end.\nOCTOPII_LOG=debug logs to standard error.";

/// Why the command failed.
#[derive(Debug)]
pub(crate) struct Failure {
    kind: Kind,
    message: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Failed = 1,
    Unknown = 3,
    Unreachable = 4,
    NoSuchKey = 5,
    Stopped = 130,
}

impl Failure {
    pub(crate) fn failed(message: impl fmt::Display) -> Self {
        Self { kind: Kind::Failed, message: one_line(message) }
    }

    pub(crate) fn unreachable(message: impl fmt::Display) -> Self {
        Self { kind: Kind::Unreachable, message: one_line(message) }
    }

    /// Asked to stop (Ctrl-C) before the end.
    pub(crate) fn stopped(message: impl fmt::Display) -> Self {
        Self { kind: Kind::Stopped, message: one_line(message) }
    }

    pub(crate) fn is_stop(&self) -> bool {
        self.kind == Kind::Stopped
    }

    pub(crate) fn is_unreachable(&self) -> bool {
        self.kind == Kind::Unreachable
    }

    pub(crate) fn no_such_key(key: &str) -> Self {
        Self { kind: Kind::NoSuchKey, message: one_line(format!("no such key: {key}")) }
    }

    pub(crate) fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.code())
    }

    pub(crate) fn code(&self) -> u8 {
        self.kind as u8
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        let kind = match status.code {
            Code::Unavailable => Kind::Unreachable,
            code if code.is_outcome_unknown() => Kind::Unknown,
            _ => Kind::Failed,
        };
        Self { kind, message: one_line(status.message) }
    }
}

/// A message is one line, whatever a peer or a file name puts into it: control characters are shown, not obeyed.
pub(crate) fn one_line(message: impl fmt::Display) -> String {
    let mut line = String::new();
    for c in message.to_string().chars() {
        if c.is_control() { line.extend(c.escape_default()) } else { line.push(c) }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_cannot_drive_the_terminal() {
        let failure = Failure::failed("bad\u{1b}[2Jname\nnext");
        assert_eq!(failure.to_string(), "bad\\u{1b}[2Jname\\nnext");
    }

    #[test]
    fn codes_say_what_to_do() {
        for (code, exit) in [
            (Code::Unavailable, 4),
            (Code::DeadlineExceeded, 3),
            (Code::Unknown, 3),
            (Code::FailedPrecondition, 1),
        ] {
            assert_eq!(Failure::from(Status::new(code, "x")).code(), exit, "{code}");
        }
    }
}
