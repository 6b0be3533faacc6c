//! The `octopii` command as its users run it: real processes, real signals.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "tests fail by panicking and use real files and processes"
)]

mod calling;
mod cluster;
mod demo;
mod joining;
mod killed;
mod mistakes;
mod removing;
mod shipping;
mod strangers;
mod syscalls;

use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

/// A user with a home of their own: nothing of the real one's is read or written.
struct Home(TempDir);

impl Home {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_octopii"));
        command.current_dir(self.path()).args(args).env("OCTOPII_STATE_DIR", self.path().join("state"));
        for name in [
            "OCTOPII_NODES",
            "OCTOPII_IDENTITY",
            "OCTOPII_DATA_DIR",
            "OCTOPII_BIND",
            "OCTOPII_LOG",
            "OCTOPII_JOIN",
            "OCTOPII_AUTHORITY",
        ] {
            command.env_remove(name);
        }
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(args).stdin(Stdio::null()).output().unwrap()
    }

    /// Starts a command that goes on, with `--json`, and waits for its first line.
    fn start(&self, args: &[&str]) -> Running {
        let mut child = self
            .command(args)
            .arg("--json")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        let mut running = Running { child, lines };
        let first = running.line();
        assert_eq!(first["event"], "listening", "{first}");
        running
    }
}

/// A command that goes on until it is killed, at the latest by being dropped.
struct Running {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Running {
    fn line(&mut self) -> Value {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {line:?}"))
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free_addresses(n: usize) -> Vec<SocketAddr> {
    let sockets: Vec<_> = (0..n).map(|_| UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
    sockets.iter().map(|socket| socket.local_addr().unwrap()).collect()
}

/// The first of three consecutive free ports.
fn three_free_ports() -> u16 {
    let mut found = (0..50).map(|_| free_addresses(1)[0].port());
    let free = |port: u16| (0..3).all(|n| UdpSocket::bind(("127.0.0.1", port.saturating_add(n))).is_ok());
    found.find(|port| *port < 65_000 && free(*port)).unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// The command ended well; gives what it printed.
fn succeeded(output: &Output) -> String {
    assert!(output.status.success(), "{:?}: {}{}", output.status, stdout(output), stderr(output));
    stdout(output)
}

/// The command failed with this code and one clear line that contains `told`.
fn failed(output: &Output, code: i32, told: &str) {
    let all = stderr(output);
    assert_eq!(output.status.code(), Some(code), "{all}");
    // A busy machine may be warned of, which says nothing about the command.
    let mut lines = all.lines().filter(|line| !line.contains("WARN"));
    let line = lines.next().unwrap_or_default();
    assert!(line.contains(told), "{told:?} is not in {line:?}: {all}");
    assert_eq!(lines.next(), None, "more than one line: {all}");
    assert!(!all.contains("panicked"), "{all}");
}
