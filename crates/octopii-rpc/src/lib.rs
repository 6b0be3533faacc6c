//! Requests and responses, and acknowledged messages, over Octopii's transport.
//!
//! - [`Router`] holds handlers by method name, [`Server`] runs them, [`Client`] calls them. Each call is a stream of its
//!   own on the one connection to the peer, so a slow call or a bulk transfer never blocks another.
//! - [`Messenger`] sends one-way messages; sending returns when the peer's application has taken the message.
//! - [`Status`] is how calls fail: its [`Code`] tells whether to try again.
//! - [`Codec`] and [`Bincode`] turn typed values into bytes; below them everything is [`Bytes`](bytes::Bytes).
//!
//! Every call has a deadline, which travels with the request and is enforced on both sides. Dropping the future of a
//! call cancels its handler. All bounds are in [`ServerOptions`] and [`MessengerOptions`].

mod client;
mod codec;
mod message;
mod router;
mod server;
mod status;
mod wire;

pub use client::Client;
pub use codec::{Bincode, Codec, CodecError};
pub use message::{Message, Messenger, MessengerOptions};
pub use octopii_transport::StreamKind;
pub use router::{Context, Router};
pub use server::{Server, ServerOptions};
pub use status::{Code, Status};
