//! Order among append requests that travel at the same time.
//!
//! A leader sends several append requests before the first is answered. Each is an RPC of its own, so they may arrive in
//! any order; taken out of order, all but the first would be refused as not fitting the log. The leader numbers them
//! within a lane, and the receiver hands them to consensus by number.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use octopii_transport::NodeId;
use tokio::sync::oneshot;

use crate::network::message::Lane;

/// Requests that may wait for an earlier one, per lane.
const WAITING_LIMIT: usize = 128;

/// The open lanes, one per leader: a leader that opens a new one has given up the old.
#[derive(Debug, Default)]
pub(crate) struct Lanes {
    lanes: Mutex<BTreeMap<NodeId, State>>,
}

#[derive(Debug)]
struct State {
    id: (u64, u64),
    next: u64,
    waiting: BTreeMap<u64, oneshot::Sender<()>>,
}

/// A request cannot have its turn any more: its lane is closed, or holds too many.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Closed;

/// A request's turn. Dropping it gives the next one its turn.
#[derive(Debug)]
pub(crate) struct Turn<'a> {
    lanes: &'a Lanes,
    from: NodeId,
    lane: Lane,
}

impl Lanes {
    /// Waits until every earlier request of the lane had its turn. Cancel-safe: a request that no longer waits is as one that
    /// never came, so the later ones of its lane will not have their turn.
    pub(crate) async fn turn(&self, from: NodeId, lane: Lane) -> Result<Turn<'_>, Closed> {
        let waiting = {
            let mut lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
            if lanes.get(&from).is_none_or(|state| state.id < lane.id) {
                lanes.insert(from, State { id: lane.id, next: 0, waiting: BTreeMap::new() });
            }
            let state = lanes.get_mut(&from).filter(|state| state.id == lane.id).ok_or(Closed)?;
            if lane.sequence < state.next || state.waiting.len() >= WAITING_LIMIT {
                return Err(Closed);
            }
            (lane.sequence > state.next).then(|| {
                let (wake, woken) = oneshot::channel();
                state.waiting.insert(lane.sequence, wake);
                woken
            })
        };
        if let Some(woken) = waiting {
            woken.await.map_err(|_| Closed)?;
        }
        Ok(Turn { lanes: self, from, lane })
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut lanes = self.lanes.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(state) = lanes.get_mut(&self.from).filter(|state| state.id == self.lane.id) {
            state.next = self.lane.sequence + 1;
            if let Some(wake) = state.waiting.remove(&state.next) {
                // A waiter that is gone was cancelled; the leader gives up the lane then.
                let _ = wake.send(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn lane(id: u64, sequence: u64) -> Lane {
        Lane { id: (1, id), sequence }
    }

    #[test]
    fn turns_come_in_order_however_requests_arrive() {
        let lanes = Lanes::default();
        let first = lanes.turn(1, lane(7, 0)).now_or_never().unwrap().unwrap();
        let mut third = Box::pin(lanes.turn(1, lane(7, 2)));
        let mut second = Box::pin(lanes.turn(1, lane(7, 1)));
        assert!(third.as_mut().now_or_never().is_none() && second.as_mut().now_or_never().is_none());
        drop(first);
        assert!(third.as_mut().now_or_never().is_none());
        drop(second.as_mut().now_or_never().unwrap().unwrap());
        assert!(third.as_mut().now_or_never().is_some());
    }

    #[test]
    fn a_request_may_arrive_before_the_first_of_its_lane() {
        let lanes = Lanes::default();
        drop(lanes.turn(1, lane(6, 0)));
        let mut second = Box::pin(lanes.turn(1, lane(7, 1)));
        assert!(second.as_mut().now_or_never().is_none());
        drop(lanes.turn(1, lane(7, 0)).now_or_never().unwrap().unwrap());
        assert!(second.as_mut().now_or_never().unwrap().is_ok());
    }

    #[test]
    fn a_new_lane_closes_the_old_one() {
        let lanes = Lanes::default();
        let mut stuck = Box::pin(lanes.turn(1, lane(7, 1)));
        assert!(stuck.as_mut().now_or_never().is_none());
        let _turn = lanes.turn(1, lane(8, 0)).now_or_never().unwrap().unwrap();
        assert_eq!(stuck.as_mut().now_or_never().unwrap().unwrap_err(), Closed);
        assert!(lanes.turn(1, lane(7, 2)).now_or_never().unwrap().is_err());
        assert!(
            lanes.turn(2, lane(7, 0)).now_or_never().unwrap().is_ok(),
            "another leader's lane is its own"
        );
    }
}
