//! A service, defined once for both sides: unary and streaming calls, metadata, deadlines, retries.
//! `cargo run --release --example rpc_service`

use std::collections::BTreeMap;
use std::error::Error;
use std::sync::Mutex;
use std::time::Duration;

use futures_util::{StreamExt, stream};
use octopii::{
    CallOptions, Code, Config, Context, Metadata, OctopiiNode, OctopiiRuntime, Requests, ResponseStream,
    Router, Status,
};
use serde::{Deserialize, Serialize};

/// A change of an account.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Booking {
    /// Whose.
    pub account: String,
    /// How much is added.
    pub amount: u64,
}

octopii::service! {
    /// Accounts, and what is on them.
    pub mod bank = "bank" {
        /// What is on an account.
        idempotent fn balance(account: String) -> u64;
        /// Books everything that is sent, and tells how much it was.
        fn book(bookings: stream Booking) -> u64;
        /// All accounts, in order.
        fn accounts() -> stream Booking;
        /// Answers each booking with the balance after it.
        fn converse(bookings: stream Booking) -> stream u64;
    }
}

#[derive(Default)]
struct Bank {
    accounts: std::sync::Arc<Mutex<BTreeMap<String, u64>>>,
}

fn add(accounts: &Mutex<BTreeMap<String, u64>>, booking: Booking) -> u64 {
    let mut accounts = accounts.lock().expect("no panic while held");
    let balance = accounts.entry(booking.account).or_default();
    *balance += booking.amount;
    *balance
}

impl bank::Service for Bank {
    async fn balance(&self, context: Context, account: String) -> Result<u64, Status> {
        // Who calls is known from the certificate; what it says beside that, from the metadata.
        let teller = context.metadata.get_str("teller").unwrap_or("nobody");
        println!("node {} asks for {account}, served by {teller}", context.peer.node_id);
        let accounts = self.accounts.lock().expect("no panic while held");
        accounts
            .get(&account)
            .copied()
            .ok_or_else(|| Status::new(Code::NotFound, format!("no account {account:?}")))
    }

    async fn book(&self, _: Context, mut bookings: Requests<Booking>) -> Result<u64, Status> {
        let mut sum = 0;
        while let Some(booking) = bookings.next().await {
            let booking = booking?;
            sum += booking.amount;
            add(&self.accounts, booking);
        }
        Ok(sum)
    }

    async fn accounts(&self, _: Context) -> Result<ResponseStream<Booking>, Status> {
        let accounts = self.accounts.lock().expect("no panic while held").clone();
        let booking = |(account, amount)| Ok(Booking { account, amount });
        Ok(stream::iter(accounts.into_iter().map(booking)).boxed())
    }

    async fn converse(&self, _: Context, bookings: Requests<Booking>) -> Result<ResponseStream<u64>, Status> {
        let accounts = self.accounts.clone();
        Ok(bookings.map(move |booking| Ok(add(&accounts, booking?))).boxed())
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let home = tempfile::tempdir()?;
    let mut router = Router::new();
    bank::register(&mut router, Bank::default());

    let runtime = OctopiiRuntime::new(2);
    runtime.block_on(async {
        let node = OctopiiNode::start(Config::new(home.path().join("client")), &runtime).await?;
        let server = OctopiiNode::builder(Config::new(home.path().join("server")))
            .router(router)
            .start(&runtime)
            .await?;
        let bank = bank::Client::new(node.rpc(), server.local_addr(), Duration::from_secs(5));
        let booking = |account: &str, amount| Booking { account: account.to_owned(), amount };

        let mut book = bank.book().await?;
        for amount in 1..=100 {
            book.send(&booking("alice", amount)).await?;
        }
        println!("booked {}", book.finish().await?);

        let (mut bookings, mut balances) = bank.converse().await?;
        for amount in [7, 8] {
            bookings.send(&booking("bob", amount)).await?;
            println!("bob has {}", balances.next().await.ok_or("it answers each")??);
        }
        bookings.finish().await?;

        let mut metadata = Metadata::new();
        metadata.insert("teller", "carol")?;
        let asked = bank.with_options(CallOptions::new(Duration::from_secs(1)).metadata(metadata));
        assert_eq!(asked.balance("alice".into()).await?, 5050);
        let missing = asked.balance("dave".into()).await.expect_err("there is no such account");
        assert_eq!(missing.code, Code::NotFound);

        let mut accounts = bank.accounts().await?;
        while let Some(account) = accounts.next().await {
            println!("{:?}", account?);
        }
        node.shutdown().await;
        server.shutdown().await;
        Ok(())
    })
}
