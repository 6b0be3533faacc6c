//! One transfer at a time for each content that can be resumed: the latest.
//!
//! A sender that was killed, or lost its connection, comes back before this side has noticed. Who knows the content's key may
//! take over what the earlier transfer left, as soon as that has let go of it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;

use crate::wire::ResumeKey;

/// Contents being received.
#[derive(Debug, Default)]
pub(crate) struct Claims {
    held: Mutex<BTreeMap<ResumeKey, watch::Sender<bool>>>,
}

/// The right to receive one content; ends when dropped.
#[derive(Debug)]
pub(crate) struct Claim {
    claims: Arc<Claims>,
    key: ResumeKey,
    given_up: watch::Receiver<bool>,
}

impl Claims {
    /// Asks whoever receives this content to let go of it, and waits for that; `None` after `limit`.
    pub(crate) async fn claim(self: &Arc<Self>, key: ResumeKey, limit: Duration) -> Option<Claim> {
        timeout(limit, async {
            loop {
                let held = {
                    let mut held = self.held();
                    match held.get(&key) {
                        Some(holder) => holder.clone(),
                        None => {
                            let holder = watch::Sender::new(false);
                            let given_up = holder.subscribe();
                            held.insert(key, holder);
                            return Claim { claims: Arc::clone(self), key, given_up };
                        }
                    }
                };
                held.send_replace(true);
                // The holder's receiver goes with its claim.
                held.closed().await;
            }
        })
        .await
        .ok()
    }

    fn held(&self) -> MutexGuard<'_, BTreeMap<ResumeKey, watch::Sender<bool>>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Claim {
    /// Waits until somebody else wants the content. Cancel-safe.
    pub(crate) async fn superseded(&mut self) {
        // The sender lives in the table as long as this claim does.
        if self.given_up.wait_for(|wanted| *wanted).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.claims.held().remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_latest_claim_wins_when_the_one_before_has_let_go() {
        let claims = Arc::new(Claims::default());
        let (key, limit) = (ResumeKey([1; 16]), Duration::from_secs(5));
        let mut first = claims.claim(key, limit).await.unwrap();
        let _other = claims.claim(ResumeKey([2; 16]), limit).await.unwrap();
        assert!(claims.claim(key, limit).await.is_none(), "it does not let go");
        let second = claims.claim(key, limit);
        let letting_go = async {
            first.superseded().await;
            drop(first);
        };
        let (second, ()) = tokio::join!(second, letting_go);
        let mut second = second.unwrap();
        let wanted = timeout(Duration::from_secs(1), second.superseded()).await;
        assert!(wanted.is_err(), "nobody wants it");
    }
}
