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

/// The longest payload the kernel takes in one call, segmented or not.
const MAX_SEND_BYTES: usize = 65_507;

/// What the kernel hands over in one call at the most, when it has put several datagrams together.
const MAX_RECEIVE_BYTES: usize = 65_535;

pub(crate) fn bind(
    addr: SocketAddr,
    mtu: u16,
    buffer: usize,
    executor: &Executor,
) -> Result<Arc<dyn AsyncUdpSocket>, BindError> {
    let socket = open(addr, buffer).map_err(|source| match source.kind() {
        io::ErrorKind::AddrInUse => BindError::AddressInUse(addr),
        _ => BindError::Socket { addr, source },
    })?;
    let inner = executor.wrap_udp_socket(socket).map_err(|source| BindError::Socket { addr, source })?;
    Ok(Arc::new(BoundedGso {
        inner,
        max_segments: (MAX_SEND_BYTES / usize::from(mtu)).clamp(1, 64),
        max_receive: MAX_RECEIVE_BYTES.div_ceil(usize::from(mtu)).clamp(1, 64),
    }))
}

fn open(addr: SocketAddr, buffer: usize) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(addr), Type::DGRAM, Some(Protocol::UDP))?;
    if addr.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.set_recv_buffer_size(buffer)?;
    socket.set_send_buffer_size(buffer)?;
    // The kernel reports twice what it grants.
    for (setting, granted) in [
        ("net.core.rmem_max", socket.recv_buffer_size()? / 2),
        ("net.core.wmem_max", socket.send_buffer_size()? / 2),
    ] {
        if let Some(warning) = capped(setting, granted, buffer) {
            tracing::warn!("{warning}");
        }
    }
    socket.bind(&addr.into())?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// What to tell when the kernel grants less than half of what was asked for.
fn capped(setting: &str, granted: usize, wanted: usize) -> Option<String> {
    (granted < wanted / 2).then(|| {
        format!(
            "the kernel caps this UDP buffer at {granted} bytes instead of {wanted}, so bulk transfers will lose packets: \
             sysctl -w {setting}={wanted}"
        )
    })
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
    max_receive: usize,
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
        // A buffer for more is never filled, and there are 32 of them.
        self.inner.max_receive_segments().min(self.max_receive)
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
        for mtu in [1_452, 6_500, 20_000, 60_000] {
            let socket =
                bind(SocketAddr::from(([127, 0, 0, 1], 0)), mtu, 1 << 20, &executor).expect("loopback");
            let segments = socket.max_transmit_segments();
            assert!((1..=MAX_SEND_BYTES / usize::from(mtu)).contains(&segments), "{segments} of {mtu}");
            // Whatever the kernel puts together fits, and not much more.
            let received = socket.max_receive_segments() * usize::from(mtu);
            let all = socket.max_receive_segments() == 1 || received >= MAX_RECEIVE_BYTES;
            assert!(all && received < MAX_RECEIVE_BYTES + usize::from(mtu), "{received} of {mtu}");
        }
    }

    #[test]
    fn a_capped_buffer_is_told_with_the_line_that_lifts_the_cap() {
        assert_eq!(capped("net.core.rmem_max", 4 << 20, 4 << 20), None);
        let warning = capped("net.core.rmem_max", 212_992, 4 << 20).expect("far too little");
        assert!(warning.ends_with("sysctl -w net.core.rmem_max=4194304"), "{warning}");
    }
}
