//! Which file names a stranger may choose.

/// Longest accepted name in bytes: file systems end at 255, and a taken name needs room for its ` (n)`.
const MAX_NAME: usize = 240;

/// How the temporary files of a receiver begin; no sender may choose such a name.
pub(crate) const TEMPORARY_PREFIX: &str = ".octopii-";

/// Checks that `name` is one plain path component that is safe to create, to list and to print.
///
/// Refused: the empty name, `.` and `..`, separators of any platform (`/`, `\`, and `:` as in `C:` or an alternate
/// stream), control characters (NUL, terminal escapes), invisible characters that reorder text on a screen, names longer
/// than 240 bytes, and names like Octopii's own temporary files. The error says what is wrong with the name.
pub fn check_file_name(name: &str) -> Result<(), &'static str> {
    if name.is_empty() {
        return Err("it is empty");
    }
    if name.len() > MAX_NAME {
        return Err("it is longer than 240 bytes");
    }
    if name == "." || name == ".." {
        return Err("it stands for a directory");
    }
    if name.contains(['/', '\\', ':']) {
        return Err("it contains a path separator");
    }
    if name.contains(char::is_control) {
        return Err("it contains control characters");
    }
    if name.contains(is_reordering) {
        return Err("it contains characters that disguise it on a screen");
    }
    if name.starts_with(TEMPORARY_PREFIX) {
        return Err("it begins like a temporary file of Octopii");
    }
    Ok(())
}

/// Bidirectional overrides and isolates, and line breaks that `is_control` does not count.
pub(crate) fn is_reordering(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// The `n`th name to try for a file that is called `name`: itself, then `name (1).ext`, `name (2).ext`, …
pub(crate) fn numbered(name: &str, n: u32) -> String {
    if n == 0 {
        return name.to_owned();
    }
    match name.rfind('.') {
        // A leading dot begins a hidden file, not an extension.
        Some(dot) if dot > 0 => format!("{} ({n}){}", &name[..dot], &name[dot..]),
        _ => format!("{name} ({n})"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_names_pass() {
        for name in ["a", "report.pdf", ".hidden", "…", "naïve file (1).txt", "..a", "a..", &"x".repeat(240)]
        {
            assert_eq!(check_file_name(name), Ok(()), "{name}");
        }
    }

    #[test]
    fn hostile_names_do_not() {
        let long = "x".repeat(241);
        let hostile = [
            "",
            ".",
            "..",
            "/",
            "/etc/passwd",
            "../up",
            "a/b",
            "a\\b",
            "C:",
            "a:b",
            "a\0b",
            "a\nb",
            "\x1b[31m",
            "a\x7f",
            "a\u{9b}b",
            "gpj.\u{202e}exe",
            "a\u{2028}b",
            ".octopii-0.part",
            &long,
        ];
        for name in hostile {
            assert!(check_file_name(name).is_err(), "{name:?} must be refused");
        }
    }

    #[test]
    fn numbers_go_before_the_extension() {
        assert_eq!(numbered("a.tar", 0), "a.tar");
        assert_eq!(numbered("a.tar", 2), "a (2).tar");
        assert_eq!(numbered("noext", 1), "noext (1)");
        assert_eq!(numbered(".bashrc", 1), ".bashrc (1)");
    }
}
