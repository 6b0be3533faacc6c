//! SQLite as a log: a table per writer, WAL mode, one connection that writes.

use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};

use octopii_bench::Outcome;
use octopii_bench::load::{Load, drive};
use rusqlite::{Connection, params};

use crate::workload::{ENTRIES, ENTRY, Workload};

fn open(dir: &Path, durable: bool) -> Outcome<Connection> {
    let connection = Connection::open(dir.join("log.db"))?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", if durable { "FULL" } else { "OFF" })?;
    connection.set_prepared_statement_cache_capacity(256);
    Ok(connection)
}

fn create(connection: &Connection, topic: usize) -> rusqlite::Result<()> {
    connection.execute_batch(&format!("CREATE TABLE t{topic} (id INTEGER PRIMARY KEY, entry BLOB NOT NULL)"))
}

fn insert(connection: &Connection, topic: usize, entry: &[u8]) -> rusqlite::Result<()> {
    let mut insert = connection.prepare_cached(&format!("INSERT INTO t{topic} (entry) VALUES (?1)"))?;
    insert.execute(params![entry]).map(drop)
}

/// An append that waits for its transaction.
struct Request {
    topic: usize,
    done: SyncSender<()>,
}

pub(crate) fn append(dir: &Path, workload: &Workload) -> Outcome<Load> {
    let connection = open(dir, workload.durable)?;
    for topic in 0..workload.writers {
        create(&connection, topic)?;
    }
    let entry = vec![7; workload.size];
    if workload.writers == 1 {
        // A lone writer is better off without the other thread.
        let connection = std::sync::Mutex::new(Some(connection));
        return drive(1, workload.time, workload.every(), |_| {
            let connection = connection.lock().ok().and_then(|mut c| c.take()).ok_or("one writer only")?;
            let entry = &entry;
            Ok(move || Ok(insert(&connection, 0, entry)?))
        });
    }
    let (queue, requests) = channel::<Request>();
    std::thread::scope(|scope| {
        let entry = &entry;
        let committer = scope.spawn(move || commit_all(connection, &requests, entry));
        let load = writers(queue, workload);
        // Why it stopped explains why the writers did.
        committer.join().expect("the committing thread panicked")?;
        load
    })
}

fn writers(queue: Sender<Request>, workload: &Workload) -> Outcome<Load> {
    drive(workload.writers, workload.time, workload.every(), |topic| {
        let queue = queue.clone();
        let (done, wait) = sync_channel(1);
        Ok(move || {
            queue.send(Request { topic, done: done.clone() }).map_err(|_| "the committing thread is gone")?;
            Ok(wait.recv()?)
        })
    })
}

/// Commits everything that waits in one transaction, until nobody is left who could send.
fn commit_all(
    mut connection: Connection,
    requests: &Receiver<Request>,
    entry: &[u8],
) -> rusqlite::Result<()> {
    let mut taken = Vec::new();
    while let Ok(first) = requests.recv() {
        taken.push(first);
        taken.extend(requests.try_iter());
        let transaction = connection.transaction()?;
        for request in &taken {
            insert(&transaction, request.topic, entry)?;
        }
        transaction.commit()?;
        for request in taken.drain(..) {
            // A writer that has gone needs no answer.
            let _ = request.done.send(());
        }
    }
    Ok(())
}

pub(crate) fn fill(dir: &Path) -> Outcome<()> {
    let mut connection = open(dir, true)?;
    create(&connection, 0)?;
    for _ in 0..ENTRIES / 10_000 {
        let transaction = connection.transaction()?;
        for _ in 0..10_000 {
            insert(&transaction, 0, &[7; ENTRY])?;
        }
        transaction.commit()?;
    }
    Ok(())
}

pub(crate) fn read(dir: &Path) -> Outcome<u64> {
    let connection = open(dir, true)?;
    let mut select = connection.prepare("SELECT id, entry FROM t0 ORDER BY id")?;
    let (mut rows, mut count) = (select.query([])?, 0);
    while let Some(row) = rows.next()? {
        std::hint::black_box(row.get_ref(1)?.as_blob()?.to_vec());
        count += 1;
    }
    Ok(count)
}
