//! One definition of a service for both sides.

/// Defines a service once: a trait for who serves it, and a typed client for who calls it.
///
/// The definition becomes a module with `Service` (the trait), `register` (which puts an implementation into a
/// [`Router`](crate::Router)) and `Client`. Methods are called `<service>.<method>`. Either side may be a `stream`; a method
/// that is `idempotent` may be tried again by the client. Several arguments travel as a tuple, so JSON has them as an array.
///
/// Documentation becomes that of trait and client, and is told by `octopii call --list`.
///
/// ```
/// use octopii_rpc::{Context, Requests, ResponseStream, Router, Status};
/// use futures_util::{StreamExt, stream};
///
/// octopii_rpc::service! {
///     /// Accounts, and what is on them.
///     pub mod bank = "bank" {
///         /// What is on an account.
///         idempotent fn balance(account: String) -> u64;
///         /// Takes from one account what it gives to another.
///         fn transfer(from: String, to: String, amount: u64) -> ();
///         /// Every change of an account.
///         fn watch(account: String) -> stream u64;
///         /// Books many payments, and tells how many there were.
///         fn book(payments: stream u64) -> u64;
///         /// Answers each amount with its double.
///         fn double(amounts: stream u64) -> stream u64;
///     }
/// }
///
/// struct Ledger;
///
/// impl bank::Service for Ledger {
///     async fn balance(&self, _: Context, account: String) -> Result<u64, Status> {
///         Ok(account.len() as u64)
///     }
///     async fn transfer(&self, _: Context, _: String, _: String, _: u64) -> Result<(), Status> {
///         Ok(())
///     }
///     async fn watch(&self, _: Context, _: String) -> Result<ResponseStream<u64>, Status> {
///         Ok(stream::iter([Ok(1), Ok(2)]).boxed())
///     }
///     async fn book(&self, _: Context, payments: Requests<u64>) -> Result<u64, Status> {
///         Ok(payments.count().await as u64)
///     }
///     async fn double(&self, _: Context, amounts: Requests<u64>) -> Result<ResponseStream<u64>, Status> {
///         Ok(amounts.map(|amount| Ok(amount? * 2)).boxed())
///     }
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # use std::time::Duration;
/// # use octopii_rpc::{Client, Server, ServerOptions, StreamKind};
/// # use octopii_transport::{ClusterAuthority, Endpoint, EndpointOptions, Executor};
/// # let authority = ClusterAuthority::generate()?;
/// # let executor = Executor::new(tokio::runtime::Handle::current());
/// # let a = Endpoint::bind(&executor, &authority.issue(1)?, EndpointOptions::default())?;
/// # let b = Endpoint::bind(&executor, &authority.issue(2)?, EndpointOptions::default())?;
/// let mut router = Router::new();
/// bank::register(&mut router, Ledger);
/// # let server = Server::spawn(&b, StreamKind::Rpc, router, ServerOptions::default())?;
/// # let rpc = Client::new(&a, StreamKind::Rpc);
///
/// let bank = bank::Client::new(&rpc, b.local_addr(), Duration::from_secs(5));
/// assert_eq!(bank.balance("alice".into()).await?, 5);
/// bank.transfer("alice".into(), "bob".into(), 1).await?;
/// let mut changes = bank.watch("alice".into()).await?;
/// assert_eq!(changes.next().await.transpose()?, Some(1));
/// let mut payments = bank.book().await?;
/// payments.send(&10).await?;
/// assert_eq!(payments.finish().await?, 1);
/// # let (mut amounts, mut doubles) = bank.double().await?;
/// # amounts.send(&4).await?;
/// # assert_eq!(doubles.next().await.transpose()?, Some(8));
/// # Ok(())
/// # }
/// ```
#[macro_export]
macro_rules! service {
    (
        $(#[$meta:meta])*
        $vis:vis mod $module:ident = $name:literal { $($methods:tt)* }
    ) => {
        $crate::service! { @method [$(#[$meta])* $vis mod $module = $name] [] $($methods)* }
    };

    // One method after the other is brought into the form {kind idempotent (doc) name (argument: type, ...) (response)}.
    (@method [$($head:tt)*] [$($done:tt)*]
        $(#[doc = $doc:expr])* idempotent fn $($rest:tt)*
    ) => { $crate::service! { @shape [$($head)*] [$($done)*] true ($($doc),*) $($rest)* } };
    (@method [$($head:tt)*] [$($done:tt)*]
        $(#[doc = $doc:expr])* fn $($rest:tt)*
    ) => { $crate::service! { @shape [$($head)*] [$($done)*] false ($($doc),*) $($rest)* } };
    (@shape [$($head:tt)*] [$($done:tt)*] $idempotent:ident $doc:tt
        $method:ident ($argument:ident : stream $request:ty) -> stream $response:ty; $($rest:tt)*
    ) => {
        $crate::service! { @method [$($head)*]
            [$($done)* {bidirectional $idempotent $doc $method ($argument: $request) ($response)}] $($rest)* }
    };
    (@shape [$($head:tt)*] [$($done:tt)*] $idempotent:ident $doc:tt
        $method:ident ($argument:ident : stream $request:ty) -> $response:ty; $($rest:tt)*
    ) => {
        $crate::service! { @method [$($head)*]
            [$($done)* {client_stream $idempotent $doc $method ($argument: $request) ($response)}] $($rest)* }
    };
    (@shape [$($head:tt)*] [$($done:tt)*] $idempotent:ident $doc:tt
        $method:ident ($($argument:ident : $request:ty),* $(,)?) -> stream $response:ty; $($rest:tt)*
    ) => {
        $crate::service! { @method [$($head)*]
            [$($done)* {server_stream $idempotent $doc $method ($($argument: $request),*) ($response)}] $($rest)* }
    };
    (@shape [$($head:tt)*] [$($done:tt)*] $idempotent:ident $doc:tt
        $method:ident ($($argument:ident : $request:ty),* $(,)?) -> $response:ty; $($rest:tt)*
    ) => {
        $crate::service! { @method [$($head)*]
            [$($done)* {unary $idempotent $doc $method ($($argument: $request),*) ($response)}] $($rest)* }
    };

    (@method [$(#[$meta:meta])* $vis:vis mod $module:ident = $name:literal]
        [$({$kind:ident $idempotent:ident ($($doc:expr),*) $method:ident $arguments:tt $response:tt})*]
    ) => {
        $(#[$meta])*
        $vis mod $module {
            #[allow(unused_imports, reason = "the definition may name nothing from outside")]
            use super::*;

            /// What serves this. Its methods run as the handlers of a router do.
            pub trait Service: Send + Sync + 'static {
                $($crate::service! { @serve $kind ($($doc),*) $method $arguments $response })*
            }

            /// Registers what serves this.
            pub fn register<S: Service>(router: &mut $crate::Router, service: S) {
                let service = ::std::sync::Arc::new(service);
                $(
                    $crate::service! { @register $kind router service $name $method $arguments $response }
                    router.describe(
                        concat!($name, ".", stringify!($method)),
                        $crate::service!(@signature $kind $arguments $response),
                        concat!($($doc, "\n"),*),
                        $idempotent,
                    );
                    $crate::service! { @types router $name $method $arguments $response }
                )*
            }

            /// Calls this at a peer.
            #[derive(Debug, Clone)]
            pub struct Client {
                rpc: $crate::Client,
                addr: $crate::Address,
                options: $crate::CallOptions,
            }

            impl Client {
                /// Calls it at `addr`, each call with these options; a `Duration` will do.
                pub fn new(
                    rpc: &$crate::Client,
                    addr: impl Into<$crate::Address>,
                    options: impl Into<$crate::CallOptions>,
                ) -> Self {
                    Self { rpc: rpc.clone(), addr: addr.into(), options: options.into() }
                }

                /// The same with other options.
                #[must_use]
                pub fn with_options(&self, options: impl Into<$crate::CallOptions>) -> Self {
                    Self::new(&self.rpc, &self.addr, options)
                }

                $($crate::service! { @call $kind $idempotent ($($doc),*) $name $method $arguments $response })*

                #[allow(dead_code, reason = "there may be no methods")]
                fn options(&self, idempotent: bool) -> $crate::CallOptions {
                    let mut options = self.options.clone();
                    options.idempotent |= idempotent;
                    options
                }
            }
        }
    };

    (@serve unary ($($doc:expr),*) $method:ident ($($argument:ident : $request:ty),*) ($response:ty)) => {
        $(#[doc = $doc])*
        fn $method(&self, context: $crate::Context $(, $argument: $request)*)
            -> impl ::std::future::Future<Output = Result<$response, $crate::Status>> + Send;
    };
    (@serve server_stream ($($doc:expr),*) $method:ident ($($argument:ident : $request:ty),*) ($response:ty)) => {
        $(#[doc = $doc])*
        fn $method(&self, context: $crate::Context $(, $argument: $request)*)
            -> impl ::std::future::Future<Output = Result<$crate::ResponseStream<$response>, $crate::Status>> + Send;
    };
    (@serve client_stream ($($doc:expr),*) $method:ident ($argument:ident : $request:ty) ($response:ty)) => {
        $(#[doc = $doc])*
        fn $method(&self, context: $crate::Context, $argument: $crate::Requests<$request>)
            -> impl ::std::future::Future<Output = Result<$response, $crate::Status>> + Send;
    };
    (@serve bidirectional ($($doc:expr),*) $method:ident ($argument:ident : $request:ty) ($response:ty)) => {
        $(#[doc = $doc])*
        fn $method(&self, context: $crate::Context, $argument: $crate::Requests<$request>)
            -> impl ::std::future::Future<Output = Result<$crate::ResponseStream<$response>, $crate::Status>> + Send;
    };

    (@register unary $router:ident $service:ident $name:literal $method:ident
        ($($argument:ident : $request:ty),*) $response:tt
    ) => {
        let shared = ::std::sync::Arc::clone(&$service);
        $router.register(
            concat!($name, ".", stringify!($method)),
            move |context: $crate::Context, ($($argument),*): ($($request),*)| {
                let service = ::std::sync::Arc::clone(&shared);
                async move { service.$method(context $(, $argument)*).await }
            },
        );
    };
    (@register server_stream $router:ident $service:ident $name:literal $method:ident
        ($($argument:ident : $request:ty),*) $response:tt
    ) => {
        let shared = ::std::sync::Arc::clone(&$service);
        $router.register_server_stream(
            concat!($name, ".", stringify!($method)),
            move |context: $crate::Context, ($($argument),*): ($($request),*)| {
                let service = ::std::sync::Arc::clone(&shared);
                async move { service.$method(context $(, $argument)*).await }
            },
        );
    };
    (@register client_stream $router:ident $service:ident $name:literal $method:ident
        ($argument:ident : $request:ty) $response:tt
    ) => {
        let shared = ::std::sync::Arc::clone(&$service);
        $router.register_client_stream(
            concat!($name, ".", stringify!($method)),
            move |context: $crate::Context, $argument: $crate::Requests<$request>| {
                let service = ::std::sync::Arc::clone(&shared);
                async move { service.$method(context, $argument).await }
            },
        );
    };
    (@register bidirectional $router:ident $service:ident $name:literal $method:ident
        ($argument:ident : $request:ty) $response:tt
    ) => {
        let shared = ::std::sync::Arc::clone(&$service);
        $router.register_bidirectional(
            concat!($name, ".", stringify!($method)),
            move |context: $crate::Context, $argument: $crate::Requests<$request>| {
                let service = ::std::sync::Arc::clone(&shared);
                async move { service.$method(context, $argument).await }
            },
        );
    };

    (@types $router:ident $name:literal $method:ident ($($argument:ident : $request:ty),*) ($response:ty)) => {
        $router
            .describe_arguments(concat!($name, ".", stringify!($method)), &[$(stringify!($argument)),*])
            .describe_response::<$response>(concat!($name, ".", stringify!($method)));
    };

    (@signature unary ($($argument:ident : $request:ty),*) ($response:ty)) => {
        stringify!(($($argument: $request),*) -> $response)
    };
    (@signature server_stream ($($argument:ident : $request:ty),*) ($response:ty)) => {
        stringify!(($($argument: $request),*) -> stream $response)
    };
    (@signature client_stream ($argument:ident : $request:ty) ($response:ty)) => {
        stringify!(($argument: stream $request) -> $response)
    };
    (@signature bidirectional ($argument:ident : $request:ty) ($response:ty)) => {
        stringify!(($argument: stream $request) -> stream $response)
    };

    (@call unary $idempotent:ident ($($doc:expr),*) $name:literal $method:ident
        ($($argument:ident : $request:ty),*) ($response:ty)
    ) => {
        $(#[doc = $doc])*
        pub async fn $method(&self $(, $argument: $request)*) -> Result<$response, $crate::Status> {
            let method = concat!($name, ".", stringify!($method));
            self.rpc.call(&self.addr, method, &($($argument),*), self.options($idempotent)).await
        }
    };
    (@call server_stream $idempotent:ident ($($doc:expr),*) $name:literal $method:ident
        ($($argument:ident : $request:ty),*) ($response:ty)
    ) => {
        $(#[doc = $doc])*
        pub async fn $method(
            &self $(, $argument: $request)*
        ) -> Result<$crate::Responses<$response>, $crate::Status> {
            let method = concat!($name, ".", stringify!($method));
            self.rpc.server_stream(&self.addr, method, &($($argument),*), self.options($idempotent)).await
        }
    };
    (@call client_stream $idempotent:ident ($($doc:expr),*) $name:literal $method:ident
        ($argument:ident : $request:ty) ($response:ty)
    ) => {
        $(#[doc = $doc])*
        pub async fn $method(&self) -> Result<$crate::Upload<$request, $response>, $crate::Status> {
            let method = concat!($name, ".", stringify!($method));
            self.rpc.client_stream(&self.addr, method, self.options($idempotent)).await
        }
    };
    (@call bidirectional $idempotent:ident ($($doc:expr),*) $name:literal $method:ident
        ($argument:ident : $request:ty) ($response:ty)
    ) => {
        $(#[doc = $doc])*
        pub async fn $method(
            &self,
        ) -> Result<($crate::Sender<$request>, $crate::Responses<$response>), $crate::Status> {
            let method = concat!($name, ".", stringify!($method));
            self.rpc.bidirectional(&self.addr, method, self.options($idempotent)).await
        }
    };
}
