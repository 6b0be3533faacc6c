//! Taking connections and streams: handshakes off the accept loop, each stream to the acceptor of its kind.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::Mutex;

use tokio::sync::{Semaphore, mpsc};
use tokio::time::{Instant, timeout};

use crate::activity::close_when_unused;
use crate::endpoint::Shared;
use crate::join::is_joiner;
use crate::members::{REVOKED, Unwelcome};
use crate::places::{Place, Places};
use crate::revocation::{TRUST, receive, tell};
use crate::socket::canonical;
use crate::stats::SAMPLE_EVERY;
use crate::stream::StreamKind;
use crate::{AcceptorTaken, Connection, PeerRole, RecvStream, SendStream, tls};

/// A stream that a peer opened.
#[derive(Debug)]
pub struct Incoming {
    /// Towards the peer.
    pub send: SendStream,
    /// From the peer.
    pub recv: RecvStream,
    /// The connection it came on.
    pub connection: Connection,
}

/// Receives the streams of one kind from every peer.
#[derive(Debug)]
pub struct Acceptor(mpsc::Receiver<Incoming>);

impl Acceptor {
    /// The next stream, or `None` once the endpoint is closed. Cancel-safe.
    pub async fn accept(&mut self) -> Option<Incoming> {
        self.0.recv().await
    }
}

/// The code with which a stream is turned away: unknown kind, or nobody takes it.
const REFUSED: u32 = 1;

/// The code with which a connection beyond the limit is turned away.
const TOO_MANY_CONNECTIONS: u32 = 2;

/// Where streams go by their kind.
#[derive(Debug)]
pub(crate) struct Dispatch {
    // Empty once the endpoint is closed.
    queues: Mutex<Vec<mpsc::Sender<Incoming>>>,
    acceptors: Mutex<Vec<Option<Acceptor>>>,
}

impl Dispatch {
    pub(crate) fn new(queue: usize) -> Self {
        let (queues, acceptors) = StreamKind::ALL
            .iter()
            .map(|_| mpsc::channel(queue.max(1)))
            .map(|(s, r)| (s, Some(Acceptor(r))))
            .unzip();
        Self { queues: Mutex::new(queues), acceptors: Mutex::new(acceptors) }
    }

    pub(crate) fn take(&self, kind: StreamKind) -> Result<Acceptor, AcceptorTaken> {
        self.acceptors.lock().expect("no panic while held")[kind.index()].take().ok_or(AcceptorTaken(kind))
    }

    fn queue(&self, kind: StreamKind) -> Option<mpsc::Sender<Incoming>> {
        // A kind that nobody has asked for is refused at once instead of filling a queue.
        if self.acceptors.lock().expect("no panic while held")[kind.index()].is_some() {
            return None;
        }
        self.queues.lock().expect("no panic while held").get(kind.index()).cloned()
    }

    /// Lets every acceptor end.
    fn close(&self) {
        self.queues.lock().expect("no panic while held").clear();
    }
}

/// Accepts connections until the endpoint is closed.
pub(crate) async fn accept_connections(shared: Arc<Shared>) {
    let handshakes = Places::new(shared.limits.handshakes);
    let connections = Arc::new(Semaphore::new(shared.limits.connections.min(Semaphore::MAX_PERMITS)));
    let sampling = shared.executor.spawn(sample(Arc::clone(&shared)));
    while let Some(incoming) = shared.quic.accept().await {
        if is_joiner(&incoming) {
            admit_joiner(&shared, incoming);
            continue;
        }
        let is_proven = incoming.remote_address_validated();
        if !is_proven && incoming.may_retry() && handshakes.is_quarter_full() {
            // Under load an address must be proven before it costs a handshake. An error means it was proven.
            let _ = incoming.retry();
            continue;
        }
        let Some(place) = handshakes.take(is_proven.then(|| incoming.remote_address())) else {
            incoming.refuse();
            continue;
        };
        shared.executor.spawn(accept_connection(
            Arc::clone(&shared),
            incoming,
            place,
            Arc::clone(&connections),
        ));
    }
    sampling.abort();
    shared.dispatch.close();
}

/// Takes every connection's rates, second by second.
async fn sample(shared: Arc<Shared>) {
    loop {
        tokio::time::sleep(SAMPLE_EVERY).await;
        let now = Instant::now();
        for connection in shared.members.live() {
            connection.state().sampled.take(connection.quic(), now);
        }
    }
}

/// Joiners never take the place of a member's handshake, and cost nothing until their address is proven.
fn admit_joiner(shared: &Arc<Shared>, incoming: quinn::Incoming) {
    let config = shared.credentials().join.clone();
    let (Some(door), Some(config)) = (&shared.door, config) else { return incoming.refuse() };
    if !incoming.remote_address_validated() && incoming.may_retry() {
        // An error means that it was proven.
        let _ = incoming.retry();
        return;
    }
    let Some(place) = door.place(incoming.remote_address()) else { return incoming.refuse() };
    let shared = Arc::clone(shared);
    let executor = shared.executor.clone();
    executor.spawn(async move {
        if let Some(door) = &shared.door {
            door.serve(&shared.executor, incoming, config, &shared.limits, place).await;
        }
    });
}

async fn accept_connection(
    shared: Arc<Shared>,
    incoming: quinn::Incoming,
    handshake: Place,
    connections: Arc<Semaphore>,
) {
    let remote = canonical(incoming.remote_address());
    let connecting = match incoming.accept() {
        Ok(connecting) => connecting,
        Err(e) => return tracing::debug!(%remote, "connection attempt ended: {e}"),
    };
    let quic = match timeout(shared.limits.handshake_timeout, connecting).await {
        Ok(Ok(quic)) => quic,
        Ok(Err(e)) => return tracing::debug!(%remote, "handshake failed: {e}"),
        Err(_) => return tracing::debug!(%remote, "handshake timed out"),
    };
    drop(handshake);
    let connection = match tls::peer(&quic, &shared.credentials().identity) {
        Ok(found) if found.0.cluster == shared.cluster => Connection::new(quic.clone(), found, false),
        Ok(_) | Err(_) => {
            return quic.close(REFUSED.into(), b"the certificate names no node of this cluster");
        }
    };
    let Ok(_held) = connections.try_acquire() else {
        return quic.close(TOO_MANY_CONNECTIONS.into(), b"too many connections");
    };
    match shared.members.enter(&connection) {
        Ok(()) => {}
        Err(Unwelcome::Revoked) => {
            return quic.close(REVOKED.into(), b"revoked by the cluster's authority");
        }
        Err(Unwelcome::TooMany) => {
            return quic.close(TOO_MANY_CONNECTIONS.into(), b"too many connections of this node");
        }
    }
    if let Err(e) = timeout(shared.limits.handshake_timeout, welcome(&quic, shared.instance))
        .await
        .unwrap_or(Err(quinn::ConnectionError::TimedOut))
    {
        shared.members.leave(&connection);
        return tracing::debug!(%remote, "connection lost before it was used: {e}");
    }
    shared.executor.spawn(adopt(Arc::clone(&shared), remote, connection.clone()));
    serve_streams(shared, connection).await;
}

/// Tells the dialling side that it has been admitted. In TLS 1.3 a client finishes its handshake before the server has
/// seen its certificate: without this, a stranger's dial would seem to succeed and fail at its first use.
///
/// The dialling side says hello in the same way, so that each knows which life of the other it has met.
pub(crate) async fn welcome(quic: &quinn::Connection, instance: u64) -> Result<(), quinn::ConnectionError> {
    let mut stream = quic.open_uni().await?;
    // A failure to write means that the connection is gone, which the next accept reports.
    let _ = stream.write_all(&[&[WELCOME], &instance.to_le_bytes()[..]].concat()).await;
    let _ = stream.finish();
    Ok(())
}

/// The other side's instance, from its welcome or hello.
pub(crate) async fn await_welcome(quic: &quinn::Connection) -> Result<u64, quinn::ConnectionError> {
    let mut stream = quic.accept_uni().await?;
    let (mut welcome, mut instance) = ([0], [0; 8]);
    let failed = |e| match e {
        quinn::ReadExactError::ReadError(quinn::ReadError::ConnectionLost(e)) => e,
        _ => quinn::ConnectionError::VersionMismatch,
    };
    stream.read_exact(&mut welcome).await.map_err(failed)?;
    if welcome != [WELCOME] {
        return Err(quinn::ConnectionError::VersionMismatch);
    }
    stream.read_exact(&mut instance).await.map_err(failed)?;
    Ok(u64::from_le_bytes(instance))
}

/// The first byte of the one unidirectional stream that each side opens.
const WELCOME: u8 = 1;

/// Lets a connection that a peer made serve for calls to it, once it has said hello.
async fn adopt(shared: Arc<Shared>, remote: SocketAddr, connection: Connection) {
    let hello = timeout(shared.limits.handshake_timeout, await_welcome(connection.quic()));
    if let Ok(Ok(instance)) = hello.await {
        connection.set_instance(instance);
        shared.pool.adopt(&shared, remote, &connection);
        shared.names.moved(connection.peer().node_id, remote);
    }
}

/// Hands every stream of a connection to the acceptor of its kind, until the connection is gone.
pub(crate) async fn serve_streams(shared: Arc<Shared>, connection: Connection) {
    if let Some(quiet) = shared.close_unused {
        shared.executor.spawn(close_when_unused(connection.clone(), quiet, b"unused"));
    }
    if shared.members.is_anyone_revoked() {
        shared.executor.spawn(tell(Arc::clone(&shared), connection.clone()));
    }
    while let Ok((send, recv)) = connection.quic().accept_bi().await {
        let (sending, receiving) = connection.state().activity.stream();
        let (send, recv) = (SendStream::new(send).counted(sending), RecvStream::new(recv).counted(receiving));
        let incoming = Incoming { send, recv, connection: connection.clone() };
        // quinn's own limit of open streams bounds how many of these tasks a peer can cause.
        shared.executor.spawn(deliver(Arc::clone(&shared), incoming));
    }
    shared.members.leave(&connection);
    shared.pool.forget(&connection);
}

async fn deliver(shared: Arc<Shared>, mut incoming: Incoming) {
    let mut kind = [0];
    let known = match timeout(shared.limits.stream_header_timeout, incoming.recv.read_exact(&mut kind)).await
    {
        Ok(Ok(())) if kind[0] == TRUST => {
            let Incoming { send, recv, connection } = incoming;
            return receive(shared, send, recv, connection).await;
        }
        Ok(Ok(())) => StreamKind::from_byte(kind[0]),
        Ok(Err(_)) | Err(_) => None,
    };
    let Some((kind, queue)) = known.and_then(|kind| Some((kind, shared.dispatch.queue(kind)?))) else {
        incoming.send.reset(REFUSED);
        return incoming.recv.stop(REFUSED);
    };
    if kind == StreamKind::Raft && incoming.connection.peer().role != PeerRole::Member {
        // Whoever may only call has no voice in consensus, whatever a stream of it would say.
        incoming.send.reset(REFUSED);
        return incoming.recv.stop(REFUSED);
    }
    incoming.send.prioritise(kind);
    if let Err(e) = queue.send_timeout(incoming, shared.limits.stream_header_timeout).await {
        let (mpsc::error::SendTimeoutError::Timeout(mut unwanted)
        | mpsc::error::SendTimeoutError::Closed(mut unwanted)) = e;
        unwanted.send.reset(REFUSED);
        unwanted.recv.stop(REFUSED);
    }
}
