//! Unary calls beside quinn by itself: a stream per request, and one stream on which requests follow each other.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes, BytesMut};
use octopii_bench::Outcome;
use octopii_bench::report::{Subject, in_turn, median, quantile, ratios};
use octopii_rpc::{Client, Router, Server, ServerOptions, StreamKind};
use octopii_transport::{ClusterAuthority, Endpoint, EndpointOptions, Executor};
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::{mpsc, oneshot};

use crate::raw_quic;

const DEADLINE: Duration = Duration::from_secs(10);

/// Where the two sides run.
#[derive(Debug, Clone, Copy)]
enum Layout {
    /// Both on one runtime with two threads.
    Shared,
    /// Each on a runtime of its own with one thread, as two processes would.
    Apart,
}

/// What one round of one subject gave.
struct Round {
    rate: f64,
    p50: Duration,
    p99: Duration,
}

pub(crate) fn measure(rounds: usize, time: Duration) -> Outcome<()> {
    for (layout, title) in [
        (Layout::Apart, "each side on a runtime of its own with one thread"),
        (Layout::Shared, "both sides on one runtime with two threads"),
    ] {
        println!("\n### RPC: one connection, mutual TLS, {title}; calls/s (p50, p99)\n");
        println!(
            "| workload | raw, a stream per request | raw, one pipelined stream | octopii | ratio to the first | to the second |"
        );
        println!("|---|---|---|---|---|---|");
        for (size, in_flight) in [(64, 1), (64, 64), (64 << 10, 1), (64 << 10, 64)] {
            let load = Load { layout, size, in_flight, time };
            let mut taken = in_turn(
                rounds,
                &mut [
                    Box::new(|| load.run(raw_streams)) as Subject<'_, Round>,
                    Box::new(|| load.run(raw_pipelined)),
                    Box::new(|| load.run(own_calls)),
                ],
            )?;
            let rates: Vec<Vec<f64>> = taken.iter().map(|r| r.iter().map(|r| r.rate).collect()).collect();
            let told: Vec<String> = taken.iter_mut().map(|rounds| tell(rounds)).collect();
            let spread = |reference: usize| {
                let mut ratios = ratios(&rates[2], &rates[reference]);
                let median = median(&mut ratios);
                format!("{median:.2} ({:.2} to {:.2})", ratios[0], ratios[ratios.len() - 1])
            };
            println!(
                "| {size} B, {in_flight} in flight | {} | {} | {} |",
                told.join(" | "),
                spread(0),
                spread(1)
            );
        }
    }
    Ok(())
}

fn tell(rounds: &mut [Round]) -> String {
    let mut rates: Vec<_> = rounds.iter().map(|r| r.rate).collect();
    let mut p50: Vec<_> = rounds.iter().map(|r| r.p50).collect();
    let mut p99: Vec<_> = rounds.iter().map(|r| r.p99).collect();
    format!("{:.0} ({:.0?}, {:.0?})", median(&mut rates), quantile(&mut p50, 0.5), quantile(&mut p99, 0.5))
}

/// What is asked of each subject.
#[derive(Debug, Clone, Copy)]
struct Load {
    layout: Layout,
    size: usize,
    in_flight: usize,
    time: Duration,
}

impl Load {
    fn run<F, Fut>(self, subject: F) -> Outcome<Round>
    where
        F: FnOnce(Self, Handle) -> Fut,
        Fut: Future<Output = Outcome<Round>>,
    {
        let threads = |n| -> Outcome<Runtime> {
            Ok(Builder::new_multi_thread().worker_threads(n).enable_all().build()?)
        };
        match self.layout {
            Layout::Shared => {
                let both = threads(2)?;
                both.block_on(subject(self, both.handle().clone()))
            }
            Layout::Apart => {
                let (client, server) = (threads(1)?, threads(1)?);
                client.block_on(subject(self, server.handle().clone()))
            }
        }
    }

    fn body(self) -> Bytes {
        Bytes::from(vec![7; self.size])
    }

    /// As many tasks as shall be in flight, each of which calls again and again.
    async fn drive<F, Fut>(self, call: F) -> Outcome<Round>
    where
        F: Fn() -> Fut + Clone + Send + 'static,
        Fut: Future<Output = Outcome<()>> + Send,
    {
        let begun = Instant::now();
        let tasks: Vec<_> = (0..self.in_flight)
            .map(|_| {
                let call = call.clone();
                tokio::spawn(async move {
                    let mut taken = Vec::new();
                    let mut at = Instant::now();
                    while at - begun < self.time {
                        call().await?;
                        let now = Instant::now();
                        taken.push(now - at);
                        at = now;
                    }
                    Ok::<_, Box<dyn std::error::Error + Send + Sync>>(taken)
                })
            })
            .collect();
        let mut times = Vec::new();
        for task in tasks {
            times.extend(task.await??);
        }
        let rate = times.len() as f64 / begun.elapsed().as_secs_f64();
        Ok(Round { rate, p50: quantile(&mut times, 0.5), p99: quantile(&mut times, 0.99) })
    }
}

async fn raw_streams(load: Load, server: Handle) -> Outcome<Round> {
    let pair = raw_quic::pair(&server).await?;
    let accepting = pair.server.clone();
    let serving = server.spawn(async move {
        while let Ok((mut send, mut recv)) = accepting.accept_bi().await {
            tokio::spawn(async move {
                if let Ok(body) = recv.read_to_end(1 << 20).await {
                    let _ = send.write_chunk(body.into()).await;
                    let _ = send.finish();
                }
            });
        }
    });
    let (body, client) = (load.body(), pair.client.clone());
    let round = load
        .drive(move || {
            let (connection, body) = (client.clone(), body.clone());
            async move {
                let (mut send, mut recv) = connection.open_bi().await?;
                send.write_chunk(body).await?;
                send.finish()?;
                recv.read_to_end(1 << 20).await?;
                Ok(())
            }
        })
        .await;
    serving.abort();
    round
}

/// What a lane could reach at the very most: bytes that are sent back as they come, requests that are known by their order.
async fn raw_pipelined(load: Load, server: Handle) -> Outcome<Round> {
    let pair = raw_quic::pair(&server).await?;
    let accepting = pair.server.clone();
    let serving = server.spawn(async move {
        let Ok((mut send, mut recv)) = accepting.accept_bi().await else { return };
        while let Ok(Some(chunk)) = recv.read_chunk(usize::MAX, true).await {
            if send.write_chunk(chunk.bytes).await.is_err() {
                return;
            }
        }
    });
    let (mut send, mut recv) = pair.client.open_bi().await?;
    let (queue, mut queued) = mpsc::channel::<(Bytes, oneshot::Sender<()>)>(1024);
    let waiting: Arc<Mutex<VecDeque<oneshot::Sender<()>>>> = Arc::default();
    let asked = Arc::clone(&waiting);
    let writing = tokio::spawn(async move {
        let mut batch = Vec::new();
        let mut out = BytesMut::new();
        while queued.recv_many(&mut batch, 64).await > 0 {
            {
                let mut asked = asked.lock().expect("no panic while held");
                for (body, done) in batch.drain(..) {
                    out.extend_from_slice(&body);
                    asked.push_back(done);
                }
            }
            if send.write_chunk(out.split().freeze()).await.is_err() {
                return;
            }
        }
    });
    let size = load.size;
    let reading = tokio::spawn(async move {
        let mut pending = 0;
        while let Ok(Some(mut chunk)) = recv.read_chunk(usize::MAX, true).await {
            pending += chunk.bytes.remaining();
            chunk.bytes.clear();
            let mut waiting = waiting.lock().expect("no panic while held");
            while pending >= size {
                pending -= size;
                if let Some(done) = waiting.pop_front() {
                    let _ = done.send(());
                }
            }
        }
    });
    let body = load.body();
    let round = load
        .drive(move || {
            let (queue, body) = (queue.clone(), body.clone());
            async move {
                let (done, answered) = oneshot::channel();
                queue.send((body, done)).await?;
                Ok(answered.await?)
            }
        })
        .await;
    [serving, writing, reading].iter().for_each(tokio::task::JoinHandle::abort);
    round
}

async fn own_calls(load: Load, server: Handle) -> Outcome<Round> {
    let authority = ClusterAuthority::generate()?;
    let bind = |node, handle| -> Outcome<Endpoint> {
        let executor = Executor::new(handle);
        Ok(Endpoint::bind(&executor, &authority.issue(node)?, EndpointOptions::default())?)
    };
    let (a, b) = (bind(1, Handle::current())?, bind(2, server)?);
    let mut router = Router::new();
    router.register_raw("echo", |_, body| async move { Ok(body) });
    let _server = Server::spawn(&b, StreamKind::Rpc, router, ServerOptions::default())?;
    let (client, addr, body) = (Client::new(&a, StreamKind::Rpc), b.local_addr(), load.body());
    client.call_raw(addr, "echo", body.clone(), DEADLINE).await?;
    load.drive(move || {
        let (client, body) = (client.clone(), body.clone());
        async move { Ok(client.call_raw(addr, "echo", body, DEADLINE).await.map(|_| ())?) }
    })
    .await
}
