//! Calls methods of peers.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use octopii_transport::{Connection, Endpoint, StreamError, StreamKind};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::wire::{REFUSED, RESPONSE_OVERHEAD, Request, decode_response};
use crate::{Bincode, Code, Codec, Status};

/// Calls methods of peers. Cloning is cheap. Calls may be awaited on any executor.
#[derive(Debug, Clone)]
pub struct Client {
    endpoint: Endpoint,
    kind: StreamKind,
    max_response: usize,
}

/// Longest response body taken, in bytes, unless said otherwise.
const MAX_RESPONSE: usize = 16 << 20;

impl Client {
    /// A client whose calls travel as streams of `kind`.
    pub fn new(endpoint: &Endpoint, kind: StreamKind) -> Self {
        Self { endpoint: endpoint.clone(), kind, max_response: MAX_RESPONSE }
    }

    /// Calls `method` at `addr` with a typed request and response in bincode.
    ///
    /// Fails with [`Code::Unavailable`] if the request was surely not carried out, [`Code::Unknown`] if the connection
    /// was lost after sending, [`Code::DeadlineExceeded`] after `deadline`, or whatever the handler answered. Dropping
    /// the future cancels the handler.
    pub async fn call<Req, Resp>(
        &self,
        addr: SocketAddr,
        method: &str,
        request: &Req,
        deadline: Duration,
    ) -> Result<Resp, Status>
    where
        Req: Serialize + Sync + ?Sized,
        Resp: DeserializeOwned,
    {
        let body = Bincode::encode(&request)?;
        let response = self.call_raw(addr, method, body.into(), deadline).await?;
        Bincode::decode(&response)
            .map_err(|e| Status::new(Code::DataLoss, format!("the response is malformed: {e}")))
    }

    /// Calls `method` at `addr` with raw bytes. Errors and cancellation as [`call`](Self::call).
    pub async fn call_raw(
        &self,
        addr: SocketAddr,
        method: &str,
        request: Bytes,
        deadline: Duration,
    ) -> Result<Bytes, Status> {
        let executor = self.endpoint.executor();
        let begun = executor.now();
        let call = async {
            let connection = self
                .endpoint
                .connect(addr)
                .await
                .map_err(|e| Status::new(Code::Unavailable, e.to_string()))?;
            let left = deadline.saturating_sub(executor.now() - begun);
            self.exchange(&connection, method, &request, left).await
        };
        executor.timeout(deadline, call).await.unwrap_or_else(|| {
            Err(Status::new(
                Code::DeadlineExceeded,
                format!("no answer from {addr} to {method:?} within {deadline:?}"),
            ))
        })
    }

    /// As [`call_raw`](Self::call_raw) on a connection at hand.
    pub async fn call_on(
        &self,
        connection: &Connection,
        method: &str,
        request: Bytes,
        deadline: Duration,
    ) -> Result<Bytes, Status> {
        let call = self.exchange(connection, method, &request, deadline);
        self.endpoint.executor().timeout(deadline, call).await.unwrap_or_else(|| {
            Err(Status::new(Code::DeadlineExceeded, format!("no answer to {method:?} within {deadline:?}")))
        })
    }

    async fn exchange(
        &self,
        connection: &Connection,
        method: &str,
        body: &[u8],
        deadline: Duration,
    ) -> Result<Bytes, Status> {
        let request = Request::encode(method, deadline, body)?;
        let unsent = |e: StreamError| Status::new(Code::Unavailable, e.to_string());
        let (mut send, mut recv) = connection.open(self.kind).await.map_err(unsent)?;
        // A failed write is no failed call yet: the peer may have answered before it read everything.
        let written = send.write_chunk(request).await;
        if written.is_ok() {
            let _ = send.finish();
        }
        match recv.read_frame(self.max_response + RESPONSE_OVERHEAD).await {
            Ok(Some(frame)) => decode_response(frame),
            Ok(None) => Err(Status::new(Code::Unknown, "the peer ended the call without an answer")),
            Err(StreamError::Reset(REFUSED)) => Err(Status::new(
                Code::Unavailable,
                format!("the peer does not take {:?} calls now", self.kind),
            )),
            // Not `ResourceExhausted`, which says that the request may be sent again.
            Err(StreamError::FrameTooLarge { len, limit }) => Err(Status::new(
                Code::Internal,
                format!(
                    "the response has {len} bytes, over the limit of {limit}: ask for less, or for a chunk"
                ),
            )),
            Err(e) => Err(Status::new(Code::Unknown, e.to_string())),
        }
    }
}
