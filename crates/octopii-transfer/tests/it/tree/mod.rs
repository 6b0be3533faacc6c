//! Directories.

mod claims;
mod compressed;
mod hand;
mod hostile;
mod kept;
mod many;
pub(crate) mod recording;
mod rehearsal;
mod removal;
mod retry;
mod roundtrip;
mod safety;
mod source;
mod unpacking;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, channel};

use octopii_transfer::{ReceivedTree, TransferError, TreeInbox, TreeOptions, TreeReport};

use crate::nodes::Node;

/// What a test compares of a tree: kind, permission bits, time of the last change and content, by path.
pub(crate) type Picture = BTreeMap<PathBuf, (char, u32, (i64, i64), Vec<u8>)>;

/// Everything beneath `root` but links' times, which are not kept.
pub(crate) fn picture(root: &Path) -> Picture {
    let mut out = Picture::new();
    let mut todo = vec![PathBuf::new()];
    while let Some(path) = todo.pop() {
        let at = root.join(&path);
        let m = fs::symlink_metadata(&at).unwrap();
        let time = (m.mtime(), m.mtime_nsec());
        let mode = m.permissions().mode() & 0o7777;
        let seen = if m.is_dir() {
            todo.extend(fs::read_dir(&at).unwrap().map(|e| path.join(e.unwrap().file_name())));
            ('d', mode, time, Vec::new())
        } else if m.is_symlink() {
            ('l', 0, (0, 0), fs::read_link(&at).unwrap().into_os_string().into_encoded_bytes())
        } else {
            ('f', mode, time, fs::read(&at).unwrap())
        };
        out.insert(path, seen);
    }
    out
}

/// Writes a file and the directories above it.
pub(crate) fn put(root: &Path, path: &str, content: &[u8]) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

pub(crate) fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

impl Node {
    /// Receives trees of purpose "tree" into the inbox, as `adjust` says.
    pub(crate) fn open_trees(&self, adjust: impl FnOnce(TreeInbox) -> TreeInbox) -> Receiver<ReceivedTree> {
        let (tx, rx) = channel();
        let inbox = adjust(TreeInbox::new(self.inbox())).on_received(move |tree| {
            let _ = tx.send(tree);
        });
        self.transfer.receive_trees("tree", inbox);
        rx
    }

    pub(crate) fn tree(&self) -> PathBuf {
        let tree = self.dir.path().join("tree");
        fs::create_dir_all(&tree).unwrap();
        tree
    }

    pub(crate) async fn send_tree(&self, to: &Node) -> Result<TreeReport, TransferError> {
        self.transfer.send_tree(to.addr(), self.tree(), TreeOptions::new("tree")).await
    }
}

/// stored, unchanged, directories, not done
pub(crate) fn counts(report: &TreeReport) -> (u64, u64, u64, u64) {
    (report.stored, report.unchanged, report.directories, report.not_done)
}

/// Paths and reasons of what was not done.
pub(crate) fn undone(report: &TreeReport) -> Vec<(String, octopii_transfer::EntryFailure)> {
    report.undone.iter().map(|u| (octopii_transfer::shown_path(&u.path), u.why.failure)).collect()
}
