//! Every certificate that this node has issued, on disk before it is handed out: where a thief's is found.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use octopii_transport::{CertificateHash, NodeId, PeerRole};
use octopii_vfs::{Vfs, read_file, write_file_durable};

use super::IssuedBy;
use crate::data_dir::{DataDirError, Hold, io_error};

/// Certificates on the record. Beyond it the node that has most of them loses its oldest: one that has itself certified again and
/// again pushes out none but its own.
const MAX: usize = 8192;

/// More than the longest record.
const MAX_FILE: u64 = 4 << 20;

/// A node may have itself certified so often within [`WINDOW`].
const PER_WINDOW: usize = 60;

/// In seconds.
const WINDOW: u64 = 60;

/// One certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Issued {
    /// Seconds since 1970.
    pub(crate) at: u64,
    pub(crate) node_id: NodeId,
    pub(crate) role: PeerRole,
    pub(crate) by: IssuedBy,
    /// Who asked, from where; nobody did for this node's own.
    pub(crate) from: Option<SocketAddr>,
    pub(crate) certificate: CertificateHash,
}

/// `issued` in the data directory, replaced as a whole: what is there was whole once.
#[derive(Debug)]
pub(crate) struct IssuedRecord {
    vfs: Arc<dyn Vfs>,
    path: PathBuf,
    hold: Hold,
    kept: Kept,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Kept {
    /// In the order in which they were issued.
    issued: Vec<Issued>,
    /// Those that made room for others.
    forgotten: u64,
}

impl IssuedRecord {
    pub(crate) fn open(vfs: &Arc<dyn Vfs>, path: PathBuf) -> Result<Self, DataDirError> {
        let kept = match read_file(&**vfs, &path, MAX_FILE) {
            Ok(bytes) => Kept::from_bytes(&bytes).map_err(|what| DataDirError::Damaged {
                path: path.clone(),
                reason: format!("{what}; if there is no backup, move the file away to begin a new record"),
            })?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => Kept::default(),
            Err(source) => return Err(io_error(&path, source)),
        };
        Ok(Self { vfs: Arc::clone(vfs), path, hold: Hold::default(), kept })
    }

    /// Writes only while that holds.
    pub(crate) fn held_by(self, hold: Hold) -> Self {
        Self { hold, ..self }
    }

    /// Puts a certificate on the record: durable when this returns. One that is on it already stays as it is.
    pub(super) fn add(&mut self, issued: Issued) -> io::Result<()> {
        if self.kept.issued.iter().any(|known| known.certificate == issued.certificate) {
            return Ok(());
        }
        let mut next = self.kept.clone();
        next.issued.push(issued);
        if next.issued.len() > MAX {
            next.forget_one();
        }
        let _held = self.hold.take()?;
        write_file_durable(&*self.vfs, &self.path, next.to_text().as_bytes())?;
        // What cannot be kept has not happened.
        self.kept = next;
        Ok(())
    }

    /// Whether a node had so many certificates in the last minute that it must wait: each costs a write.
    pub(super) fn is_too_often(&self, node_id: NodeId, now: u64) -> bool {
        let recent =
            |issued: &&Issued| issued.node_id == node_id && issued.at <= now && now - issued.at < WINDOW;
        self.kept.issued.iter().rev().filter(recent).count() >= PER_WINDOW
    }

    pub(super) fn all(&self) -> &[Issued] {
        &self.kept.issued
    }

    pub(super) fn forgotten(&self) -> u64 {
        self.kept.forgotten
    }
}

const HEAD: &str = "octopii issued 1, forgotten ";
const SUM: &str = "crc32c ";

impl Kept {
    fn forget_one(&mut self) {
        let mut counts: BTreeMap<NodeId, usize> = BTreeMap::new();
        for issued in &self.issued {
            *counts.entry(issued.node_id).or_default() += 1;
        }
        let most = counts.values().max().copied();
        if let Some(oldest) =
            self.issued.iter().position(|issued| counts.get(&issued.node_id).copied() == most)
        {
            self.issued.remove(oldest);
            self.forgotten = self.forgotten.saturating_add(1);
        }
    }

    fn to_text(&self) -> String {
        let mut text = format!("{HEAD}{}\n", self.forgotten);
        for Issued { at, node_id, role, by, from, certificate } in &self.issued {
            let from = from.map_or_else(|| "-".to_owned(), |from| from.to_string());
            writeln!(text, "{at} {node_id} {role} {} {from} {certificate}", by.word()).expect("a text grows");
        }
        let sum = crc32c::crc32c(text.as_bytes());
        writeln!(text, "{SUM}{sum:08x}").expect("a text grows");
        text
    }

    /// Takes exactly what [`to_text`](Self::to_text) gives.
    fn from_bytes(bytes: &[u8]) -> Result<Self, &'static str> {
        let text = std::str::from_utf8(bytes).map_err(|_| "it is not text")?;
        let kept = Self::parse(text).ok_or("it is no record of certificates")?;
        // The sum, and every other spelling of what it says.
        if kept.to_text() == text { Ok(kept) } else { Err("its checksum does not hold") }
    }

    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.lines();
        let forgotten = lines.next()?.strip_prefix(HEAD)?.parse().ok()?;
        let mut issued = Vec::new();
        for line in lines {
            if line.starts_with(SUM) {
                return Some(Self { issued, forgotten });
            }
            if issued.len() >= MAX {
                return None;
            }
            issued.push(parse_line(line)?);
        }
        None
    }
}

fn parse_line(line: &str) -> Option<Issued> {
    let mut words = line.split(' ');
    let mut word = || words.next();
    let issued = Issued {
        at: word()?.parse().ok()?,
        node_id: word()?.parse().ok()?,
        role: word()?.parse().ok()?,
        by: IssuedBy::from_word(word()?)?,
        from: match word()? {
            "-" => None,
            from => Some(from.parse().ok()?),
        },
        certificate: word()?.parse().ok()?,
    };
    word().is_none().then_some(issued)
}

#[cfg(test)]
mod tests {
    use octopii_vfs::RealVfs;

    use super::*;

    fn issued(n: u64, node_id: NodeId) -> Issued {
        Issued {
            at: 1_700_000_000 + n,
            node_id,
            role: PeerRole::Member,
            by: if n == 0 { IssuedBy::Own } else { IssuedBy::Renewal },
            from: (n > 0).then(|| ([10, 0, 0, 1], 4701).into()),
            certificate: format!("{n:064x}").parse().unwrap(),
        }
    }

    fn open(dir: &tempfile::TempDir) -> Result<IssuedRecord, DataDirError> {
        IssuedRecord::open(&RealVfs::shared(), dir.path().join("issued"))
    }

    #[test]
    fn what_was_issued_is_there_after_a_restart_and_once_only() {
        let dir = tempfile::tempdir().unwrap();
        let mut record = open(&dir).unwrap();
        for n in [0, 1, 2, 1] {
            record.add(issued(n, 7)).unwrap();
        }
        let again = open(&dir).unwrap();
        assert_eq!(again.all(), [issued(0, 7), issued(1, 7), issued(2, 7)]);
        let text = std::fs::read_to_string(dir.path().join("issued")).unwrap();
        let line = format!("1700000001 7 member renewal 10.0.0.1:4701 {:064x}", 1);
        assert_eq!(text.lines().nth(2), Some(line.as_str()), "as documented");
        assert!(text.starts_with("octopii issued 1, forgotten 0\n1700000000 7 member own - 0000"), "{text}");
    }

    #[test]
    fn what_cannot_be_kept_has_not_happened() {
        let dir = tempfile::tempdir().unwrap();
        let mut record = open(&dir).unwrap();
        record.add(issued(1, 7)).unwrap();
        let away = dir.path().join("away");
        record.path = away.join("issued");
        record.add(issued(2, 7)).unwrap_err();
        assert_eq!(record.all(), [issued(1, 7)]);
        std::fs::create_dir(&away).unwrap();
        record.add(issued(2, 7)).unwrap();
        assert_eq!(record.all().len(), 2);
    }

    /// Torn, flipped, or written by somebody else: it is found, and nothing is taken for what it is not.
    #[test]
    fn every_cut_and_every_flipped_bit_is_found() {
        let mut kept = Kept::default();
        kept.issued.extend((0..4).map(|n| issued(n, n)));
        let whole = kept.to_text().into_bytes();
        assert_eq!(Kept::from_bytes(&whole), Ok(kept.clone()));
        for at in 0..whole.len() {
            assert!(Kept::from_bytes(&whole[..at]).is_err(), "cut at {at}");
            for bit in 0..8 {
                let mut wrong = whole.clone();
                wrong[at] ^= 1 << bit;
                assert!(Kept::from_bytes(&wrong).is_err(), "bit {bit} of byte {at}");
            }
        }
        let mut longer = whole.clone();
        longer.extend_from_slice(b"x\n");
        for wrong in
            [longer, vec![b'1'; 1 << 20], vec![b'\n'; 1 << 20], b"octopii issued 2, forgotten 0\n".to_vec()]
        {
            assert!(Kept::from_bytes(&wrong).is_err());
        }
        let dir = tempfile::tempdir().unwrap();
        let torn = &whole[..whole.len() - 1];
        write_file_durable(&RealVfs, &dir.path().join("issued"), torn).unwrap();
        let error = open(&dir).unwrap_err().to_string();
        assert!(error.contains("checksum") && error.contains("move the file away"), "{error}");
    }

    #[test]
    fn one_node_pushes_out_none_but_its_own() {
        let mut kept = Kept::default();
        kept.issued.extend((0..5).map(|n| issued(n, n)));
        kept.issued.extend((5..20).map(|n| issued(n, 3)));
        for _ in 0..14 {
            kept.forget_one();
        }
        assert_eq!(kept.forgotten, 14);
        let of = |node| kept.issued.iter().filter(|issued| issued.node_id == node).count();
        assert_eq!([0, 1, 2, 3, 4].map(of), [1, 1, 1, 2, 1]);
        assert_eq!(kept.issued.last(), Some(&issued(19, 3)), "the newest stays");
    }

    #[test]
    fn one_node_is_certified_so_often_only() {
        let dir = tempfile::tempdir().unwrap();
        let mut record = open(&dir).unwrap();
        record.kept.issued.extend((0..PER_WINDOW as u64).map(|n| Issued { at: 1000, ..issued(n, 7) }));
        assert!(record.is_too_often(7, 1000) && record.is_too_often(7, 1059));
        assert!(!record.is_too_often(7, 1060) && !record.is_too_often(8, 1000));
        // A clock that was set back keeps nobody waiting.
        assert!(!record.is_too_often(7, 999));
    }
}
