//! Whether a machine is up.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// One boot of a simulated machine, shared by everything that the boot holds open.
///
/// It is cut *before* the machine's tasks are dropped. From then on nothing they do reaches the disk or the network, so
/// that a `Drop` which flushes or says goodbye cannot hide that the machine died without doing either.
#[derive(Debug, Clone, Default)]
pub struct Power {
    off: Arc<AtomicBool>,
}

impl Power {
    /// A machine that is up.
    pub fn on() -> Self {
        Self::default()
    }

    /// Cuts the power of this boot, for good.
    pub fn cut(&self) {
        self.off.store(true, Ordering::SeqCst);
    }

    /// Whether this boot is still up.
    pub fn is_on(&self) -> bool {
        !self.off.load(Ordering::SeqCst)
    }

    /// Fails if the power was cut.
    pub fn check(&self) -> io::Result<()> {
        if self.is_on() {
            Ok(())
        } else {
            Err(io::Error::other(
                "the simulated machine was powered off; this handle belongs to an earlier boot",
            ))
        }
    }
}
