//! Exactly-once: a retried proposal is applied once, however often it reaches the log.
//!
//! Every [`Consensus`](crate::Consensus) is a client with a random id and numbers its proposals. The replicated machine
//! remembers, per client, the outcome of each proposal that the client has not yet reported as settled. A copy finds the
//! outcome of the first one; a copy of a settled proposal is dropped.

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::io::{Read, Write};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use imbl::OrdMap;

use crate::group::Outcome;
use crate::state_machine::Rejected;

/// Clients remembered. The one that was silent for longest (in log positions) is forgotten first. A retry lasts as long as
/// one proposal's deadline, so a duplicate could pass only if this many *other* clients began to propose within it.
pub(crate) const MAX_CLIENTS: usize = 4096;

/// Names one proposal, whatever number of times it is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ProposalId {
    pub(crate) client: u128,
    pub(crate) sequence: u64,
    /// Every earlier sequence number of the client has got its answer or was given up.
    pub(crate) settled: u64,
}

impl fmt::Display for ProposalId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "proposal {:08x}/{}", self.client as u32, self.sequence)
    }
}

/// What the machine remembers of its clients. Cloning is cheap; the clone is a snapshot.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sessions {
    clients: OrdMap<u128, Session>,
    /// Clients by the log index of their last command, which no two share.
    by_use: OrdMap<u64, u128>,
}

#[derive(Debug, Clone)]
struct Session {
    last_used: u64,
    settled: u64,
    outcomes: OrdMap<u64, Outcome>,
}

impl Sessions {
    /// The outcome to give for a command seen before, or `None` if it is to be applied now and then [`finish`]ed.
    ///
    /// `index` is the log position of the command. Must be called for every command in log order.
    ///
    /// [`finish`]: Sessions::finish
    pub(crate) fn begin(&mut self, id: ProposalId, index: u64) -> Option<Outcome> {
        self.touch(id.client, index);
        let session = self.clients.get_mut(&id.client)?;
        session.settled = session.settled.max(id.settled);
        while let Some(&(sequence, _)) = session.outcomes.get_min()
            && sequence < session.settled
        {
            session.outcomes.remove(&sequence);
        }
        if id.sequence < session.settled {
            return Some(Outcome::Settled);
        }
        session.outcomes.get(&id.sequence).cloned()
    }

    /// Remembers what applying the command gave.
    pub(crate) fn finish(&mut self, id: ProposalId, outcome: Outcome) {
        if let Some(session) = self.clients.get_mut(&id.client) {
            session.outcomes.insert(id.sequence, outcome);
        }
    }

    fn touch(&mut self, client: u128, index: u64) {
        match self.clients.get_mut(&client) {
            Some(session) => {
                self.by_use.remove(&session.last_used);
                session.last_used = index;
            }
            None => {
                self.clients
                    .insert(client, Session { last_used: index, settled: 0, outcomes: OrdMap::new() });
            }
        }
        self.by_use.insert(index, client);
        if self.clients.len() > MAX_CLIENTS
            && let Some(&(used, oldest)) = self.by_use.get_min()
        {
            self.by_use.remove(&used);
            self.clients.remove(&oldest);
        }
    }

    /// Writes the sessions as the snapshot format has them (`docs/RAFT.md`).
    pub(crate) fn write_to(&self, out: &mut dyn Write) -> io::Result<()> {
        out.write_all(&(self.clients.len() as u64).to_le_bytes())?;
        for (client, session) in &self.clients {
            out.write_all(&client.to_le_bytes())?;
            out.write_all(&session.last_used.to_le_bytes())?;
            out.write_all(&session.settled.to_le_bytes())?;
            out.write_all(&(session.outcomes.len() as u64).to_le_bytes())?;
            for (sequence, outcome) in &session.outcomes {
                let (kind, bytes): (u8, &[u8]) = match outcome {
                    Outcome::Nothing => (NOTHING, &[]),
                    Outcome::Reply(bytes) => (REPLY, bytes),
                    Outcome::Rejected(rejected) => (REJECTED, rejected.reason().as_bytes()),
                    Outcome::Settled => (SETTLED, &[]),
                };
                out.write_all(&sequence.to_le_bytes())?;
                out.write_all(&[kind])?;
                out.write_all(&(bytes.len() as u64).to_le_bytes())?;
                out.write_all(bytes)?;
            }
        }
        Ok(())
    }

    /// Reads what [`write_to`](Sessions::write_to) wrote.
    pub(crate) fn read_from(mut from: &mut dyn Read) -> io::Result<Self> {
        let mut sessions = Self::default();
        for _ in 0..u64::from_le_bytes(array(from)?) {
            let client = u128::from_le_bytes(array(from)?);
            let last_used = u64::from_le_bytes(array(from)?);
            let settled = u64::from_le_bytes(array(from)?);
            let mut outcomes = OrdMap::new();
            for _ in 0..u64::from_le_bytes(array(from)?) {
                let sequence = u64::from_le_bytes(array(from)?);
                let [kind] = array(from)?;
                let len = u64::from_le_bytes(array(from)?);
                let mut bytes = Vec::new();
                // `take` grows the buffer with what really arrives, whatever the length claims.
                if (&mut from).take(len).read_to_end(&mut bytes)? as u64 != len {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                let outcome = match kind {
                    NOTHING => Outcome::Nothing,
                    REPLY => Outcome::Reply(Bytes::from(bytes)),
                    REJECTED => Outcome::Rejected(Rejected::new(String::from_utf8_lossy(&bytes))),
                    SETTLED => Outcome::Settled,
                    _ => return Err(io::Error::new(io::ErrorKind::InvalidData, "unknown kind of outcome")),
                };
                outcomes.insert(sequence, outcome);
            }
            sessions.by_use.insert(last_used, client);
            sessions.clients.insert(client, Session { last_used, settled, outcomes });
        }
        Ok(sessions)
    }
}

const NOTHING: u8 = 0;
const REPLY: u8 = 1;
const REJECTED: u8 = 2;
const SETTLED: u8 = 3;

fn array<const N: usize>(from: &mut dyn Read) -> io::Result<[u8; N]> {
    let mut out = [0; N];
    from.read_exact(&mut out)?;
    Ok(out)
}

/// The proposing side: numbers proposals and knows which are still open.
#[derive(Debug)]
pub(crate) struct Proposer {
    client: u128,
    state: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    next: u64,
    open: BTreeSet<u64>,
}

/// One open proposal. Dropping it settles it.
#[derive(Debug)]
pub(crate) struct OpenProposal {
    proposer: Arc<Proposer>,
    sequence: u64,
}

impl Proposer {
    pub(crate) fn new(client: u128) -> Arc<Self> {
        Arc::new(Self { client, state: Mutex::default() })
    }

    pub(crate) fn open(self: &Arc<Self>) -> OpenProposal {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let sequence = state.next;
        state.next += 1;
        state.open.insert(sequence);
        OpenProposal { proposer: Arc::clone(self), sequence }
    }
}

impl OpenProposal {
    /// The id to send now: what is settled may have moved on since the last attempt.
    pub(crate) fn id(&self) -> ProposalId {
        let state = self.proposer.state.lock().unwrap_or_else(PoisonError::into_inner);
        let settled = state.open.first().copied().unwrap_or(self.sequence);
        ProposalId { client: self.proposer.client, sequence: self.sequence, settled }
    }
}

impl Drop for OpenProposal {
    fn drop(&mut self) {
        let mut state = self.proposer.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.open.remove(&self.sequence);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(client: u128, sequence: u64, settled: u64) -> ProposalId {
        ProposalId { client, sequence, settled }
    }

    fn reply(text: &'static str) -> Outcome {
        Outcome::Reply(Bytes::from_static(text.as_bytes()))
    }

    #[test]
    fn a_copy_finds_the_first_outcome_in_any_order() {
        let mut sessions = Sessions::default();
        assert_eq!(sessions.begin(id(1, 5, 4), 10), None);
        sessions.finish(id(1, 5, 4), reply("five"));
        assert_eq!(sessions.begin(id(1, 4, 4), 11), None, "an earlier number may arrive later");
        sessions.finish(id(1, 4, 4), reply("four"));
        assert_eq!(sessions.begin(id(1, 5, 4), 12), Some(reply("five")));
        assert_eq!(sessions.begin(id(2, 5, 4), 13), None, "another client's number is another proposal");
    }

    #[test]
    fn settled_proposals_are_forgotten_and_never_applied_again() {
        let mut sessions = Sessions::default();
        assert_eq!(sessions.begin(id(1, 0, 0), 1), None);
        sessions.finish(id(1, 0, 0), reply("zero"));
        assert_eq!(sessions.begin(id(1, 1, 1), 2), None);
        assert_eq!(sessions.begin(id(1, 0, 0), 3), Some(Outcome::Settled));
        assert!(sessions.clients[&1].outcomes.is_empty());
    }

    #[test]
    fn the_longest_silent_client_is_forgotten_first() {
        let mut sessions = Sessions::default();
        for client in 0..MAX_CLIENTS as u128 {
            sessions.begin(id(client, 0, 0), client as u64);
        }
        sessions.begin(id(0, 1, 0), 1 << 40);
        sessions.begin(id(1 << 64, 0, 0), 1 << 41);
        assert_eq!(sessions.clients.len(), MAX_CLIENTS);
        assert_eq!(sessions.by_use.len(), MAX_CLIENTS);
        assert!(sessions.clients.contains_key(&0) && !sessions.clients.contains_key(&1));
    }

    #[test]
    fn sessions_survive_a_snapshot() {
        let mut sessions = Sessions::default();
        for (sequence, outcome) in
            [reply("done"), Outcome::Nothing, Outcome::Rejected(Rejected::new("no")), Outcome::Settled]
                .into_iter()
                .enumerate()
        {
            sessions.begin(id(7, sequence as u64, 0), sequence as u64);
            sessions.finish(id(7, sequence as u64, 0), outcome);
        }
        let mut bytes = Vec::new();
        sessions.write_to(&mut bytes).unwrap();
        let mut restored = Sessions::read_from(&mut bytes.as_slice()).unwrap();
        assert_eq!(restored.begin(id(7, 0, 0), 9), Some(reply("done")));
        assert_eq!(restored.begin(id(7, 2, 0), 10), Some(Outcome::Rejected(Rejected::new("no"))));
        assert!(Sessions::read_from(&mut &bytes[..bytes.len() - 1]).is_err());
    }

    #[test]
    fn the_proposer_settles_up_to_its_oldest_open_proposal() {
        let proposer = Proposer::new(3);
        let (a, b, c) = (proposer.open(), proposer.open(), proposer.open());
        assert_eq!(c.id(), id(3, 2, 0));
        drop(b);
        assert_eq!(c.id(), id(3, 2, 0));
        drop(a);
        assert_eq!(c.id(), id(3, 2, 2));
    }
}
