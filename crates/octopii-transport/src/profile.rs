//! Sets of values for kinds of networks.

use std::time::Duration;

use crate::{EndpointOptions, Limits};

/// The kind of network that an endpoint's peers are in. It decides datagram size, socket buffers and first guess of the round trip;
/// [`options`](Self::options) sets windows and timeouts to match, each of which can still be changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Profile {
    /// Machines near each other: the default. 768 KiB per stream fill 6 Gbit/s at a round trip of 1 ms, 1 Gbit/s at 6 ms; take
    /// [`Wan`](Self::Wan) for longer ways.
    #[default]
    Lan,
    /// Machines far apart: windows of 16 MiB per stream, which fill 1 Gbit/s at 130 ms, and more patience. Costs memory: up to
    /// 16 MiB for each stream that is not read, 32 MiB for each connection that is written to.
    Wan,
    /// One machine: datagrams of 6,500 bytes, since there is no wire to fit.
    Loopback,
}

/// How fast data is sent when packets are lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Congestion {
    /// The usual one (RFC 9438).
    #[default]
    Cubic,
    /// Older and more cautious (RFC 9002).
    NewReno,
    /// By measured bandwidth instead of loss: for long ways that lose packets at random. Experimental in the QUIC library.
    Bbr,
}

impl Profile {
    /// The options that suit it.
    pub fn options(self) -> EndpointOptions {
        let defaults =
            EndpointOptions { profile: Some(self), limits: self.limits(), ..EndpointOptions::default() };
        match self {
            Self::Lan | Self::Loopback => defaults,
            Self::Wan => EndpointOptions {
                connect_timeout: Duration::from_secs(10),
                keep_alive: Duration::from_secs(5),
                idle_timeout: Duration::from_secs(30),
                ..defaults
            },
        }
    }

    /// The limits that suit it: windows, and times for what takes round trips.
    pub fn limits(self) -> Limits {
        match self {
            Self::Lan | Self::Loopback => Limits::default(),
            Self::Wan => Limits {
                handshake_timeout: Duration::from_secs(10),
                stream_header_timeout: Duration::from_secs(10),
                stream_window: 16 << 20,
                connection_window: 128 << 20,
                send_window: 32 << 20,
                ..Limits::default()
            },
        }
    }

    /// The largest UDP payload that is looked for.
    pub(crate) fn mtu(self) -> u16 {
        match self {
            // An Ethernet frame less the IPv6 and UDP headers.
            Self::Lan | Self::Wan => 1_452,
            // Ten of these fill what the kernel takes in one call, and ten is what the QUIC library sends at the most.
            Self::Loopback => 6_500,
        }
    }

    /// Kernel buffers asked for.
    pub(crate) fn socket_buffer(self) -> usize {
        match self {
            Self::Lan | Self::Loopback => 4 << 20,
            Self::Wan => 8 << 20,
        }
    }

    /// A lost first packet is resent after three of these.
    pub(crate) fn initial_rtt(self) -> Duration {
        match self {
            Self::Lan | Self::Loopback => Duration::from_millis(100),
            // The standard's, made for the open internet.
            Self::Wan => Duration::from_millis(333),
        }
    }
}

impl std::str::FromStr for Profile {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        match text {
            "lan" => Ok(Self::Lan),
            "wan" => Ok(Self::Wan),
            "loopback" => Ok(Self::Loopback),
            _ => Err("a profile is \"lan\", \"wan\" or \"loopback\""),
        }
    }
}
