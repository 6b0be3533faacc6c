//! A very large file between two processes: how soon it begins, and what memory it takes.

use std::path::Path;

use octopii_bench::Outcome;
use octopii_transport::ClusterAuthority;

use crate::distribute::{Receiving, Sent};

pub(crate) fn measure(dir: &Path, gib: u64) -> Outcome<()> {
    println!("\n### {gib} GiB from process to process, disk to disk, durable\n");
    println!("| MiB/s | first payload byte | peak resident memory: sender | receiver |\n|---|---|---|---|");
    let authority = ClusterAuthority::generate()?;
    let identities = [dir.join("1.pem"), dir.join("2.pem")];
    for (path, id) in identities.iter().zip(1..) {
        std::fs::write(path, authority.issue(id)?.to_pem())?;
    }
    let file = dir.join("large.bin");
    std::fs::File::create(&file)?.set_len(gib << 30)?;
    let socket = std::net::UdpSocket::bind("127.0.0.1:0")?;
    let address = socket.local_addr()?;
    drop(socket);
    let program = || Ok::<_, std::io::Error>(std::process::Command::new(std::env::current_exe()?));
    let mut command = program()?;
    command.arg("--identity").arg(&identities[1]).arg("--bind").arg(address.to_string());
    let receiver = Receiving::start(command, &dir.join("large"))?;
    let mut command = program()?;
    command
        .arg("--identity")
        .arg(&identities[0])
        .arg("--send-file")
        .arg(&file)
        .arg("--peers")
        .arg(address.to_string());
    let sent = Sent::of(command.output()?)?;
    println!(
        "| {:.0} | {:.1} ms | {:.1} MiB | {:.1} MiB |",
        (gib << 10) as f64 / sent.seconds,
        sent.first_byte * 1e3,
        sent.peak_kib as f64 / 1024.0,
        receiver.peak_kib()? as f64 / 1024.0
    );
    Ok(())
}
