//! Calls and acknowledged messages over Octopii's transport.
//!
//! - [`Router`] holds handlers by method name, [`Server`] runs them, [`Client`] calls them. A call has one request or a stream
//!   of them, and one response or a stream of them. Each is a stream of its own on the one connection to the peer, so a slow
//!   call or a bulk transfer never blocks another.
//! - [`service!`] makes a trait for the one side and a typed client for the other from one definition. [`Router::layer`] and
//!   [`Client::channel`] are for middleware of the `tower` kind; [`Router::with_reflection`] tells what there is, down to fields.
//! - [`Messenger`] sends one-way messages; sending returns when the peer's application has taken the message.
//! - [`Status`] is how calls fail: its [`Code`] and its [`Advice`] tell whether to try again.
//! - [`Codec`], [`Bincode`] and [`Json`] turn typed values into bytes; below them everything is [`Bytes`](bytes::Bytes).
//! - [`Context`] is what a handler knows: who calls, until when, with what [`Metadata`], in which [trace](TraceContext); and
//!   where it puts what goes back beside the response.
//!
//! Every call has a deadline, which travels with the request, is enforced on both sides, and is inherited by the calls that
//! its handler makes. Dropping the future of a call cancels its handler. All bounds are in [`ServerOptions`],
//! [`ClientOptions`] and [`MessengerOptions`].

mod call;
mod client;
mod codec;
mod context;
mod effort;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
mod message;
mod metadata;
mod middleware;
mod reflection;
mod router;
mod server;
mod service;
mod status;
mod trace;
mod wire;

pub use call::{Body, Reply, Request, Requests, ResponseStream, Shape};
pub use client::{CallOptions, Client, ClientOptions, Responses, RetryPolicy, Sender, Upload};
pub use codec::{Bincode, Codec, CodecError, Encoding, Json};
pub use context::{Cancellation, Context};
pub use message::{Message, Messenger, MessengerOptions};
pub use metadata::{MAX_METADATA_BYTES, MAX_METADATA_ENTRIES, Metadata, MetadataError, ResponseMetadata};
pub use middleware::{Call, Channel, HandlerService};
pub use octopii_transport::{Address, StreamKind};
pub use reflection::{FieldInfo, METHODS, MethodInfo, TypeInfo, VariantContent, VariantInfo};
pub use router::Router;
pub use server::{Server, ServerOptions};
pub use status::{Advice, Code, Status};
pub use trace::{NotATraceparent, TraceContext};
