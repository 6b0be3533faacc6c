//! What the software of a simulated machine finds there.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use octopii_transport::{DatagramSocket, Executor};
use octopii_vfs::Vfs;

use crate::socket::{Ports, SimSocket};
use crate::{Power, Rng, SimDisk, Trace, Weather};

/// One boot of a simulated machine.
#[derive(Debug, Clone)]
pub struct Machine {
    pub(crate) name: String,
    pub(crate) boot: u64,
    pub(crate) seed: u64,
    pub(crate) disk: SimDisk,
    pub(crate) power: Power,
    pub(crate) trace: Trace,
    pub(crate) weather: Weather,
    pub(crate) ports: Ports,
}

impl Machine {
    /// The machine's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How often it was booted before.
    pub fn boot(&self) -> u64 {
        self.boot
    }

    /// Whether it has power.
    pub fn is_on(&self) -> bool {
        self.power.is_on()
    }

    /// Its disk, as this boot sees it.
    pub fn vfs(&self) -> Arc<dyn Vfs> {
        self.disk.vfs()
    }

    /// Its address. Call from the machine's own software.
    pub fn ip(&self) -> IpAddr {
        turmoil::lookup(self.name.as_str())
    }

    /// The address of `port` on the machine called `name`. Call from a machine's software.
    pub fn lookup(&self, name: &str, port: u16) -> SocketAddr {
        SocketAddr::new(turmoil::lookup(name), port)
    }

    /// Binds a UDP port. Call from the machine's own software.
    pub async fn bind(&self, port: u16) -> io::Result<Arc<dyn DatagramSocket>> {
        let (power, trace, rng) = (self.power.clone(), self.trace.clone(), self.rng("network"));
        let socket = SimSocket::bind(self.ip(), port, power, &self.name, trace, self.weather, rng).await?;
        let socket = Arc::new(socket);
        self.ports.add(&socket);
        Ok(socket)
    }

    /// Runs everything on the simulation's one thread. Call from the machine's own software.
    pub fn executor(&self) -> Executor {
        Executor::simulated(tokio::runtime::Handle::current())
    }

    /// A generator for this machine, boot and purpose.
    pub fn rng(&self, purpose: &str) -> Rng {
        Rng::labelled(self.seed, &format!("{} {} {purpose}", self.name, self.boot))
    }

    /// Seed bytes for a protocol's own generator.
    pub fn rng_seed(&self, purpose: &str) -> [u8; 32] {
        let mut seed = [0; 32];
        self.rng(purpose).fill(&mut seed);
        seed
    }

    /// Records something that the software did in the trace.
    pub fn record(&self, what: fmt::Arguments<'_>, payload: &[u8]) {
        if self.power.is_on() {
            self.trace.record(&self.name, what, payload);
        }
    }
}
