//! Read positions for many readers with one question to the leader.
//!
//! Readers that come while a question is on its way wait for the next one: an answer is worth something only to those who
//! were there before it was asked for.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use octopii_transport::Executor;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use crate::request::asker::{Answer, Asker, GaveUp, Request};

type Waiter = oneshot::Sender<Result<u64, GaveUp>>;

/// Asks the leader for read positions, one question at a time.
pub(crate) struct ReadIndex {
    executor: Executor,
    asker: Asker,
    timeout: Duration,
    queue: Mutex<Queue>,
}

#[derive(Default)]
struct Queue {
    asking: bool,
    waiting: Vec<Waiter>,
}

impl ReadIndex {
    pub(crate) fn new(executor: Executor, asker: Asker, timeout: Duration) -> Arc<Self> {
        Arc::new(Self { executor, asker, timeout, queue: Mutex::default() })
    }

    /// A log position such that whoever has applied it has applied everything acknowledged before this call.
    pub(crate) async fn get(self: &Arc<Self>, deadline: Instant) -> Result<u64, GaveUp> {
        let start = Instant::now();
        let (waiter, answer) = oneshot::channel();
        let ask = {
            let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
            queue.waiting.push(waiter);
            !std::mem::replace(&mut queue.asking, true)
        };
        if ask {
            let this = Arc::clone(self);
            self.executor.spawn(async move { this.answer_all().await });
        }
        match timeout_at(deadline, answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(GaveUp::Stopped("it was shut down".to_owned())),
            Err(_) => {
                let last = "the leader did not confirm the read position".to_owned();
                Err(GaveUp::NoQuorum { waited: start.elapsed(), last })
            }
        }
    }

    async fn answer_all(&self) {
        loop {
            let waiting = {
                let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
                if queue.waiting.is_empty() {
                    queue.asking = false;
                    return;
                }
                std::mem::take(&mut queue.waiting)
            };
            let deadline = Instant::now() + self.timeout;
            let answer = match self.asker.ask(&Request::ReadIndex, deadline).await {
                Ok(Answer::ReadIndex(index)) => Ok(index),
                Ok(other) => Err(GaveUp::Stopped(format!("unexpected answer to a read: {other:?}"))),
                Err(gave_up) => Err(gave_up),
            };
            for waiter in waiting {
                // A reader that is gone does not mind.
                let _ = waiter.send(answer.clone());
            }
        }
    }
}
