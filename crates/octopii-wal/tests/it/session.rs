//! A stretch of a log's life between two crashes, followed by a model.

use std::collections::BTreeMap;

use octopii_wal::{Durability, Error, Inspection, OpenError, Options, Ticket, Topic, WriteAheadLog};

use crate::disk::Disk;
use crate::model::{self, Action, Model, TOPICS};

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
    /// A call failed while the log was dropped, so nobody knows whether it closed.
    Dropped,
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
            Self::Dropped => f.write_str("the log was dropped and could not close"),
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
    /// With the number of the model whose durability each stands for.
    tickets: Vec<(usize, Ticket)>,
}

impl<'a> Session<'a> {
    /// Opens the log and checks what it holds.
    pub(crate) fn open(disk: &'a Disk, options: Options, history: &'a mut History) -> Result<Self, Failure> {
        let options = Options { vfs: disk.vfs(), ..options };
        let (topics, tickets) = (BTreeMap::new(), Vec::new());
        let mut session = Self { disk, options, history, log: None, topics, tickets };
        session.reopen()?;
        Ok(session)
    }

    fn reopen(&mut self) -> Result<(), Failure> {
        self.disk.note(self.history.note());
        // Salts that repeat would hide what they are for.
        self.options.seed = self.options.seed.map(|seed| crate::seeds::mix(seed, 1));
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
                let failures = self.disk.failures();
                self.log = None;
                // Dropping a log closes it, but does not tell how that went.
                if self.disk.failures() != failures {
                    return Err(Failure::Dropped);
                }
                self.acknowledge(last);
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

    fn change(&mut self, raws: &[model::Raw], as_batch: bool) -> Result<(), Failure> {
        let mut model = self.history.last().clone();
        let mut changes = Vec::new();
        for raw in raws {
            let change = model::resolve(raw, &model);
            model::apply(&mut model, &change);
            changes.push(change);
        }
        self.history.models.push(model);
        self.disk.note(self.history.note());
        let (log, topics) = (self.log.as_ref().unwrap(), &mut self.topics);
        let ticket = model::run(log, &changes, as_batch, |t| match topics.get(&t) {
            Some(topic) => Ok(topic.clone()),
            None => Ok(topics.entry(t).or_insert(log.topic(TOPICS[t])?).clone()),
        })?;
        self.tickets.push((self.history.models.len() - 1, ticket));
        Ok(())
    }

    /// After an operation or a ticket failed for want of space, nothing that waited is in the log. Returns whether the log
    /// is still open.
    pub(crate) fn fall_back_after_full_disk(&mut self) -> Result<bool, Failure> {
        if matches!(self.log().commit(self.log().batch()), Err(Error::Closed)) {
            return Ok(false);
        }
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
