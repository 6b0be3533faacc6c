//! A transfer that is called off costs nothing afterwards, on either side.

use std::num::NonZeroU64;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use octopii_transfer::{ChunkSource, Destination, Distribution, SendOptions, Topology, TransferOptions};
use octopii_transport::Executor;
use octopii_vfs::{RealVfs, Vfs};
use tokio::runtime::{Builder, Runtime};
use tokio::time::{Instant, sleep};

use crate::nodes::{BLOCK, Node, content, endpoint_on, eventually, names, quick};

const SIZE: usize = 28 * BLOCK;

/// A runtime that nothing else uses, and nodes on it.
struct Side {
    nodes: Vec<Node>,
    runtime: Runtime,
}

impl Side {
    fn new(ids: &[u64]) -> Self {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let executor = Executor::new(runtime.handle().clone());
        // Room for one, in number and in memory.
        let options = TransferOptions { max_incoming: 1, max_memory: SIZE as u64, ..quick() };
        let nodes =
            ids.iter().map(|&id| Node::on(endpoint_on(id, &executor), RealVfs::shared(), options.clone()));
        Self { nodes: nodes.collect(), runtime }
    }

    fn costs(&self) -> Costs {
        let dirs: Vec<_> = self.nodes.iter().map(|node| node.dir.path()).collect();
        Costs { tasks: self.runtime.metrics().num_alive_tasks(), descriptors: descriptors(&dirs) }
    }

    /// The costs when nothing is under way any more.
    async fn settled(&self) -> Costs {
        let mut last = self.costs();
        let mut since = Instant::now();
        let begun = since;
        while since.elapsed() < Duration::from_millis(300) {
            assert!(begun.elapsed() < Duration::from_secs(30), "it does not come to rest");
            sleep(Duration::from_millis(10)).await;
            let now = self.costs();
            if now != last {
                (last, since) = (now, Instant::now());
            }
        }
        last
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Costs {
    tasks: usize,
    descriptors: usize,
}

/// Open files of this process beneath `dirs`: other tests have theirs elsewhere.
fn descriptors(dirs: &[&Path]) -> usize {
    let open = std::fs::read_dir("/proc/self/fd").unwrap();
    // One may be closed while they are looked at.
    let open = open.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
    open.filter(|target| dirs.iter().any(|dir| target.starts_with(dir))).count()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// The future is dropped.
    Dropped,
    /// The connection is lost, and nobody tries again.
    Cut,
}

fn call_off(purpose: &str, receivers: u64, end: End) {
    let ids: Vec<_> = (2..2 + receivers).collect();
    let (from, to) = (Side::new(&[1]), Side::new(&ids));
    let driver = Builder::new_current_thread().enable_all().build().unwrap();
    for node in &to.nodes {
        node.receive_into("file", Destination::File { dir: node.inbox(), name: "f".into(), replace: false });
        node.receive_into("memory", Destination::Memory { limit: SIZE as u64 });
    }
    let sender = &from.nodes[0].transfer;
    let peers: Vec<_> = to.nodes.iter().map(Node::addr).collect();
    let source = ChunkSource::File(from.nodes[0].source("source", &content(SIZE)));
    driver.block_on(async {
        // Connections are made, between the receivers, too, and stay.
        let chain = |options: SendOptions| Distribution { topology: Topology::Chain, ..options.into() };
        let small = ChunkSource::Memory(content(BLOCK).into());
        let how = chain(SendOptions { name: Some("f".into()), ..SendOptions::new("file") });
        assert!(sender.send_to_all(&small, peers.clone(), how).await.iter().all(|result| result.success));
        for node in &to.nodes {
            RealVfs.remove_file(&node.inbox().join("f")).unwrap();
        }
        let idle = (from.settled().await, to.settled().await);
        assert_eq!((idle.0.descriptors, idle.1.descriptors), (0, 0));

        let verified = Arc::new(AtomicU64::new(0));
        let seen = Arc::clone(&verified);
        let options = SendOptions {
            progress: Some(Arc::new(move |progress| {
                seen.fetch_max(progress.verified, Ordering::Relaxed);
            })),
            rate_limit: NonZeroU64::new(32 * BLOCK as u64),
            ..SendOptions::new(purpose)
        };
        let how = chain(options.clone());
        let called_off = {
            let sending = async {
                match &peers[..] {
                    [peer] => drop(sender.send(*peer, &source, options).await),
                    _ => drop(sender.send_to_all(&source, peers.clone(), how).await),
                }
            };
            tokio::pin!(sending);
            let moving = async {
                // Beyond the first early sync, so that there would be something to keep.
                while verified.load(Ordering::Relaxed) < 17 * BLOCK as u64 {
                    sleep(Duration::from_millis(5)).await;
                }
            };
            tokio::select! {
                () = &mut sending => panic!("it ended by itself"),
                () = moving => {}
            }
            let busy = (from.costs(), to.costs());
            assert!(busy.0.tasks > idle.0.tasks && busy.1.tasks > idle.1.tasks, "{busy:?} {idle:?}");
            assert!(busy.0.descriptors > 0 && (busy.1.descriptors > 0) == (purpose == "file"), "{busy:?}");
            let begun = Instant::now();
            if end == End::Cut {
                for &peer in &peers {
                    from.nodes[0].endpoint.connect(peer).await.unwrap().close("cut");
                }
                sending.await;
            }
            begun
        };
        // Their number does not change with the connections: those that were cut are not made again.
        let rest = |side: &Side, idle: &Costs| match end {
            End::Dropped => side.costs() == *idle,
            End::Cut => side.costs().descriptors == 0 && side.costs().tasks <= idle.tasks,
        };
        eventually("freeing everything", || rest(&from, &idle.0) && rest(&to, &idle.1)).await;
        let taken = called_off.elapsed();
        let left = |node: &Node| names(&node.inbox());
        let kept = if (end, purpose) == (End::Cut, "file") { 2 } else { 0 };
        eventually("the cleaning", || to.nodes.iter().all(|node| left(node).len() == kept)).await;
        println!("{purpose}, {receivers} receivers, {end:?}: free after {taken:?}");
        for node in &to.nodes {
            // A file and its journal, as documented, for whoever goes on.
            assert!(left(node).iter().all(|name| name.ends_with(".part") || name.ends_with(".journal")));
        }
        // The only place is free, and all of the memory.
        for &peer in &peers {
            let options = SendOptions { name: Some("f".into()), ..SendOptions::new("memory") };
            sender.send(peer, &source, options).await.unwrap();
        }
    });
}

#[test]
fn a_file_that_is_called_off_frees_everything() {
    call_off("file", 1, End::Dropped);
    call_off("file", 1, End::Cut);
}

#[test]
fn memory_that_is_called_off_is_free_again() {
    call_off("memory", 1, End::Dropped);
    call_off("memory", 1, End::Cut);
}

#[test]
fn a_distribution_that_is_called_off_frees_everything() {
    call_off("file", 2, End::Dropped);
    call_off("file", 2, End::Cut);
}
