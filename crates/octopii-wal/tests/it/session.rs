//! A stretch of a log's life between two crashes, followed by a model.

use std::collections::BTreeMap;

use octopii_wal::{Cursor, Durability, Error, Inspection, OpenError, Options, Ticket, Topic, WriteAheadLog};

use crate::disk::Disk;
use crate::model::{self, Action, CURSORS, Change, Model, Raw, TOPICS};
use crate::seeds;

/// Where the log of every session is.
pub(crate) const DIR: &str = "/wal";

/// All states that a log may be in after a crash.
#[derive(Debug, Clone)]
pub(crate) struct History {
    /// The model after every change called. A crash leaves one from `acknowledged` on.
    pub(crate) models: Vec<Model>,
    /// The last one that was acknowledged, or shown after a recovery.
    pub(crate) acknowledged: usize,
}

impl History {
    pub(crate) fn new() -> Self {
        Self { models: vec![Model::new()], acknowledged: 0 }
    }

    /// What was possible at a moment with this note.
    pub(crate) fn at(&self, (called, acknowledged): (usize, usize)) -> Self {
        Self { models: self.models[acknowledged..=called].to_vec(), acknowledged: 0 }
    }

    pub(crate) fn last(&self) -> &Model {
        self.models.last().unwrap()
    }

    pub(crate) fn note(&self) -> (usize, usize) {
        (self.models.len() - 1, self.acknowledged)
    }

    /// What a log holds must be one of the possible states. From now on it is the only one.
    pub(crate) fn settle(&mut self, found: &Model) -> Result<(), Failure> {
        let at = (self.acknowledged..self.models.len()).rfind(|k| self.models[*k] == *found);
        let Some(at) = at else {
            let possible: Vec<_> = self.models[self.acknowledged..].iter().map(model::summary).collect();
            let earlier = self.models[..self.acknowledged].iter().any(|m| m == found);
            return Err(Failure::Wrong(format!(
                "{}\n  found:    {}\n  possible: {}",
                if earlier { "acknowledged operations are lost" } else { "a state that never was" },
                model::summary(found),
                possible.join("\n            ")
            )));
        };
        self.models.push(self.models[at].clone());
        self.acknowledged = self.models.len() - 1;
        Ok(())
    }
}

#[derive(Debug)]
pub(crate) enum Failure {
    Open(OpenError),
    Log(Error),
    /// The log did something else than the model.
    Wrong(String),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Log(error)
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Open(e) => write!(f, "opening failed: {e}"),
            Self::Log(e) => write!(f, "the log failed: {e}"),
            Self::Wrong(what) => f.write_str(what),
        }
    }
}

#[derive(Debug)]
pub(crate) struct Session<'a> {
    disk: &'a Disk,
    options: Options,
    pub(crate) history: &'a mut History,
    log: Option<WriteAheadLog>,
    topics: BTreeMap<usize, Topic>,
    cursors: BTreeMap<(usize, usize), Cursor>,
    /// With the number of the model whose durability each stands for.
    tickets: Vec<(usize, Ticket)>,
}

impl<'a> Session<'a> {
    /// Opens the log and checks what it holds.
    pub(crate) fn open(disk: &'a Disk, options: Options, history: &'a mut History) -> Result<Self, Failure> {
        let options = Options { vfs: disk.vfs(), ..options };
        let (topics, cursors, tickets) = (BTreeMap::new(), BTreeMap::new(), Vec::new());
        let mut session = Self { disk, options, history, log: None, topics, cursors, tickets };
        session.reopen()?;
        Ok(session)
    }

    fn reopen(&mut self) -> Result<(), Failure> {
        self.disk.note(self.history.note());
        // Salts that repeat would hide what they are for.
        self.options.seed = self.options.seed.map(|seed| seeds::mix(seed, 1));
        let log = WriteAheadLog::open(DIR, self.options.clone()).map_err(Failure::Open)?;
        // A read may fail once.
        let found = model::observe(&log).or_else(|error| match error {
            Error::Io { .. } => model::observe(&log),
            other => Err(other),
        })?;
        self.log = Some(log);
        self.history.settle(&found)?;
        self.disk.note(self.history.note());
        Ok(())
    }

    pub(crate) fn log(&self) -> &WriteAheadLog {
        self.log.as_ref().unwrap()
    }

    fn acknowledge(&mut self, model: usize) {
        self.history.acknowledged = self.history.acknowledged.max(model);
        self.disk.note(self.history.note());
    }

    pub(crate) fn run(&mut self, actions: &[Action]) -> Result<(), Failure> {
        actions.iter().try_for_each(|action| self.step(action))
    }

    pub(crate) fn step(&mut self, action: &Action) -> Result<(), Failure> {
        let outcome = self.take_step(action);
        if seeds::is_repeating() {
            let (called, acknowledged) = self.history.note();
            let failure = outcome.as_ref().err().map(|e| format!(": {e}")).unwrap_or_default();
            println!(
                "{action:?}{failure}\n    {called} called, {acknowledged} acknowledged, call {}",
                self.disk.calls()
            );
        }
        outcome
    }

    fn take_step(&mut self, action: &Action) -> Result<(), Failure> {
        match action {
            Action::One(raw) => self.change(std::slice::from_ref(raw), false)?,
            Action::Batch(raws) => self.change(raws, true)?,
            Action::Wait(back) if !self.tickets.is_empty() => {
                let at = self.tickets.len() - 1 - back.min(&(self.tickets.len() - 1));
                let (model, ticket) = self.tickets.remove(at);
                ticket.wait()?;
                self.acknowledge_if_synced(model);
            }
            Action::Wait(_) => {}
            Action::Forget => self.tickets.clear(),
            Action::Sync => self.sync()?,
            Action::Check => self.check()?,
            Action::Reopen { close } => {
                let last = self.history.models.len() - 1;
                if *close {
                    self.log().close()?;
                    self.acknowledge(last);
                }
                self.tickets.clear();
                self.topics.clear();
                self.cursors.clear();
                let failures = self.disk.failures();
                self.log = None;
                // Dropping a log closes it, but does not tell how that went.
                if self.disk.failures() == failures {
                    self.acknowledge(last);
                }
                self.reopen()?;
            }
        }
        // A ticket that says it is done is an acknowledgement, whether anybody waits for it or not.
        let mut done = None;
        self.tickets.retain(|(model, ticket)| {
            let is_done = ticket.is_done();
            if is_done {
                done = done.max(Some(*model));
            }
            !is_done
        });
        if let Some(model) = done {
            self.acknowledge_if_synced(model);
        }
        Ok(())
    }

    fn acknowledge_if_synced(&mut self, model: usize) {
        if self.options.durability == Durability::Synced {
            self.acknowledge(model);
        }
    }

    fn change(&mut self, raws: &[Raw], as_batch: bool) -> Result<(), Failure> {
        // What cursors hand out depends on what came before, so a batch acknowledges first.
        let is_acknowledgement = |raw: &&Raw| matches!(raw, Raw::Acknowledge(..));
        let mut model = self.history.last().clone();
        let mut changes = Vec::new();
        for raw in raws.iter().filter(is_acknowledgement) {
            let Raw::Acknowledge(t, c, bytes, n) = *raw else { continue };
            let upto = self.take_from_cursor(t, c, bytes, n)?;
            model = self.history.last().clone();
            changes.push(Change::Acknowledge(t, c, upto));
        }
        changes.iter().for_each(|change| model::apply(&mut model, change));
        for raw in raws.iter().filter(|raw| !is_acknowledgement(raw)) {
            let change = model::resolve(raw, &model);
            if as_batch && matches!(change, Change::RemoveCursor(..) | Change::PurgeAcknowledged(_)) {
                continue;
            }
            model::apply(&mut model, &change);
            changes.push(change);
        }
        self.history.models.push(model);
        self.disk.note(self.history.note());
        let ticket = if as_batch { self.batch(&changes)? } else { self.one(&changes[0])? };
        self.tickets.push((self.history.models.len() - 1, ticket));
        Ok(())
    }

    fn topic(&mut self, t: usize) -> Result<Topic, Error> {
        if !self.topics.contains_key(&t) {
            let topic = self.log().topic(TOPICS[t])?;
            self.topics.insert(t, topic);
        }
        Ok(self.topics[&t].clone())
    }

    fn one(&mut self, change: &Change) -> Result<Ticket, Error> {
        let topic = self.topic(change.topic())?;
        match change {
            Change::Append(_, entry) => topic.append(entry.clone()),
            Change::Truncate(_, from) => topic.truncate(*from),
            Change::Purge(_, to) => topic.purge(*to),
            Change::Metadata(_, key, value) => topic.set_metadata(key, value.clone()),
            Change::Acknowledge(t, c, upto) => self.cursors[&(*t, *c)].ack(*upto),
            Change::RemoveCursor(t, c) => {
                self.cursors.remove(&(*t, *c));
                topic.remove_cursor(CURSORS[*c])
            }
            Change::PurgeAcknowledged(_) => topic.purge_acknowledged(),
            Change::OpenCursor(..) => unreachable!("opening a cursor gives no ticket"),
        }
    }

    fn batch(&mut self, changes: &[Change]) -> Result<Ticket, Error> {
        let mut batch = self.log().batch();
        for change in changes {
            let topic = self.topic(change.topic())?;
            match change {
                Change::Append(_, entry) => batch.append(&topic, entry.clone()),
                Change::Truncate(_, from) => batch.truncate(&topic, *from),
                Change::Purge(_, to) => batch.purge(&topic, *to),
                Change::Metadata(_, key, value) => batch.set_metadata(&topic, key, value.clone()),
                Change::Acknowledge(t, c, upto) => batch.ack(&self.cursors[&(*t, *c)], *upto),
                _ => unreachable!("not for batches"),
            };
        }
        self.log().commit(batch)
    }

    /// Has a cursor hand out entries, checks them, and returns up to where they are done, as `n` has it.
    fn take_from_cursor(&mut self, t: usize, c: usize, bytes: usize, n: u64) -> Result<u64, Failure> {
        let mut model = self.history.last().clone();
        model::apply(&mut model, &Change::OpenCursor(t, c));
        if model != *self.history.last() {
            self.history.models.push(model);
            self.disk.note(self.history.note());
        }
        if !self.cursors.contains_key(&(t, c)) {
            let cursor = self.topic(t)?.cursor(CURSORS[c])?;
            self.cursors.insert((t, c), cursor);
        }
        let cursor = self.cursors.get_mut(&(t, c)).unwrap();
        let batch = cursor.next_batch(bytes)?;
        let (from, to) = (cursor.acknowledged(), cursor.position());
        let model = self.history.last()[TOPICS[t]].clone();
        for (index, entry) in &batch {
            let expected = index.checked_sub(model.first).and_then(|i| model.entries.get(i as usize));
            if expected != Some(entry) {
                return Err(Failure::Wrong(format!("a cursor hands out a wrong entry {index}")));
            }
        }
        // What was handed out is durable if the log promises durability.
        if let (Some((index, entry)), Durability::Synced) = (batch.last(), self.options.durability) {
            let has_it = |model: &Model| {
                let topic = model.get(TOPICS[t]);
                topic.and_then(|m| m.entries.get(index.checked_sub(m.first)? as usize)) == Some(entry)
            };
            let mut since = self.history.models.len() - 1;
            while since > self.history.acknowledged && has_it(&self.history.models[since - 1]) {
                since -= 1;
            }
            self.acknowledge(since);
        }
        Ok(from + n % (to.max(from) - from + 1))
    }

    /// After an operation or a ticket failed for want of space, nothing that waited is in the log. Returns whether the log
    /// is still open.
    pub(crate) fn fall_back_after_full_disk(&mut self) -> Result<bool, Failure> {
        if matches!(self.log().commit(self.log().batch()), Err(Error::Closed)) {
            return Ok(false);
        }
        // Cursors may have come into being with what failed.
        self.cursors.clear();
        // Some of what waits may still find room; the rest fails now.
        let mut written = 0;
        for (model, ticket) in self.tickets.drain(..) {
            match ticket.wait() {
                Ok(()) if self.options.durability == Durability::Synced => written = written.max(model),
                Ok(()) | Err(Error::StorageFull { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.acknowledge(written);
        let found = model::observe(self.log())?;
        let History { models, acknowledged } = &*self.history;
        let Some(at) = (*acknowledged..models.len()).rfind(|k| models[*k] == found) else {
            let found = model::summary(&found);
            return Err(Failure::Wrong(format!(
                "a full disk took what was acknowledged, or left a part: {found}"
            )));
        };
        self.history.models.truncate(at + 1);
        self.disk.note(self.history.note());
        Ok(true)
    }

    /// Waits for everything so far.
    pub(crate) fn sync(&mut self) -> Result<(), Failure> {
        let last = self.history.models.len() - 1;
        self.log().sync()?.wait()?;
        self.acknowledge(last);
        Ok(())
    }

    /// Compares everything with the model.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        let (found, expected) = (model::observe(self.log())?, self.history.last());
        if found == *expected {
            return Ok(());
        }
        let (found, expected) = (model::summary(&found), model::summary(expected));
        Err(Failure::Wrong(format!("the open log differs\n  found:    {found}\n  expected: {expected}")))
    }
}

/// What inspecting a log before it was opened told must agree with what opening it shows.
pub(crate) fn check_inspection(found: &Inspection, shown: &Model) -> Result<(), Failure> {
    for topic in &found.topics {
        let shown = shown.get(&topic.name).cloned().unwrap_or_default();
        if (topic.first_index, topic.next_index) != (shown.first, shown.next()) {
            return Err(Failure::Wrong(format!("inspection told {topic:?}")));
        }
    }
    match shown.keys().find(|name| found.topics.iter().all(|t| t.name != **name)) {
        Some(name) => Err(Failure::Wrong(format!("inspection did not tell of topic {name}"))),
        None => Ok(()),
    }
}
