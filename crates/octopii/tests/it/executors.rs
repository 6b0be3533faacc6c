//! A node works from any executor, and never panics for being dropped in one.

use octopii::{ChunkSource, OctopiiNode, OctopiiRuntime};
use std::time::Duration;
use tempfile::tempdir;

use crate::config;

async fn ship(home: &std::path::Path, a: &OctopiiNode, b: &OctopiiNode) {
    let file = home.join("file.bin");
    std::fs::write(&file, vec![1; 100_000]).unwrap();
    let results = a
        .transfer_chunk_to_peers(
            ChunkSource::File(file.clone()),
            vec![b.local_addr()],
            Duration::from_secs(20),
        )
        .await;
    assert!(results[0].success, "{results:?}");
    let peer = a.connect(b.local_addr()).await.unwrap();
    let (sent, received) = tokio::join!(peer.send("hi"), b.recv());
    sent.unwrap();
    assert_eq!(received.1, "hi");
}

/// The earlier Octopii's own quick start panicked here.
#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn in_a_tokio_main(shut_down: bool) {
    let home = tempdir().unwrap();
    let runtime = OctopiiRuntime::new(1);
    let a = OctopiiNode::start(config(home.path(), "a"), &runtime).await.unwrap();
    let b = OctopiiNode::start(config(home.path(), "b"), &runtime).await.unwrap();
    ship(home.path(), &a, &b).await;
    if shut_down {
        a.shutdown().await;
        a.shutdown().await;
        b.shutdown().await;
        runtime.shutdown(Duration::from_secs(1));
    }
}

#[test]
fn a_tokio_main_program_can_create_use_and_drop_everything() {
    in_a_tokio_main(false);
    in_a_tokio_main(true);
}

#[test]
fn a_current_thread_application_awaits_the_nodes_methods() {
    let home = tempdir().unwrap();
    let runtime = OctopiiRuntime::new(1);
    let application = tokio::runtime::Builder::new_current_thread().build().unwrap();
    application.block_on(async {
        let a = OctopiiNode::start(config(home.path(), "a"), &runtime).await.unwrap();
        let b = OctopiiNode::start(config(home.path(), "b"), &runtime).await.unwrap();
        ship(home.path(), &a, &b).await;
    });
}

/// An executor that knows nothing of tokio: polls, and parks between polls.
#[test]
fn a_foreign_executor_awaits_the_nodes_methods() {
    let home = tempdir().unwrap();
    let runtime = OctopiiRuntime::new(1);
    let a = runtime.block_on(OctopiiNode::start(config(home.path(), "a"), &runtime)).unwrap();
    let b = runtime.block_on(OctopiiNode::start(config(home.path(), "b"), &runtime)).unwrap();
    let to = b.local_addr();
    let peer = pollster(a.connect(to)).unwrap();
    // Dropped with its node, the acknowledgement could be lost: the node lives on here.
    let receiver = b.clone();
    let taking = std::thread::spawn(move || pollster(async move { receiver.recv().await.1 }));
    pollster(peer.send("from a plain thread")).unwrap();
    assert_eq!(taking.join().unwrap(), "from a plain thread");
}

fn pollster<F: Future>(future: F) -> F::Output {
    struct Unpark(std::thread::Thread);
    impl std::task::Wake for Unpark {
        fn wake(self: std::sync::Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = std::sync::Arc::new(Unpark(std::thread::current())).into();
    let mut future = std::pin::pin!(future);
    loop {
        if let std::task::Poll::Ready(output) =
            future.as_mut().poll(&mut std::task::Context::from_waker(&waker))
        {
            return output;
        }
        std::thread::park();
    }
}

#[test]
fn nodes_use_octopiis_threads_and_not_the_applications() {
    let home = tempdir().unwrap();
    let runtime = OctopiiRuntime::new(1);
    let mut router = octopii::Router::new();
    router.register("thread", |_: octopii::Context, (): ()| async move {
        Ok(std::thread::current().name().unwrap_or_default().to_owned())
    });
    let application = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let name: String = application.block_on(async {
        let a = OctopiiNode::start(config(home.path(), "a"), &runtime).await.unwrap();
        let b = OctopiiNode::builder(config(home.path(), "b")).router(router).start(&runtime).await.unwrap();
        a.peer(b.local_addr()).call("thread", &(), Duration::from_secs(5)).await.unwrap()
    });
    assert!(name.starts_with("octopii-"), "{name}");
}
