//! Unary calls beside a stream per request on quinn by itself.

use std::time::{Duration, Instant};

use bytes::Bytes;
use octopii_bench::Outcome;
use octopii_bench::report::{compare, head, quantile};
use octopii_rpc::{Client, Router, Server, ServerOptions, StreamKind};
use octopii_transport::{ClusterAuthority, Endpoint, EndpointOptions, Executor};
use tokio::runtime::{Builder, Runtime};

use crate::raw_quic;

const DEADLINE: Duration = Duration::from_secs(10);

pub(crate) fn measure(rounds: usize, time: Duration) -> Outcome<()> {
    head("RPC: one connection, mutual TLS, beside a raw quinn echo with a stream per request", "calls/s");
    for (size, in_flight) in [(64, 1), (64, 64), (64 << 10, 1), (64 << 10, 64)] {
        let (mut raw_times, mut own_times) = (Vec::new(), Vec::new());
        compare(
            format_args!("{size} B, {in_flight} in flight"),
            rounds,
            || threads()?.block_on(raw_calls(size, in_flight, time, &mut raw_times)),
            || {
                let runtime = threads()?;
                runtime.block_on(own_calls(size, in_flight, time, &mut own_times))
            },
        )?;
        let told = |times: &mut Vec<Duration>| {
            format!("p50 {:.0?} p99 {:.0?}", quantile(times, 0.5), quantile(times, 0.99))
        };
        println!("|   round trips | {} | {} | | |", told(&mut raw_times), told(&mut own_times));
    }
    Ok(())
}

fn threads() -> Outcome<Runtime> {
    Ok(Builder::new_multi_thread().worker_threads(2).enable_all().build()?)
}

async fn raw_calls(size: usize, in_flight: usize, time: Duration, times: &mut Vec<Duration>) -> Outcome<f64> {
    let pair = raw_quic::pair().await?;
    let server = pair.server.clone();
    let serving = tokio::spawn(async move {
        while let Ok((mut send, mut recv)) = server.accept_bi().await {
            tokio::spawn(async move {
                if let Ok(body) = recv.read_to_end(1 << 20).await {
                    let _ = send.write_chunk(body.into()).await;
                    let _ = send.finish();
                }
            });
        }
    });
    let body = Bytes::from(vec![7; size]);
    let client = pair.client.clone();
    let rate = run(in_flight, time, times, move || {
        let (connection, body) = (client.clone(), body.clone());
        async move {
            let (mut send, mut recv) = connection.open_bi().await?;
            send.write_chunk(body).await?;
            send.finish()?;
            recv.read_to_end(1 << 20).await?;
            Ok(())
        }
    })
    .await?;
    serving.abort();
    Ok(rate)
}

async fn own_calls(size: usize, in_flight: usize, time: Duration, times: &mut Vec<Duration>) -> Outcome<f64> {
    let executor = Executor::new(tokio::runtime::Handle::current());
    let authority = ClusterAuthority::generate()?;
    let a = Endpoint::bind(&executor, &authority.issue(1)?, EndpointOptions::default())?;
    let b = Endpoint::bind(&executor, &authority.issue(2)?, EndpointOptions::default())?;
    let mut router = Router::new();
    router.register_raw("echo", |_, body| async move { Ok(body) });
    let _server = Server::spawn(&b, StreamKind::Rpc, router, ServerOptions::default())?;
    let (client, addr, body) = (Client::new(&a, StreamKind::Rpc), b.local_addr(), Bytes::from(vec![7; size]));
    client.call_raw(addr, "echo", body.clone(), DEADLINE).await?;
    run(in_flight, time, times, move || {
        let (client, body) = (client.clone(), body.clone());
        async move { Ok(client.call_raw(addr, "echo", body, DEADLINE).await.map(|_| ())?) }
    })
    .await
}

/// `in_flight` tasks that each call again and again; gives calls per second.
async fn run<F, Fut>(in_flight: usize, time: Duration, times: &mut Vec<Duration>, call: F) -> Outcome<f64>
where
    F: Fn() -> Fut + Clone + Send + 'static,
    Fut: Future<Output = Outcome<()>> + Send,
{
    let begun = Instant::now();
    let tasks: Vec<_> = (0..in_flight)
        .map(|_| {
            let call = call.clone();
            tokio::spawn(async move {
                let mut taken = Vec::new();
                while begun.elapsed() < time {
                    let at = Instant::now();
                    call().await?;
                    taken.push(at.elapsed());
                }
                Ok::<_, Box<dyn std::error::Error + Send + Sync>>(taken)
            })
        })
        .collect();
    let mut calls = 0;
    for task in tasks {
        let taken = task.await??;
        calls += taken.len();
        times.extend(taken);
    }
    Ok(calls as f64 / begun.elapsed().as_secs_f64())
}
