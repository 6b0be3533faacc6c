//! Send a directory, and send it again: only what has changed travels. `cargo run --example directory`
#![allow(clippy::disallowed_methods, reason = "an application uses files as it likes")]

use std::error::Error;

use octopii::{Config, OctopiiNode, OctopiiRuntime};

fn main() -> Result<(), Box<dyn Error>> {
    let home = tempfile::tempdir()?;
    let photos = home.path().join("photos");
    std::fs::create_dir(&photos)?;
    for n in 0..1000 {
        std::fs::write(photos.join(format!("{n}.jpg")), vec![7; 4096])?;
    }
    let runtime = OctopiiRuntime::new(2);
    runtime.block_on(async {
        let sender = OctopiiNode::start(Config::new(home.path().join("sender")), &runtime).await?;
        let receiver = OctopiiNode::start(Config::new(home.path().join("receiver")), &runtime).await?;
        let peer = sender.peer(receiver.local_addr());

        let report = peer.send_tree(&photos).await?;
        println!(
            "{} files in {:?}, durable; all of it: {}",
            report.stored,
            report.duration,
            report.is_complete()
        );
        for entry in &report.undone {
            println!("not done: {entry}");
        }

        std::fs::write(photos.join("7.jpg"), "another")?;
        let again = peer.send_tree(&photos).await?;
        println!("{} changed, {} unchanged", again.stored, again.unchanged);
        assert_eq!((again.stored, again.unchanged), (1, 999));

        sender.shutdown().await;
        receiver.shutdown().await;
        Ok(())
    })
}
