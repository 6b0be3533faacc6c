//! A state machine of your own, replicated on three nodes: a bank that never loses money.
//! `cargo run --example custom_state_machine`

use std::collections::BTreeMap;
use std::error::Error;
use std::io::{self, Read, Write};
use std::time::Duration;

use bytes::Bytes;
use octopii::{
    Bincode, Codec, Config, OctopiiNode, OctopiiRuntime, ProposeError, Rejected, SnapshotSource, StateMachine,
};
use serde::{Deserialize, Serialize};

#[derive(Default)]
struct Bank {
    accounts: BTreeMap<String, u64>,
}

#[derive(Serialize, Deserialize)]
enum Command {
    Deposit { to: String, amount: u64 },
    Move { from: String, to: String, amount: u64 },
}

impl StateMachine for Bank {
    fn apply(&mut self, command: &[u8]) -> Result<Bytes, Rejected> {
        match Bincode::decode(command).map_err(Rejected::new)? {
            Command::Deposit { to, amount } => *self.accounts.entry(to).or_default() += amount,
            Command::Move { from, to, amount } => {
                let balance = self.accounts.get_mut(&from).filter(|balance| **balance >= amount);
                *balance.ok_or_else(|| Rejected::new(format!("{from} does not have {amount}")))? -= amount;
                *self.accounts.entry(to).or_default() += amount;
            }
        }
        Ok(Bytes::new())
    }

    fn query(&self, account: &[u8]) -> Result<Bytes, Rejected> {
        let account = std::str::from_utf8(account).map_err(Rejected::new)?;
        Ok(self.accounts.get(account).copied().unwrap_or(0).to_string().into())
    }

    fn capture(&self) -> Box<dyn SnapshotSource> {
        Box::new(Captured(self.accounts.clone()))
    }

    fn restore(&mut self, snapshot: &mut dyn Read) -> io::Result<()> {
        let mut bytes = Vec::new();
        snapshot.read_to_end(&mut bytes)?;
        self.accounts = Bincode::decode(&bytes).map_err(io::Error::other)?;
        Ok(())
    }
}

struct Captured(BTreeMap<String, u64>);

impl SnapshotSource for Captured {
    fn write_to(self: Box<Self>, out: &mut dyn Write) -> io::Result<()> {
        out.write_all(&Bincode::encode(&self.0).map_err(io::Error::other)?)
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let home = tempfile::tempdir()?;
    let runtime = OctopiiRuntime::new(2);
    runtime.block_on(async {
        // Every member is given the same map of addresses.
        let ports: Vec<_> =
            (0..3).map(|_| std::net::UdpSocket::bind("127.0.0.1:0")).collect::<Result<_, _>>()?;
        let addresses = ports.iter().map(|port| port.local_addr()).collect::<Result<Vec<_>, _>>()?;
        drop(ports);
        let members: BTreeMap<_, _> = (1..).zip(addresses).collect();
        let mut nodes = Vec::new();
        for (id, addr) in &members {
            let config = Config {
                node_id: Some(*id),
                bind: *addr,
                members: members.iter().map(|(id, addr)| (*id, (*addr).into())).collect(),
                ..Config::new(home.path().join(format!("node{id}")))
            };
            nodes.push(OctopiiNode::builder(config).state_machine(Bank::default()).start(&runtime).await?);
        }
        nodes[0].wait_for_leader(Duration::from_secs(10)).await.ok_or("no leader")?;

        // Through any node: it reaches the leader.
        let encode = |command| Bincode::encode(&command);
        nodes[0].propose(encode(Command::Deposit { to: "ann".into(), amount: 100 })?).await?;
        nodes[1].propose(encode(Command::Move { from: "ann".into(), to: "bob".into(), amount: 30 })?).await?;
        let refused = nodes[2]
            .propose(encode(Command::Move { from: "bob".into(), to: "ann".into(), amount: 31 })?)
            .await;
        match refused {
            Err(ProposeError::Rejected(reason)) => println!("refused: {}", reason.reason()),
            other => println!("unexpected: {other:?}"),
        }
        // Linearizable on every node.
        for node in &nodes {
            let (ann, bob) = (node.query(b"ann").await?, node.query(b"bob").await?);
            println!("node {}: ann has {ann:?}, bob has {bob:?}", node.node_id());
        }
        for node in &nodes {
            node.shutdown().await;
        }
        Ok(())
    })
}
