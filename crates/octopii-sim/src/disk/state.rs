//! The whole disk: files, directories, locks, space.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io;
use std::path::{Component, Path, PathBuf};

use rustix::io::Errno;

use super::content::Content;
use super::faults::{End, Faults, Operation};
use super::names::{Directory, Ino, ROOT};
use crate::{Power, Rng, Trace};

const DEFAULT_CAPACITY: u64 = 1 << 40;

#[derive(Debug)]
pub(super) enum Node {
    File(Content),
    Directory(Directory),
}

#[derive(Debug)]
pub(super) struct State {
    nodes: BTreeMap<Ino, Node>,
    next_ino: Ino,
    next_passage: u64,
    /// Open handles per file: a removed file lives on while one is open.
    handles: BTreeMap<Ino, u64>,
    locks: BTreeSet<Ino>,
    pub(super) capacity: u64,
    pub(super) faults: Faults,
    pub(super) ignores_syncs: bool,
    power: Power,
    rng: Rng,
    host: String,
    trace: Trace,
}

impl State {
    pub(super) fn new(seed: u64, host: &str, trace: Trace) -> Self {
        Self {
            nodes: BTreeMap::from([(ROOT, Node::Directory(Directory::default()))]),
            next_ino: ROOT + 1,
            next_passage: 0,
            handles: BTreeMap::new(),
            locks: BTreeSet::new(),
            capacity: DEFAULT_CAPACITY,
            faults: Faults::default(),
            ignores_syncs: false,
            power: Power::on(),
            rng: Rng::labelled(seed, "disk"),
            host: host.to_owned(),
            trace,
        }
    }

    pub(super) fn power(&self) -> &Power {
        &self.power
    }

    pub(super) fn record(&self, what: fmt::Arguments<'_>, payload: &[u8]) {
        self.trace.record(&self.host, what, payload);
    }

    /// Counts a call. Fails if this one was planned to fail, or is the one at which the boot ends.
    pub(super) fn call(&mut self, operation: Operation) -> io::Result<()> {
        if let Some(end) = self.faults.ends_at(operation) {
            let power = self.power.clone();
            match end {
                End::PowerCut => self.crash(),
                End::Kill => self.kill(),
            }
            power.check()?;
        }
        self.faults.call(operation)
    }

    // --- Names ---

    pub(super) fn resolve(&self, path: &Path) -> io::Result<Ino> {
        self.walk(path).map(|at| at.last().map_or(ROOT, |(ino, _)| *ino))
    }

    pub(super) fn canonicalize(&self, path: &Path) -> io::Result<PathBuf> {
        let names = self.walk(path)?;
        Ok(std::iter::once(OsStr::new("/")).chain(names.iter().map(|(_, name)| name.as_os_str())).collect())
    }

    /// The directory that holds (or would hold) the last name of `path`, and that name.
    pub(super) fn locate(&self, path: &Path) -> io::Result<(Ino, OsString)> {
        let Some(name) = path.file_name() else {
            return Err(if path.as_os_str().is_empty() { Errno::NOENT.into() } else { Errno::BUSY.into() });
        };
        let parent = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => self.resolve(parent)?,
            _ => ROOT,
        };
        self.directory(parent)?;
        Ok((parent, name.to_owned()))
    }

    pub(super) fn lookup(&self, directory: Ino, name: &OsStr) -> io::Result<Option<Ino>> {
        Ok(self.directory(directory)?.get(name))
    }

    pub(super) fn create_file(&mut self, directory: Ino, name: &OsStr) -> io::Result<Ino> {
        let ino = self.add_node(Node::File(Content::default()));
        self.directory_mut(directory)?.add(name, ino, None);
        Ok(ino)
    }

    pub(super) fn create_directory(&mut self, directory: Ino, name: &OsStr) -> io::Result<Ino> {
        let ino = self.add_node(Node::Directory(Directory::default()));
        self.directory_mut(directory)?.add(name, ino, None);
        Ok(ino)
    }

    pub(super) fn remove(&mut self, path: &Path) -> io::Result<()> {
        let (directory, name) = self.locate(path)?;
        let ino = self.lookup(directory, &name)?.ok_or(Errno::NOENT)?;
        if matches!(self.node(ino)?, Node::Directory(_)) {
            return Err(Errno::ISDIR.into());
        }
        self.directory_mut(directory)?.remove(&name, None);
        self.collect();
        Ok(())
    }

    pub(super) fn rename(&mut self, from: &Path, to: &Path, replace: bool) -> io::Result<()> {
        let (from_dir, from_name) = self.locate(from)?;
        let (to_dir, to_name) = self.locate(to)?;
        let ino = self.lookup(from_dir, &from_name)?.ok_or(Errno::NOENT)?;
        let target = self.lookup(to_dir, &to_name)?;
        if target.is_some() && !replace {
            return Err(Errno::EXIST.into());
        }
        if target == Some(ino) {
            return Ok(());
        }
        let moves_directory = matches!(self.node(ino)?, Node::Directory(_));
        if moves_directory && (to_dir == ino || self.contains(ino, to_dir)) {
            return Err(Errno::INVAL.into());
        }
        if let Some(target) = target {
            match self.node(target)? {
                Node::Directory(_) if !moves_directory => return Err(Errno::ISDIR.into()),
                Node::File(_) if moves_directory => return Err(Errno::NOTDIR.into()),
                Node::Directory(directory) if !directory.names().is_empty() => {
                    return Err(Errno::NOTEMPTY.into());
                }
                _ => {}
            }
        }
        if from_dir == to_dir {
            self.directory_mut(from_dir)?.rename(&from_name, &to_name, ino);
        } else {
            let passage = self.next_passage;
            self.next_passage += 1;
            self.directory_mut(to_dir)?.add(&to_name, ino, Some(passage));
            self.directory_mut(from_dir)?.remove(&from_name, Some(passage));
        }
        self.collect();
        Ok(())
    }

    pub(super) fn sync_file(&mut self, ino: Ino) -> io::Result<()> {
        if !self.ignores_syncs {
            self.file_mut(ino)?.sync();
        }
        Ok(())
    }

    pub(super) fn sync_directory(&mut self, ino: Ino) -> io::Result<()> {
        if self.ignores_syncs {
            return Ok(());
        }
        for passage in self.directory_mut(ino)?.sync() {
            for node in self.nodes.values_mut() {
                if let Node::Directory(directory) = node {
                    directory.sync_arrival(passage);
                }
            }
        }
        self.collect();
        Ok(())
    }

    pub(super) fn sync_everything(&mut self) -> io::Result<()> {
        let inodes: Vec<Ino> = self.nodes.keys().copied().collect();
        for ino in inodes {
            match self.nodes.get(&ino) {
                Some(Node::File(_)) => self.sync_file(ino)?,
                Some(Node::Directory(_)) => self.sync_directory(ino)?,
                // Nothing led to it any more.
                None => {}
            }
        }
        Ok(())
    }

    /// Part of every file's data is on the disk, and the rest never will be. Names are as uncertain as they were.
    pub(super) fn sync_of_everything_failed(&mut self) {
        for node in self.nodes.values_mut() {
            if let Node::File(content) = node {
                content.sync_failed(&mut self.rng);
            }
        }
    }

    // --- Nodes ---

    pub(super) fn node(&self, ino: Ino) -> io::Result<&Node> {
        self.nodes.get(&ino).ok_or_else(|| Errno::BADF.into())
    }

    pub(super) fn directory(&self, ino: Ino) -> io::Result<&Directory> {
        match self.node(ino)? {
            Node::Directory(directory) => Ok(directory),
            Node::File(_) => Err(Errno::NOTDIR.into()),
        }
    }

    pub(super) fn file(&self, ino: Ino) -> io::Result<&Content> {
        match self.node(ino)? {
            Node::File(content) => Ok(content),
            Node::Directory(_) => Err(Errno::ISDIR.into()),
        }
    }

    pub(super) fn file_mut(&mut self, ino: Ino) -> io::Result<&mut Content> {
        match self.nodes.get_mut(&ino) {
            Some(Node::File(content)) => Ok(content),
            Some(Node::Directory(_)) => Err(Errno::ISDIR.into()),
            None => Err(Errno::BADF.into()),
        }
    }

    pub(super) fn sync_failed(&mut self, ino: Ino) {
        if let Some(Node::File(content)) = self.nodes.get_mut(&ino) {
            content.sync_failed(&mut self.rng);
        }
    }

    pub(super) fn open_handle(&mut self, ino: Ino) {
        *self.handles.entry(ino).or_default() += 1;
    }

    pub(super) fn close_handle(&mut self, ino: Ino) {
        if let Some(count) = self.handles.get_mut(&ino) {
            *count -= 1;
            if *count == 0 {
                self.handles.remove(&ino);
                self.collect();
            }
        }
    }

    pub(super) fn try_lock(&mut self, ino: Ino) -> io::Result<()> {
        if self.locks.insert(ino) { Ok(()) } else { Err(Errno::WOULDBLOCK.into()) }
    }

    pub(super) fn unlock(&mut self, ino: Ino) {
        self.locks.remove(&ino);
    }

    // --- Space ---

    pub(super) fn free_space(&self) -> u64 {
        self.capacity.saturating_sub(self.used_beside(None))
    }

    /// Fails if file `ino` may not grow to use `wanted` bytes of disk.
    pub(super) fn check_space(&self, ino: Ino, wanted: u64) -> io::Result<()> {
        let grows = wanted > self.file(ino)?.used();
        if grows && self.used_beside(Some(ino)) + wanted > self.capacity {
            return Err(Errno::NOSPC.into());
        }
        Ok(())
    }

    fn used_beside(&self, except: Option<Ino>) -> u64 {
        let visible = self.reachable(|directory| directory.names().values().copied().collect());
        let in_use =
            |ino: &Ino| Some(*ino) != except && (visible.contains(ino) || self.handles.contains_key(ino));
        let used = |(ino, node): (&Ino, &Node)| match node {
            Node::File(content) if in_use(ino) => content.used(),
            _ => 0,
        };
        self.nodes.iter().map(used).sum()
    }

    // --- The end of a boot ---

    pub(super) fn crash(&mut self) {
        self.end_boot();
        let mut lost_arrivals = BTreeSet::new();
        for node in self.nodes.values_mut() {
            match node {
                Node::File(content) => content.crash(&mut self.rng),
                Node::Directory(directory) => lost_arrivals.extend(directory.choose_survivors(&mut self.rng)),
            }
        }
        for node in self.nodes.values_mut() {
            if let Node::Directory(directory) = node {
                directory.crash(&lost_arrivals);
            }
        }
        self.collect();
        self.record(format_args!("power cut"), &[]);
    }

    pub(super) fn kill(&mut self) {
        self.end_boot();
        self.collect();
        self.record(format_args!("process killed"), &[]);
    }

    fn end_boot(&mut self) {
        self.power.cut();
        self.power = Power::on();
        self.handles.clear();
        self.locks.clear();
    }

    pub(super) fn corrupt(&mut self, path: &Path, offset: u64, mask: u8) -> io::Result<()> {
        let ino = self.resolve(path)?;
        let content = self.file_mut(ino)?;
        let mut byte = [0];
        if content.read(&mut byte, offset) == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        content.write(&[byte[0] ^ mask], offset);
        content.sync();
        self.record(format_args!("corrupt {} at {offset}", path.display()), &[mask]);
        Ok(())
    }

    // --- Below ---

    /// Every step from the root to `path`.
    fn walk(&self, path: &Path) -> io::Result<Vec<(Ino, OsString)>> {
        if path.as_os_str().is_empty() {
            return Err(Errno::NOENT.into());
        }
        let mut at: Vec<(Ino, OsString)> = Vec::new();
        for component in path.components() {
            let here = self.directory(at.last().map_or(ROOT, |(ino, _)| *ino))?;
            match component {
                Component::Normal(name) => at.push((here.get(name).ok_or(Errno::NOENT)?, name.to_owned())),
                Component::ParentDir => {
                    at.pop();
                }
                Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
            }
        }
        Ok(at)
    }

    fn add_node(&mut self, node: Node) -> Ino {
        let ino = self.next_ino;
        self.next_ino += 1;
        self.nodes.insert(ino, node);
        ino
    }

    fn directory_mut(&mut self, ino: Ino) -> io::Result<&mut Directory> {
        match self.nodes.get_mut(&ino) {
            Some(Node::Directory(directory)) => Ok(directory),
            Some(Node::File(_)) => Err(Errno::NOTDIR.into()),
            None => Err(Errno::BADF.into()),
        }
    }

    fn contains(&self, ancestor: Ino, ino: Ino) -> bool {
        match self.nodes.get(&ancestor) {
            Some(Node::Directory(directory)) => {
                directory.names().values().any(|child| *child == ino || self.contains(*child, ino))
            }
            _ => false,
        }
    }

    /// Forgets what no name, now or after a crash, and no handle leads to.
    fn collect(&mut self) {
        let mut keep = self.reachable(|directory| directory.references().collect());
        keep.extend(self.handles.keys());
        self.nodes.retain(|ino, _| keep.contains(ino));
    }

    fn reachable(&self, children: impl Fn(&Directory) -> Vec<Ino>) -> BTreeSet<Ino> {
        let mut seen = BTreeSet::from([ROOT]);
        let mut todo = vec![ROOT];
        while let Some(ino) = todo.pop() {
            if let Some(Node::Directory(directory)) = self.nodes.get(&ino) {
                todo.extend(children(directory).into_iter().filter(|child| seen.insert(*child)));
            }
        }
        seen
    }
}
