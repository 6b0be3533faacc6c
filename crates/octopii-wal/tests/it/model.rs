//! What a log should hold, and scripts that drive the log and the model alike.

use std::collections::BTreeMap;

use octopii_wal::{Error, Ticket, Topic, WriteAheadLog};

use crate::disk::Coin;

pub(crate) const TOPICS: [&str; 3] = ["a", "b", "c"];

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct TopicModel {
    pub(crate) first: u64,
    pub(crate) entries: Vec<Vec<u8>>,
    pub(crate) metadata: Option<Vec<u8>>,
}

pub(crate) type Model = BTreeMap<String, TopicModel>;

#[derive(Debug, Clone)]
pub(crate) enum Action {
    Append(usize, Vec<u8>),
    Truncate(usize, u64),
    Purge(usize, u64),
    Metadata(usize, Vec<u8>),
    /// These together.
    Batch(Vec<Action>),
    /// Wait for everything called so far.
    Wait,
}

/// A script of `n` actions.
pub(crate) fn script(seed: u64, n: usize) -> Vec<Action> {
    let mut coin = Coin(seed);
    let mut model = Model::new();
    let mut actions = Vec::new();
    for i in 0..n {
        let action = match coin.below(12) {
            0 => Action::Batch((0..3).map(|j| simple(&mut coin, &model, i * 10 + j)).collect()),
            1..=3 => Action::Wait,
            _ => simple(&mut coin, &model, i * 10),
        };
        apply(&mut model, &action);
        actions.push(action);
    }
    actions
}

fn simple(coin: &mut Coin, model: &Model, tag: usize) -> Action {
    let topic = coin.below(TOPICS.len() as u64) as usize;
    let state = model.get(TOPICS[topic]).cloned().unwrap_or_default();
    let len = state.entries.len() as u64;
    match coin.below(10) {
        0 => Action::Truncate(topic, state.first + coin.below(len + 2)),
        1 => Action::Purge(topic, state.first + coin.below(len + 3)),
        2 => Action::Metadata(topic, format!("m{tag}").into_bytes()),
        _ => {
            let size = [0, 10, 100, 700, 3000, 9000][coin.below(6) as usize];
            let mut entry = format!("{tag}/").into_bytes();
            entry.resize(entry.len() + size, tag as u8);
            Action::Append(topic, entry)
        }
    }
}

pub(crate) fn apply(model: &mut Model, action: &Action) {
    let topic = |model: &mut Model, t: usize, change: &dyn Fn(&mut TopicModel)| {
        change(model.entry(TOPICS[t].to_owned()).or_default());
    };
    match action {
        Action::Append(t, entry) => topic(model, *t, &|m| m.entries.push(entry.clone())),
        Action::Truncate(t, from) => {
            topic(model, *t, &|m| m.entries.truncate(from.saturating_sub(m.first) as usize));
        }
        Action::Purge(t, to) => topic(model, *t, &|m| {
            let drop = to.saturating_sub(m.first).min(m.entries.len() as u64);
            m.entries.drain(..drop as usize);
            m.first = m.first.max(*to);
        }),
        Action::Metadata(t, value) => topic(model, *t, &|m| m.metadata = Some(value.clone())),
        Action::Batch(actions) => actions.iter().for_each(|a| apply(model, a)),
        Action::Wait => {}
    }
}

pub(crate) fn run(log: &WriteAheadLog, topics: &[Topic], action: &Action) -> Result<Ticket, Error> {
    match action {
        Action::Append(t, entry) => topics[*t].append(entry.clone()),
        Action::Truncate(t, from) => topics[*t].truncate(*from),
        Action::Purge(t, to) => topics[*t].purge(*to),
        Action::Metadata(t, value) => topics[*t].set_metadata("key", value.clone()),
        Action::Batch(actions) => {
            let mut batch = log.batch();
            for action in actions {
                match action {
                    Action::Append(t, entry) => batch.append(&topics[*t], entry.clone()),
                    Action::Truncate(t, from) => batch.truncate(&topics[*t], *from),
                    Action::Purge(t, to) => batch.purge(&topics[*t], *to),
                    Action::Metadata(t, value) => batch.set_metadata(&topics[*t], "key", value.clone()),
                    Action::Batch(_) | Action::Wait => unreachable!("scripts do not nest"),
                };
            }
            log.commit(batch)
        }
        Action::Wait => log.sync(),
    }
}

/// What a log holds, as a model. Topics without anything in them are left out.
pub(crate) fn observe(log: &WriteAheadLog) -> Result<Model, Error> {
    let mut model = Model::new();
    for name in log.topics() {
        let topic = log.topic(&name)?;
        let entries = topic.read_range(0..u64::MAX, usize::MAX)?;
        let first = topic.first_index();
        assert_eq!(entries.len() as u64, topic.next_index() - first);
        for (i, (index, _)) in entries.iter().enumerate() {
            assert_eq!(*index, first + i as u64);
        }
        let entries = entries.into_iter().map(|(_, e)| e.to_vec()).collect();
        let metadata = topic.metadata("key").map(|v| v.to_vec());
        let topic = TopicModel { first, entries, metadata };
        if topic != TopicModel::default() {
            model.insert(name, topic);
        }
    }
    Ok(model)
}

pub(crate) fn without_empty(mut model: Model) -> Model {
    model.retain(|_, t| *t != TopicModel::default());
    model
}
