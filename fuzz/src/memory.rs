//! A file system in memory.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use octopii_wal::vfs::{DirEntry, FileHandle, FileKind, LockGuard, Metadata, OpenMode, Vfs, VfsFile};

use crate::image::Files;

/// Files end here at the latest.
const MAX_LEN: usize = 8 << 20;

/// One flat directory, whatever its path.
#[derive(Debug, Default)]
pub struct Memory {
    files: Mutex<BTreeMap<PathBuf, Arc<File>>>,
}

#[derive(Debug, Default)]
struct File(Mutex<Vec<u8>>);

#[derive(Debug)]
struct Unlocked;

impl LockGuard for Unlocked {}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Memory {
    pub fn new(files: Files) -> Self {
        let files = files
            .into_iter()
            .map(|(name, content)| (PathBuf::from(name), Arc::new(File(Mutex::new(content)))));
        Self { files: Mutex::new(files.collect()) }
    }

    pub fn files(&self) -> Files {
        let name = |path: &Path| path.to_string_lossy().into_owned();
        lock(&self.files).iter().map(|(path, file)| (name(path), lock(&file.0).clone())).collect()
    }
}

fn name(path: &Path) -> io::Result<PathBuf> {
    Ok(path.file_name().ok_or(io::ErrorKind::InvalidInput)?.into())
}

impl Vfs for Memory {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<FileHandle> {
        let mut files = lock(&self.files);
        let name = name(path)?;
        let file = match (mode, files.get(&name)) {
            (OpenMode::CreateNew, Some(_)) => return Err(io::ErrorKind::AlreadyExists.into()),
            (OpenMode::CreateNew, None) => {
                let file = Arc::new(File::default());
                files.insert(name, Arc::clone(&file));
                file
            }
            (_, Some(file)) => Arc::clone(file),
            (_, None) => return Err(io::ErrorKind::NotFound.into()),
        };
        Ok(file)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut files = lock(&self.files);
        let file = files.remove(&name(from)?).ok_or(io::ErrorKind::NotFound)?;
        files.insert(name(to)?, file);
        Ok(())
    }

    fn rename_no_replace(&self, from: &Path, to: &Path) -> io::Result<()> {
        if lock(&self.files).contains_key(&name(to)?) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        self.rename(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        lock(&self.files).remove(&name(path)?).map(drop).ok_or(io::ErrorKind::NotFound.into())
    }

    fn create_dir_all(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn sync_dir(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn read_dir(&self, _: &Path) -> io::Result<Vec<DirEntry>> {
        let files = lock(&self.files);
        let entries = files.iter().map(|(name, file)| DirEntry {
            name: name.as_os_str().to_owned(),
            metadata: Metadata { kind: FileKind::File, len: lock(&file.0).len() as u64 },
        });
        Ok(entries.collect())
    }

    fn metadata(&self, path: &Path) -> io::Result<Metadata> {
        match lock(&self.files).get(&name(path)?) {
            Some(file) => Ok(Metadata { kind: FileKind::File, len: lock(&file.0).len() as u64 }),
            None => Ok(Metadata { kind: FileKind::Directory, len: 0 }),
        }
    }

    fn lock(&self, _: &Path) -> io::Result<Box<dyn LockGuard>> {
        Ok(Box::new(Unlocked))
    }

    fn free_space(&self, _: &Path) -> io::Result<u64> {
        Ok(u64::MAX)
    }

    fn canonicalize(&self, path: &Path) -> io::Result<PathBuf> {
        Ok(path.to_owned())
    }
}

impl VfsFile for File {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let data = lock(&self.0);
        let start = offset.min(data.len() as u64) as usize;
        let n = buf.len().min(data.len() - start);
        buf[..n].copy_from_slice(&data[start..start + n]);
        Ok(n)
    }

    fn write_all_at(&self, new: &[u8], offset: u64) -> io::Result<()> {
        let end = usize::try_from(offset).ok().and_then(|at| at.checked_add(new.len()));
        let end = end.filter(|end| *end <= MAX_LEN).ok_or(io::ErrorKind::StorageFull)?;
        let mut data = lock(&self.0);
        if data.len() < end {
            data.resize(end, 0);
        }
        data[end - new.len()..end].copy_from_slice(new);
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(lock(&self.0).len() as u64)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let len =
            usize::try_from(len).ok().filter(|len| *len <= MAX_LEN).ok_or(io::ErrorKind::StorageFull)?;
        lock(&self.0).resize(len, 0);
        Ok(())
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        if len > MAX_LEN as u64 { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }
}
