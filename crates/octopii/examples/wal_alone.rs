//! The write-ahead log by itself: no network, no async. `cargo run --example wal_alone`
//!
//! A program that needs nothing else depends on the crate `octopii-wal`, which brings neither tokio nor quinn.

use std::error::Error;

use octopii::WriteAheadLog;
use octopii::wal::Options;

fn main() -> Result<(), Box<dyn Error>> {
    let home = tempfile::tempdir()?;
    let log = WriteAheadLog::open(home.path(), Options::default())?;
    let (orders, audit) = (log.topic("orders")?, log.topic("audit")?);

    // Both topics in one atomic batch, one sync.
    let mut batch = log.batch();
    batch.append(&orders, "two apples");
    batch.append(&audit, "ann ordered");
    log.commit(batch)?.wait()?; // durable from here on

    drop((orders, audit, log));
    let log = WriteAheadLog::open(home.path(), Options::default())?;
    for name in log.topics() {
        for (index, entry) in log.topic(&name)?.read_range(0..u64::MAX, 1 << 20)? {
            println!("{name}[{index}] = {}", String::from_utf8_lossy(&entry));
        }
    }
    Ok(())
}
