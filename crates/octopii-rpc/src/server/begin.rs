//! The beginning of a call, on a stream of its own or on a lane: from its request to what its handler is given.

use std::net::SocketAddr;

use bytes::Bytes;
use octopii_transport::Connection;
use tokio::time::Instant;

use crate::context::EndOnDrop;
use crate::router::Method;
use crate::server::Shared;
use crate::server::admission::Permit;
use crate::wire::{self, Head};
use crate::{Code, Context, Metadata, Shape, Status};

/// A call that may run.
pub(super) struct Begun<'a> {
    pub(super) method: &'a Method,
    pub(super) head: Head<String, Metadata>,
    pub(super) body: Bytes,
    /// Held until the response is taken: a caller that does not read it holds a call, never more of our memory.
    pub(super) permit: Permit,
    pub(super) deadline: Instant,
}

/// Decodes a request and admits its call.
pub(super) fn begin<'a>(
    shared: &'a Shared,
    connection: &Connection,
    frame: Bytes,
    now: Instant,
) -> Result<Begun<'a>, Status> {
    let wire::Request { head, body } = wire::Request::decode(frame)?;
    let method = shared.router.method(&head.method, head.shape)?;
    let permit = shared.admission.begin(connection.peer().node_id)?;
    let options = &shared.options;
    let longest = if head.shape == Shape::Unary { options.max_deadline } else { options.max_stream_deadline };
    let deadline = now + head.deadline.min(longest);
    Ok(Begun { method, head, body, permit, deadline })
}

pub(super) fn context(
    connection: &Connection,
    remote_addr: SocketAddr,
    head: Head<String, Metadata>,
    deadline: Instant,
    ended: &EndOnDrop,
) -> Context {
    Context {
        peer: *connection.peer(),
        remote_addr,
        deadline,
        method: head.method,
        shape: head.shape,
        encoding: head.encoding,
        metadata: head.metadata,
        trace: head.trace,
        cancellation: ended.0.clone(),
    }
}

pub(super) fn panicked() -> Status {
    Status::new(Code::Internal, "the handler panicked")
}
