//! Two endpoints exchange streams of real QUIC over a bad network.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use octopii_sim::{Machine, Options, Outcome, Scenario, Trace, Weather};
use octopii_transport::{ClusterAuthority, Endpoint, EndpointOptions, Identity, StreamKind};

use crate::replay;

const PORT: u16 = 7000;
const ROUNDS: u32 = 20;

pub(super) fn run(seed: u64) -> Trace {
    let weather = Weather { loss: 0.02, duplication: 0.02 };
    Scenario::run(seed, Options { weather, ..Options::default() }, |scenario| {
        let authority = ClusterAuthority::generate().unwrap();
        let (one, two) = (authority.issue(1).unwrap(), authority.issue(2).unwrap());
        let done = Arc::new(AtomicU32::new(0));
        scenario.host("server", move |machine| serve(machine, one.clone()));
        let progress = Arc::clone(&done);
        scenario.host("client", move |machine| call(machine, two.clone(), Arc::clone(&progress)));

        scenario.run_until(Duration::from_secs(60), || done.load(Ordering::SeqCst) == ROUNDS).unwrap();
        // The connection outlives neither a partition nor a reboot of the other side; the pool dials again.
        done.store(0, Ordering::SeqCst);
        scenario.crash("server");
        scenario.run_for(Duration::from_secs(1));
        scenario.boot("server");
        scenario.kill("client");
        scenario.boot("client");
        scenario.run_until(Duration::from_secs(60), || done.load(Ordering::SeqCst) == ROUNDS).unwrap();
        scenario.trace().clone()
    })
}

async fn bind(machine: &Machine, identity: &Identity) -> Result<Endpoint, Box<dyn std::error::Error>> {
    let options = EndpointOptions {
        socket: Some(machine.bind(PORT).await?),
        rng_seed: Some(machine.rng_seed("quic")),
        ..EndpointOptions::default()
    };
    Ok(Endpoint::bind(&machine.executor(), identity, options)?)
}

async fn serve(machine: Machine, identity: Identity) -> Outcome {
    let endpoint = bind(&machine, &identity).await?;
    let mut acceptor = endpoint.acceptor(StreamKind::Message)?;
    while let Some(mut incoming) = acceptor.accept().await {
        endpoint.executor().spawn(async move {
            while let Ok(Some(chunk)) = incoming.recv.read_chunk(64 << 10).await {
                if incoming.send.write_chunk(chunk).await.is_err() {
                    return;
                }
            }
            // The caller went away: nobody is left to tell.
            let _ = incoming.send.finish();
        });
    }
    Ok(())
}

async fn call(machine: Machine, identity: Identity, done: Arc<AtomicU32>) -> Outcome {
    let endpoint = bind(&machine, &identity).await?;
    let server = machine.lookup("server", PORT);
    let mut rng = machine.rng("messages");
    for round in 0..ROUNDS {
        let mut message = vec![0; rng.below(50_000) as usize];
        rng.fill(&mut message);
        let connection = endpoint.connect_to(1, server).await?;
        let (mut send, mut recv) = connection.open(StreamKind::Message).await?;
        let write = async {
            send.write_all(&message).await?;
            send.finish()
        };
        let read = async {
            let mut back = Vec::new();
            while let Some(chunk) = recv.read_chunk(64 << 10).await? {
                back.extend_from_slice(&chunk);
            }
            Ok(back)
        };
        let ((), back) = tokio::try_join!(write, read)?;
        assert_eq!(back, message);
        machine.record(format_args!("round {round} came back"), &back);
        done.fetch_add(1, Ordering::SeqCst);
    }
    std::future::pending().await
}

#[test]
fn echo_is_deterministic() {
    replay::check_deterministic("echo", 0..3);
}
