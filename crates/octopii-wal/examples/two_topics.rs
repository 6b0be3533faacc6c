//! Two topics in one log: `cargo run -p octopii-wal --example two_topics`, again and again.
#![expect(clippy::print_stdout, reason = "an example talks to its user")]

use octopii_wal::{Options, WriteAheadLog};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = std::env::temp_dir().join("octopii-two-topics");
    let log = WriteAheadLog::open(&dir, Options::default())?;
    let (orders, payments) = (log.topic("orders")?, log.topic("payments")?);
    println!(
        "{} orders, {} payments so far in {}",
        orders.next_index(),
        payments.next_index(),
        dir.display()
    );

    // One entry.
    orders.append("three pieces")?.wait()?;

    // Entries of both topics, all or none.
    let mut batch = log.batch();
    batch.append(&orders, "two pieces").append(&payments, "5.00 for two pieces");
    log.commit(batch)?.wait()?;

    for (index, order) in orders.read_range(0..u64::MAX, 1 << 20)? {
        println!("order {index}: {}", String::from_utf8_lossy(&order));
    }
    Ok(())
}
