//! The operations composed from the traits.

use std::io::ErrorKind;

use octopii_vfs::{OpenMode, RealVfs, Vfs, create_dir_all_durable, read_file, write_file_durable};

#[test]
fn a_file_is_replaced_as_a_whole_and_leaves_no_temporary_one() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state");
    // The remains of an attempt that was cut short do not matter.
    RealVfs
        .open(&dir.path().join("state.tmp"), OpenMode::CreateNew)
        .unwrap()
        .write_all_at(b"half", 0)
        .unwrap();
    for content in ["one", "two, and longer", ""] {
        write_file_durable(&RealVfs, &path, content.as_bytes()).unwrap();
        assert_eq!(read_file(&RealVfs, &path, 100).unwrap(), content.as_bytes());
        assert_eq!(RealVfs.read_dir(dir.path()).unwrap().len(), 1);
    }
    // A directory cannot be replaced by a file.
    RealVfs.create_dir_all(&dir.path().join("taken/x")).unwrap();
    assert!(write_file_durable(&RealVfs, &dir.path().join("taken"), b"x").is_err());
    assert_eq!(RealVfs.read_dir(dir.path()).unwrap().len(), 2);
}

#[test]
fn reading_a_file_is_limited() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    write_file_durable(&RealVfs, &path, &[1; 10]).unwrap();
    assert_eq!(read_file(&RealVfs, &path, 10).unwrap(), [1; 10]);
    assert_eq!(read_file(&RealVfs, &path, 9).unwrap_err().kind(), ErrorKind::FileTooLarge);
    assert_eq!(read_file(&RealVfs, &dir.path().join("none"), 9).unwrap_err().kind(), ErrorKind::NotFound);
}

#[test]
fn directories_are_created_with_their_parents() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a/b/c");
    create_dir_all_durable(&RealVfs, &path).unwrap();
    create_dir_all_durable(&RealVfs, &path).unwrap();
    RealVfs.open(&path.join("file"), OpenMode::CreateNew).unwrap();
    let below_file = create_dir_all_durable(&RealVfs, &path.join("file"));
    assert_eq!(below_file.unwrap_err().kind(), ErrorKind::NotADirectory);
    std::os::unix::fs::symlink(&path, dir.path().join("link")).unwrap();
    create_dir_all_durable(&RealVfs, &dir.path().join("link")).unwrap();
}
