//! Names in a tree: which are taken, and how they are shown.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::name::TEMPORARY_PREFIX;

/// Longest name of an entry in bytes; file systems end there too.
pub(crate) const MAX_NAME: usize = 255;

/// Checks that `name` is one plain component of a path, harmless in a listing, and not Octopii's own.
///
/// More is allowed than for a single file, since a tree should arrive as it is: any bytes but control characters, also what
/// is not UTF-8, backslashes and colons.
pub(crate) fn check_entry_name(name: &[u8]) -> Result<(), &'static str> {
    if name.is_empty() {
        return Err("the name is empty");
    }
    if name.len() > MAX_NAME {
        return Err("the name is longer than 255 bytes");
    }
    if name == b"." || name == b".." {
        return Err("the name stands for a directory");
    }
    if name.iter().any(|&b| b == b'/' || b < 0x20 || b == 0x7f) {
        return Err("the name contains a separator or control characters");
    }
    // Control characters of two bytes.
    if name.windows(2).any(|w| w[0] == 0xc2 && (0x80..0xa0).contains(&w[1])) {
        return Err("the name contains control characters");
    }
    if name.starts_with(TEMPORARY_PREFIX.as_bytes()) {
        return Err("the name begins like Octopii's own files");
    }
    Ok(())
}

/// Whether a link that lies `depth` directories below the root stays within it: relative, first as many `..` as there are
/// directories to leave at the most, then plain names only. A `..` behind a name could leave through another link.
pub(crate) fn stays_inside(target: &[u8], depth: usize) -> bool {
    if target.is_empty() || target.contains(&0) {
        return false;
    }
    let (mut up, mut named) = (0, false);
    for part in target.split(|b| *b == b'/') {
        match part {
            b".." if named => return false,
            b".." => up += 1,
            b"." => {}
            // An absolute path begins with an empty part.
            b"" => return false,
            _ => named = true,
        }
    }
    up <= depth
}

/// A path as it may be shown on a terminal: control characters, characters that disguise text and bytes that are not UTF-8
/// are escaped.
pub fn shown_path(path: &Path) -> String {
    shown(path)
}

pub(crate) fn shown(path: &Path) -> String {
    let mut out = String::new();
    for chunk in path.as_os_str().as_bytes().utf8_chunks() {
        for c in chunk.valid().chars() {
            if c.is_control() || crate::name::is_reordering(c) || c == '\\' {
                out.extend(c.escape_default());
            } else {
                out.push(c);
            }
        }
        for byte in chunk.invalid() {
            out.push_str(&format!("\\x{byte:02x}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsStr;

    #[test]
    fn odd_names_pass_and_hostile_ones_do_not() {
        let long = [b'x'; 255];
        for name in
            [&b"a"[..], b"..a", b"a:b", b"a\\b", b"\xff\xfe", "\u{e9}".as_bytes(), b" ", b"-rf", &long]
        {
            assert_eq!(check_entry_name(name), Ok(()), "{name:?}");
        }
        let long = [b'x'; 256];
        for name in [
            &b""[..],
            b".",
            b"..",
            b"/",
            b"a/b",
            b"/etc",
            b"a\0b",
            b"a\nb",
            b"\x1b[2J",
            b"\x7f",
            "\u{9b}31m".as_bytes(),
            b".octopii-trees",
            b".octopii-0.part",
            &long,
        ] {
            assert!(check_entry_name(name).is_err(), "{name:?}");
        }
    }

    #[test]
    fn links_stay_inside() {
        for (target, depth) in
            [(&b"a"[..], 0), (b"a/b", 0), (b"../a", 1), (b"../../a/b", 2), (b"./a", 0), (b"..", 1)]
        {
            assert!(stays_inside(target, depth), "{target:?}");
        }
        for (target, depth) in [
            (&b""[..], 3),
            (b"/a", 3),
            (b"..", 0),
            (b"../a", 0),
            (b"../../a", 1),
            (b"a/..", 3),
            (b"a/../../b", 3),
            (b"../a/../..", 3),
            (b"a//b", 0),
            (b"a\0", 0),
            (b"//", 5),
        ] {
            assert!(!stays_inside(target, depth), "{target:?}");
        }
    }

    #[test]
    fn what_is_shown_cannot_drive_a_terminal() {
        let path = Path::new(OsStr::from_bytes(b"a/\x1b[2Jb\xff\\x\xe2\x80\xae/ok\xc3\xa9"));
        assert_eq!(shown(path), "a/\\u{1b}[2Jb\\xff\\\\x\\u{202e}/ok\u{e9}");
    }
}
