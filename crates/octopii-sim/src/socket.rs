//! A datagram socket on the simulated network.

use std::fmt;
use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, ready};

use octopii_transport::DatagramSocket;
use turmoil::net::UdpSocket;

use crate::{Power, Rng, Trace};

/// What the network does to datagrams, beside the delays and partitions of the [`Scenario`](crate::Scenario).
#[derive(Debug, Clone, Copy)]
pub struct Weather {
    /// The share of datagrams that is lost, 0.0 to 1.0. Default 0.
    pub loss: f64,
    /// The share of datagrams that arrives twice, 0.0 to 1.0. Default 0.
    pub duplication: f64,
}

impl Default for Weather {
    fn default() -> Self {
        Self { loss: 0.0, duplication: 0.0 }
    }
}

/// A UDP socket of a simulated machine.
///
/// When the machine's power is cut it falls silent: a peer hears no goodbye from the tasks that are dropped after.
pub struct SimSocket {
    open: Mutex<Option<Open>>,
    addr: SocketAddr,
    power: Power,
    host: String,
    trace: Trace,
    weather: Weather,
    rng: Mutex<Rng>,
}

struct Open {
    socket: Arc<UdpSocket>,
    /// The wait for the next datagram, kept between polls: dropping it would drop the waker that it holds.
    readable: Option<Readable>,
}

/// The sockets of one boot, closed with it even where something outlives it that holds one: a port is bound once.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ports {
    sockets: Arc<Mutex<Vec<Weak<SimSocket>>>>,
}

impl Ports {
    pub(crate) fn add(&self, socket: &Arc<SimSocket>) {
        self.sockets.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::downgrade(socket));
    }

    pub(crate) fn close(&self) {
        let sockets = std::mem::take(&mut *self.sockets.lock().unwrap_or_else(PoisonError::into_inner));
        sockets.iter().filter_map(Weak::upgrade).for_each(|socket| socket.close());
    }
}

type Readable = Pin<Box<dyn Future<Output = io::Result<()>> + Send>>;

impl SimSocket {
    /// Binds `port` of the simulated machine that is running now, which has the address `ip`.
    ///
    /// # Panics
    ///
    /// Outside a simulated machine.
    pub(crate) async fn bind(
        ip: IpAddr,
        port: u16,
        power: Power,
        host: &str,
        trace: Trace,
        weather: Weather,
        rng: Rng,
    ) -> io::Result<Self> {
        let socket = UdpSocket::bind((IpAddr::V4(Ipv4Addr::UNSPECIFIED), port)).await?;
        let addr = SocketAddr::new(ip, socket.local_addr()?.port());
        let open = Mutex::new(Some(Open { socket: Arc::new(socket), readable: None }));
        Ok(Self { open, addr, power, host: host.to_owned(), trace, weather, rng: Mutex::new(rng) })
    }

    /// Frees the port, whoever still holds this socket: nothing arrives any more.
    pub(crate) fn close(&self) {
        self.open().take();
    }

    fn open(&self) -> MutexGuard<'_, Option<Open>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn record(&self, fate: &str, payload: &[u8], to: SocketAddr) {
        self.trace.record(&self.host, format_args!("{fate} {} B to {to}", payload.len()), payload);
    }

    fn rng(&self) -> MutexGuard<'_, Rng> {
        self.rng.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl DatagramSocket for SimSocket {
    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.addr)
    }

    fn try_send(&self, payload: &[u8], to: SocketAddr) -> io::Result<()> {
        if !self.power.is_on() {
            return Ok(());
        }
        let (lost, doubled) = {
            let mut rng = self.rng();
            (rng.chance(self.weather.loss), rng.chance(self.weather.duplication))
        };
        if lost {
            self.record("lost", payload, to);
            return Ok(());
        }
        self.record(if doubled { "sent twice" } else { "sent" }, payload, to);
        if let Some(open) = self.open().as_ref() {
            for _ in 0..=usize::from(doubled) {
                // The network knows no such machine: to the sender that is a datagram lost.
                let _ = open.socket.try_send_to(payload, to);
            }
        }
        Ok(())
    }

    fn poll_recv(&self, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<(usize, SocketAddr)>> {
        let mut open = self.open();
        let Some(Open { socket, readable }) = open.as_mut() else {
            return Poll::Pending;
        };
        loop {
            if let Some(wait) = readable.as_mut() {
                // The wait holds the socket's queue: poll it to the end before looking into the queue.
                let result = ready!(wait.as_mut().poll(cx));
                *readable = None;
                result?;
            }
            match socket.try_recv_from(buf) {
                Ok(received) => return Poll::Ready(Ok(received)),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    let socket = Arc::clone(socket);
                    *readable = Some(Box::pin(async move { socket.readable().await }));
                }
                Err(e) => return Poll::Ready(Err(e)),
            }
        }
    }
}

impl fmt::Debug for SimSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimSocket").field("addr", &self.addr).finish_non_exhaustive()
    }
}
