//! Files that hold what nobody else may have and what cannot be made again: an authority's key, an identity.

use std::io;
use std::path::Path;

use octopii_vfs::{OpenMode, Vfs};

/// Writes a secret to a new file that only its owner can read (mode 0600). An existing one is never replaced (`AlreadyExists`),
/// and after an error none is left. Durable when it returns, its name included.
pub fn write_secret(vfs: &dyn Vfs, path: &Path, text: &str) -> io::Result<()> {
    let file = vfs.open(path, OpenMode::CreateNew)?;
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let written = file
        .write_all_at(text.as_bytes(), 0)
        .and_then(|()| file.sync_data())
        .and_then(|()| vfs.sync_dir(directory));
    written.inspect_err(|_| {
        // If it cannot be removed either, the first error says why.
        let _ = vfs.remove_file(path);
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::path::PathBuf;
    use std::sync::Mutex;

    use octopii_vfs::{DirEntry, FileHandle, LockGuard, Metadata, RealVfs};

    use super::*;

    /// A disk that syncs directories, or cannot.
    #[derive(Debug)]
    struct Disk {
        works: bool,
        synced: Mutex<Vec<PathBuf>>,
    }

    impl Vfs for Disk {
        fn open(&self, path: &Path, mode: OpenMode) -> io::Result<FileHandle> {
            RealVfs.open(path, mode)
        }

        fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
            RealVfs.rename(from, to)
        }

        fn rename_no_replace(&self, from: &Path, to: &Path) -> io::Result<()> {
            RealVfs.rename_no_replace(from, to)
        }

        fn remove_file(&self, path: &Path) -> io::Result<()> {
            RealVfs.remove_file(path)
        }

        fn create_dir_all(&self, path: &Path) -> io::Result<()> {
            RealVfs.create_dir_all(path)
        }

        fn sync_dir(&self, path: &Path) -> io::Result<()> {
            self.synced.lock().expect("no panic while held").push(path.to_owned());
            if self.works { RealVfs.sync_dir(path) } else { Err(io::ErrorKind::StorageFull.into()) }
        }

        fn read_dir(&self, path: &Path) -> io::Result<Vec<DirEntry>> {
            RealVfs.read_dir(path)
        }

        fn metadata(&self, path: &Path) -> io::Result<Metadata> {
            RealVfs.metadata(path)
        }

        fn lock(&self, path: &Path) -> io::Result<Box<dyn LockGuard>> {
            RealVfs.lock(path)
        }

        fn free_space(&self, path: &Path) -> io::Result<u64> {
            RealVfs.free_space(path)
        }

        fn canonicalize(&self, path: &Path) -> io::Result<PathBuf> {
            RealVfs.canonicalize(path)
        }
    }

    #[test]
    fn a_secret_is_there_for_good_or_not_at_all() {
        let home = tempfile::tempdir().expect("a directory");
        let path = home.path().join("authority.pem");
        let disk = |works| Disk { works, synced: Mutex::default() };
        let failed = write_secret(&disk(false), &path, "secret").expect_err("its name is not durable");
        assert_eq!(failed.kind(), io::ErrorKind::StorageFull);
        assert!(!path.exists(), "what may be gone after a power cut was left as if it were there");

        let works = disk(true);
        write_secret(&works, &path, "secret").expect("written");
        assert_eq!(*works.synced.lock().expect("no panic while held"), [home.path()]);
        let mode = std::fs::metadata(&path).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);

        let taken = write_secret(&works, &path, "another").expect_err("it is not replaced");
        assert_eq!(taken.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(std::fs::read_to_string(&path).expect("still there"), "secret");
    }
}
