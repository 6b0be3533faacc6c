//! Who may add to the operations that wait for the disk.
//!
//! The bytes that may wait are a budget. How much of it a topic gets follows the dynamic-threshold rule of Choudhury and
//! Hahne ("Dynamic queue length thresholds for shared-memory packet switches", 1998): never more than what is left free. A
//! topic alone gets half of the budget, `n` topics that want all they can get have `1/(n + 1)` each, and the rest is there
//! at once for a topic that comes along. Three things are added:
//!
//! - Whoever finds no room waits in line, per topic in the order of arrival.
//! - A batch over half of the budget counts as half: it is let in when nothing else waits, and leaves the other half.
//! - A batch that others worth a whole budget have overtaken is let in beyond the budget, one such at a time. So a large
//!   one is not starved by many small ones.

use std::collections::{BTreeMap, BTreeSet};

use crate::error::Error;
use crate::options::Committer;
use crate::shared::Shared;
use crate::state::{State, Waiter};
use crate::sync::MutexGuard;

/// What a batch takes.
#[derive(Debug, Clone)]
pub(crate) struct Need {
    topics: Topics,
    bytes: usize,
    /// Whether entries are among it, which need more than the space kept for a full disk.
    has_entries: bool,
}

/// Bytes by topic, each topic once.
#[derive(Debug, Clone)]
enum Topics {
    None,
    One([(u32, usize); 1]),
    Many(Vec<(u32, usize)>),
}

impl Need {
    /// Something that need not wait for anybody.
    pub(crate) const NONE: Self = Self { topics: Topics::None, bytes: 0, has_entries: false };

    pub(crate) fn of_topic(topic: u32, bytes: usize, has_entries: bool) -> Self {
        Self { topics: Topics::One([(topic, bytes)]), bytes, has_entries }
    }

    pub(crate) fn of_topics(each: impl Iterator<Item = (u32, usize)>, has_entries: bool) -> Self {
        let mut topics = BTreeMap::new();
        for (topic, bytes) in each {
            *topics.entry(topic).or_insert(0) += bytes;
        }
        let bytes = topics.values().sum();
        Self { topics: Topics::Many(topics.into_iter().collect()), bytes, has_entries }
    }

    fn topics(&self) -> &[(u32, usize)] {
        match &self.topics {
            Topics::None => &[],
            Topics::One(one) => one,
            Topics::Many(many) => many,
        }
    }
}

/// The state of the budget. What each topic has of it is with the topic.
#[derive(Debug)]
pub(crate) struct Room {
    budget: usize,
    /// Bytes charged for what is granted, queued or being written.
    used: usize,
    /// Bytes let in since the log was opened.
    admitted: u64,
    /// In the order of arrival.
    waiting: BTreeMap<u64, Candidate>,
    /// Number of topics that somebody in `waiting` waits for.
    waiting_topics: usize,
    /// Those who have room and have not used it yet.
    granted: BTreeMap<u64, (Need, Grant)>,
    next: u64,
    /// Somebody was let in beyond the budget, and has not been written yet.
    is_lent: bool,
    /// How the batch is to be charged that is being queued.
    grant: Grant,
}

#[derive(Debug)]
struct Candidate {
    need: Need,
    /// What `admitted` was on arrival.
    since: u64,
    waiter: Waiter,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Grant {
    /// Every byte counts, up to this many.
    Charged(usize),
    /// Beyond the budget.
    Lent,
}

impl Room {
    pub(crate) fn new(budget: usize) -> Self {
        Self {
            // With less, its half would be nothing.
            budget: budget.max(2),
            used: 0,
            admitted: 0,
            waiting: BTreeMap::new(),
            waiting_topics: 0,
            granted: BTreeMap::new(),
            next: 0,
            is_lent: false,
            grant: Grant::Charged(usize::MAX),
        }
    }

    pub(crate) fn is_awaited(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Charges an operation of `bytes` that is being queued. Returns the charge, and whether it is beyond the budget.
    pub(crate) fn charge(&mut self, bytes: usize) -> (usize, bool) {
        self.admitted += bytes as u64;
        match &mut self.grant {
            Grant::Lent => (0, true),
            Grant::Charged(left) => {
                let charge = bytes.min(*left);
                *left -= charge;
                self.used += charge;
                (charge, false)
            }
        }
    }

    /// Gives back what operations were charged that are written now.
    pub(crate) fn release(&mut self, charge: usize, was_lent: bool) {
        self.used = self.used.saturating_sub(charge);
        self.is_lent &= !was_lent;
    }

    fn most(&self) -> usize {
        self.budget / 2
    }
}

impl State {
    /// Whether the rule lets a batch in.
    fn has_room(&self, need: &Need) -> bool {
        let most = self.room.most();
        let free = self.room.budget.saturating_sub(self.room.used);
        let Some(left) = free.checked_sub(need.bytes.min(most)) else { return false };
        need.topics().iter().all(|(id, bytes)| self.topic(*id).pending + bytes.min(&most) <= left)
    }

    /// Reserves room for a batch, or gives the reserved room back.
    fn reserve(&mut self, need: &Need, grant: Grant, sign: bool) {
        let most = self.room.most();
        let add = |to: &mut usize, bytes: usize| {
            *to = if sign { *to + bytes } else { to.saturating_sub(bytes) };
        };
        if grant == Grant::Lent {
            self.room.is_lent = sign;
            return;
        }
        add(&mut self.room.used, need.bytes.min(most));
        for (id, bytes) in need.topics() {
            add(&mut self.topic_mut(*id).pending, (*bytes).min(most));
        }
    }

    fn grant_for(&self, need: &Need) -> Grant {
        let most = self.room.most();
        Grant::Charged(if need.bytes > most { most } else { usize::MAX })
    }

    /// Grants room to those in line who may have it now, and collects whom to wake.
    pub(crate) fn grant_room(&mut self, woken: &mut Vec<Waiter>) {
        let mut blocked = BTreeSet::new();
        let mut from = 0;
        while blocked.len() < self.room.waiting_topics
            && let Some((id, candidate)) = self.room.waiting.range(from..).next()
        {
            let id = *id;
            from = id + 1;
            let need = &candidate.need;
            let is_first = need.topics().iter().all(|(topic, _)| !blocked.contains(topic));
            let is_overtaken = self.room.admitted - candidate.since >= self.room.budget as u64;
            let grant = if is_first && self.has_room(need) {
                Some(self.grant_for(need))
            } else if is_first && is_overtaken && !self.room.is_lent {
                Some(Grant::Lent)
            } else {
                None
            };
            let Some(grant) = grant else {
                blocked.extend(need.topics().iter().map(|(topic, _)| *topic));
                continue;
            };
            if let Some(candidate) = self.leave_line(id) {
                self.reserve(&candidate.need, grant, true);
                self.room.granted.insert(id, (candidate.need, grant));
                woken.push(candidate.waiter);
            }
        }
    }

    fn leave_line(&mut self, id: u64) -> Option<Candidate> {
        let candidate = self.room.waiting.remove(&id)?;
        for (topic, _) in candidate.need.topics() {
            let waiting = &mut self.topic_mut(*topic).waiting;
            *waiting -= 1;
            self.room.waiting_topics -= usize::from(*waiting == 0);
        }
        Some(candidate)
    }

    /// Nothing is queued or being written any more.
    pub(crate) fn reset_room(&mut self, woken: &mut Vec<Waiter>) {
        (self.room.used, self.room.is_lent) = (0, false);
        self.topics.values_mut().for_each(|topic| topic.pending = 0);
        let granted: Vec<_> = self.room.granted.values().cloned().collect();
        granted.iter().for_each(|(need, grant)| self.reserve(need, *grant, true));
        self.grant_room(woken);
    }

    /// Everybody in line, who will find that the log has stopped.
    pub(crate) fn dissolve_line(&mut self, woken: &mut Vec<Waiter>) {
        while let Some(id) = self.room.waiting.keys().next().copied() {
            woken.extend(self.leave_line(id).map(|candidate| candidate.waiter));
        }
    }

    /// What was being queued is queued.
    pub(crate) fn end_charging(&mut self, has_queued: bool) {
        if !has_queued && self.room.grant == Grant::Lent {
            self.room.is_lent = false;
        }
        self.room.grant = Grant::Charged(usize::MAX);
    }
}

/// A place in the line for room. Whoever gives up calls [`Shared::withdraw`].
pub(crate) type Place = Option<u64>;

impl Shared {
    /// Lets a batch in, with the state locked to queue it at once, or has `waiter` woken when it is worth asking again.
    pub(crate) fn admit(
        &self,
        need: &Need,
        place: &mut Place,
        waiter: impl FnOnce() -> Waiter,
    ) -> Result<Option<MutexGuard<'_, State>>, Error> {
        let mut state = self.state();
        loop {
            let outcome = match self.refusal(&state) {
                Some(error) => Err(error),
                None if need.has_entries && state.full => {
                    drop(state);
                    let found = self.find_space(need.bytes as u64);
                    state = self.state();
                    found
                }
                None => break,
            };
            if let Err(error) = outcome {
                drop(state);
                self.withdraw(place);
                return Err(error);
            }
        }
        if let Some(id) = *place {
            if let Some((need, grant)) = state.room.granted.remove(&id) {
                *place = None;
                // What is queued now is charged by itself; somebody let in beyond the budget goes on being that.
                if grant != Grant::Lent {
                    state.reserve(&need, grant, false);
                }
                state.room.grant = grant;
                return Ok(Some(state));
            }
            let replaced =
                state.room.waiting.get_mut(&id).map(|c| std::mem::replace(&mut c.waiter, waiter()));
            // Wakers are dropped only when the lock is free again, since that may run anything.
            drop(state);
            drop(replaced);
            return Ok(None);
        }
        if need.topics().iter().all(|(id, _)| state.topic(*id).waiting == 0) && state.has_room(need) {
            state.room.grant = state.grant_for(need);
            return Ok(Some(state));
        }
        for (id, _) in need.topics() {
            let topic = state.topic_mut(*id);
            topic.waiting += 1;
            let is_first = topic.waiting == 1;
            state.room.waiting_topics += usize::from(is_first);
        }
        state.room.next += 1;
        let id = state.room.next;
        let candidate = Candidate { need: need.clone(), since: state.room.admitted, waiter: waiter() };
        state.room.waiting.insert(id, candidate);
        *place = Some(id);
        Ok(None)
    }

    /// What whoever was not let in has to do so that room comes: with [`Committer::Caller`], to commit. Returns whether to
    /// ask again at once.
    pub(crate) fn hurry(&self) -> Result<bool, Error> {
        match self.options.committer {
            Committer::Thread => self.kick(),
            Committer::Caller if self.has_queued() => return self.commit_once().map(|()| true),
            // What takes the room has been granted, and its owner will commit; or another caller is committing it.
            Committer::Caller => {}
        }
        Ok(false)
    }

    /// Leaves the line, or gives back the room granted and not used.
    pub(crate) fn withdraw(&self, place: &mut Place) {
        let Some(id) = place.take() else { return };
        let mut woken = Vec::new();
        let mut state = self.state();
        let candidate = state.leave_line(id);
        if let Some((need, grant)) = state.room.granted.remove(&id) {
            state.reserve(&need, grant, false);
        }
        state.grant_room(&mut woken);
        drop(state);
        drop(candidate);
        woken.into_iter().for_each(Waiter::wake);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::task::Waker;

    use super::*;
    use crate::state::TopicState;

    fn state(topics: u32) -> State {
        let topics = (0..topics).map(|id| (id, TopicState::new(format!("{id}").into())));
        let mut state = State::new(topics.collect(), BTreeMap::new());
        state.room = Room::new(1000);
        state
    }

    fn queue(state: &mut State, topic: u32, bytes: usize) -> bool {
        let need = Need::of_topic(topic, bytes, true);
        let has_room = state.topic(topic).waiting == 0 && state.has_room(&need);
        if has_room {
            let (charge, _) = state.room.charge(bytes);
            state.topic_mut(topic).pending += charge;
        }
        has_room
    }

    /// Floods four topics while a large batch waits, for as many rounds as it takes to let that one in.
    #[test]
    fn a_large_batch_is_let_in_after_others_worth_the_budget_have_overtaken_it() {
        let mut state = state(5);
        let mut written = VecDeque::new();
        let mut overtaken = 0;
        let mut fill = |state: &mut State, written: &mut VecDeque<u32>| {
            for topic in (0..4).cycle().take(4000) {
                if queue(state, topic, 10) {
                    written.push_back(topic);
                    overtaken += 10;
                }
            }
            overtaken
        };
        let before = fill(&mut state, &mut written);
        assert!((750..=850).contains(&state.room.used), "four fifths of 1000: {}", state.room.used);
        state.topic_mut(4).waiting = 1;
        state.room.waiting_topics = 1;
        for id in [1, 2] {
            let need = Need::of_topic(4, 400, true);
            let waiter = Waiter::Task(Waker::noop().clone());
            state.room.waiting.insert(id, Candidate { need, since: state.room.admitted, waiter });
        }
        state.topic_mut(4).waiting = 2;
        let mut rounds = 0;
        loop {
            let mut woken = Vec::new();
            state.grant_room(&mut woken);
            if !woken.is_empty() {
                break;
            }
            let topic = written.pop_front().unwrap();
            state.topic_mut(topic).pending -= 10;
            state.room.release(10, false);
            fill(&mut state, &mut written);
            rounds += 1;
            assert!(rounds <= 100, "starved");
        }
        assert!(fill(&mut state, &mut written) - before >= 1000);
        // One at a time, and not at the others' expense.
        assert!(state.room.is_lent && state.room.granted.len() == 1 && state.room.waiting.len() == 1);
        assert!(state.room.used <= 850);
    }

    #[test]
    fn one_topic_never_takes_what_another_needs() {
        for bytes in [1, 10, 100, 400, 500, 501, 5000] {
            let mut state = state(2);
            let charged = bytes.min(state.room.most());
            while queue(&mut state, 0, charged) {}
            assert!(state.topic(0).pending <= 500 && state.topic(0).pending > 0, "{bytes}");
            assert!(queue(&mut state, 1, 250), "{bytes}");
        }
    }
}
