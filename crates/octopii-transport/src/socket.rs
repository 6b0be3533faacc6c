//! The UDP socket under an endpoint: the system's, or one that a simulator supplies.

use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, Runtime, UdpPoller};
use socket2::{Domain, Protocol, Socket, Type};

use crate::{BindError, Executor};

/// A datagram socket that an endpoint can be given instead of one of the system's: the seam for simulated networks.
pub trait DatagramSocket: Send + Sync + fmt::Debug + 'static {
    /// The address peers reach this socket at.
    fn local_addr(&self) -> io::Result<SocketAddr>;

    /// Sends one datagram now. A network that cannot take it drops it, as networks do.
    fn try_send(&self, payload: &[u8], to: SocketAddr) -> io::Result<()>;

    /// Receives one datagram into `buf` and gives its length and sender, or registers `cx` to be woken.
    fn poll_recv(&self, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<(usize, SocketAddr)>>;
}

/// Kernel buffers asked for; the kernel may grant less (`net.core.rmem_max`).
const SOCKET_BUFFER: usize = 4 << 20;

/// The longest payload the kernel takes in one call, segmented or not.
const MAX_SEND_BYTES: usize = 65_507;

/// The largest UDP payload on the loopback interface, which has no wire to fit: ten segments of it fill
/// [`MAX_SEND_BYTES`], and quinn sends ten at the most.
pub(crate) const LOOPBACK_MTU: u16 = 6_500;

/// The largest UDP payload elsewhere: an Ethernet frame less the IPv6 and UDP headers.
pub(crate) const NETWORK_MTU: u16 = 1_452;

pub(crate) fn bind(
    addr: SocketAddr,
    mtu: u16,
    executor: &Executor,
) -> Result<Arc<dyn AsyncUdpSocket>, BindError> {
    let socket = open(addr).map_err(|source| match source.kind() {
        io::ErrorKind::AddrInUse => BindError::AddressInUse(addr),
        _ => BindError::Socket { addr, source },
    })?;
    let inner = executor.wrap_udp_socket(socket).map_err(|source| BindError::Socket { addr, source })?;
    Ok(Arc::new(BoundedGso { inner, max_segments: (MAX_SEND_BYTES / usize::from(mtu)).clamp(1, 64) }))
}

fn open(addr: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(addr), Type::DGRAM, Some(Protocol::UDP))?;
    if addr.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.set_recv_buffer_size(SOCKET_BUFFER)?;
    socket.set_send_buffer_size(SOCKET_BUFFER)?;
    // The kernel reports twice what it grants.
    let granted = socket.recv_buffer_size()? / 2;
    if granted < SOCKET_BUFFER / 2 {
        tracing::warn!(
            granted,
            wanted = SOCKET_BUFFER,
            "the kernel caps UDP receive buffers, bulk transfers will lose packets: sysctl -w net.core.rmem_max={SOCKET_BUFFER}"
        );
    }
    socket.bind(&addr.into())?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// A socket for both families reports an IPv4 peer by its mapped IPv6 address: one peer must have one address.
pub(crate) fn canonical(addr: SocketAddr) -> SocketAddr {
    match addr {
        SocketAddr::V6(v6) => match v6.ip().to_ipv4_mapped() {
            Some(v4) => SocketAddr::from((v4, v6.port())),
            None => addr,
        },
        SocketAddr::V4(_) => addr,
    }
}

/// quinn sends up to ten segments in one call and takes the kernel's "message too long" for packet loss, so a batch must
/// never exceed what the kernel takes.
#[derive(Debug)]
struct BoundedGso {
    inner: Arc<dyn AsyncUdpSocket>,
    max_segments: usize,
}

impl AsyncUdpSocket for BoundedGso {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Arc::clone(&self.inner).create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.inner.try_send(transmit)
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        self.inner.poll_recv(cx, bufs, meta)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.inner.max_transmit_segments().min(self.max_segments)
    }

    fn max_receive_segments(&self) -> usize {
        self.inner.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.inner.may_fragment()
    }
}

/// Lets quinn use a [`DatagramSocket`].
#[derive(Debug)]
pub(crate) struct Adapted(pub(crate) Arc<dyn DatagramSocket>);

#[derive(Debug)]
struct AlwaysWritable;

impl UdpPoller for AlwaysWritable {
    fn poll_writable(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl AsyncUdpSocket for Adapted {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(AlwaysWritable)
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.0.try_send(transmit.contents, transmit.destination)
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let (Some(buf), Some(meta)) = (bufs.first_mut(), meta.first_mut()) else {
            return Poll::Ready(Ok(0));
        };
        self.0.poll_recv(cx, buf).map_ok(|(len, addr)| {
            *meta = RecvMeta { addr, len, stride: len, ecn: None, dst_ip: None };
            1
        })
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A batch that the kernel refuses looks like loss, and nothing tells why the connection crawls.
    #[tokio::test]
    async fn no_batch_exceeds_what_the_kernel_takes() {
        let executor = Executor::new(tokio::runtime::Handle::current());
        for mtu in [NETWORK_MTU, LOOPBACK_MTU, 20_000, 60_000] {
            let socket = bind(SocketAddr::from(([127, 0, 0, 1], 0)), mtu, &executor).expect("loopback");
            let segments = socket.max_transmit_segments();
            assert!((1..=MAX_SEND_BYTES / usize::from(mtu)).contains(&segments), "{segments} of {mtu}");
        }
    }
}
