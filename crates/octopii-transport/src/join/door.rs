//! The issuing node's side: strangers come in by a door of their own, one question each.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use quinn::crypto::rustls::QuicServerConfig;
use quinn::{TransportConfig, VarInt};
use tokio::time::timeout;

use super::message::{REQUEST, read_request, response};
use super::{ALPN, JoinRefusal, MARK, TokenVerifier, binding};
use crate::places::{Place, Places};
use crate::socket::canonical;
use crate::{Certified, Executor, Identity, IdentityError, Limits, RecvStream, SendStream, tls};

/// Decides who gets a certificate. The node that holds the authority's key has one of these.
pub trait Admission: Send + Sync + fmt::Debug + 'static {
    /// Spends a token and issues a certificate for the applicant's key.
    ///
    /// Called off the async threads, so it may block, and for several applicants at once. It must not return a certificate
    /// before it is durable that the token is spent. When the same key asks again with the same token, because the answer was
    /// lost, it should get its certificate again.
    fn admit(&self, applicant: &Applicant) -> Result<Certified, JoinRefusal>;
}

/// Someone who has proven to have a token's secret and the private half of the key that it wants certified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Applicant {
    /// The token.
    pub token: TokenVerifier,
    /// The key to certify.
    pub public_key: [u8; 32],
    /// Where it asks from.
    pub remote: SocketAddr,
}

/// The door for strangers: TLS of its own, places of its own, and next to no memory for each.
#[derive(Debug)]
pub(crate) struct Door {
    admission: Arc<dyn Admission>,
    places: Arc<Places>,
}

/// Unread bytes that a stranger may have here: its request, and no more.
const WINDOW: u32 = 1024;

impl Door {
    pub(crate) fn new(admission: Arc<dyn Admission>, limits: &Limits) -> Self {
        Self { admission, places: Places::new(limits.joins) }
    }

    /// The configuration of the connections that come in by it.
    pub(crate) fn config(
        identity: &Identity,
        limits: &Limits,
        mtu: u16,
    ) -> Result<Arc<quinn::ServerConfig>, IdentityError> {
        let unusable = |e: rustls::Error| IdentityError::Unusable(e.to_string());
        // The authority's certificate goes along: the joiner knows only its hash.
        let chain = identity.chain().into_iter().chain(identity.roots().iter().cloned()).collect();
        let mut tls = rustls::ServerConfig::builder_with_provider(tls::provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(unusable)?
            .with_no_client_auth()
            .with_single_cert(chain, identity.key())
            .map_err(unusable)?;
        tls.alpn_protocols = vec![ALPN.to_vec()];
        tls.send_tls13_tickets = 0;
        let crypto = QuicServerConfig::try_from(tls).map_err(|e| IdentityError::Unusable(e.to_string()))?;
        let mut transport = TransportConfig::default();
        transport
            .max_concurrent_bidi_streams(1u32.into())
            .max_concurrent_uni_streams(0u32.into())
            .datagram_receive_buffer_size(None)
            .stream_receive_window(WINDOW.into())
            .receive_window(WINDOW.into())
            .send_window(64 << 10)
            .initial_mtu(mtu.min(1200))
            .mtu_discovery_config(None)
            .max_idle_timeout(Some(
                limits
                    .handshake_timeout
                    .try_into()
                    .unwrap_or(quinn::IdleTimeout::from(VarInt::from_u32(5_000))),
            ));
        let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
        config.transport_config(Arc::new(transport));
        Ok(Arc::new(config))
    }

    /// A place for one more stranger, whose address is proven, if there is one.
    pub(crate) fn place(&self, from: SocketAddr) -> Option<Place> {
        self.places.take(Some(from))
    }

    /// Answers one stranger's one question, within the handshake's time. The place is held as long as the connection is.
    pub(crate) async fn serve(
        &self,
        executor: &Executor,
        incoming: quinn::Incoming,
        config: Arc<quinn::ServerConfig>,
        limits: &Limits,
        place: Place,
    ) {
        let remote = canonical(incoming.remote_address());
        let connecting = match incoming.accept_with(config) {
            Ok(connecting) => connecting,
            Err(e) => return tracing::debug!(%remote, "a join ended before it began: {e}"),
        };
        let mut open = None;
        let conversation = async {
            let connection = connecting.await.map_err(|e| e.to_string())?;
            open = Some(connection.clone());
            self.answer(executor, &connection, remote).await
        };
        match timeout(limits.handshake_timeout, conversation).await {
            Ok(Ok(Ok(()))) => tracing::info!(%remote, "a node has joined"),
            Ok(Ok(Err(refusal))) => tracing::info!(%remote, "a join was refused: {refusal}"),
            Ok(Err(reason)) => tracing::debug!(%remote, "a join failed: {reason}"),
            Err(_) => tracing::debug!(%remote, "a join took too long"),
        }
        if let Some(connection) = open {
            connection.close(0u32.into(), b"");
        }
        drop(place);
    }

    async fn answer(
        &self,
        executor: &Executor,
        connection: &quinn::Connection,
        remote: SocketAddr,
    ) -> Result<Result<(), JoinRefusal>, String> {
        let (send, recv) = connection.accept_bi().await.map_err(|e| e.to_string())?;
        let (mut send, mut recv) = (SendStream::new(send), RecvStream::new(recv));
        let frame = recv.read_frame(REQUEST).await.map_err(|e| e.to_string())?.unwrap_or_default();
        let binding = binding(connection).ok_or("no keying material")?;
        let outcome = match read_request(&frame, &binding) {
            Some(request) => {
                let (admission, applicant) = (
                    Arc::clone(&self.admission),
                    Applicant { token: request.token, public_key: request.public_key, remote },
                );
                executor.blocking(move || admission.admit(&applicant)).await
            }
            None => Err(JoinRefusal::Unknown),
        };
        send.write_frame(&response(&outcome)).await.map_err(|e| e.to_string())?;
        send.finish().map_err(|e| e.to_string())?;
        // The joiner closes once it has read the answer; ours would overtake it.
        connection.closed().await;
        Ok(outcome.map(drop))
    }
}

/// Whether a connection attempt is a joiner's, by what can be seen of its first packet.
pub(crate) fn is_joiner(incoming: &quinn::Incoming) -> bool {
    incoming.orig_dst_cid().starts_with(&MARK)
}
