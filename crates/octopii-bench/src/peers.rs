//! Two transfer services that know each other, in this process.

use octopii_bench::Outcome;
use octopii_transfer::{Transfer, TransferOptions};
use octopii_transport::{ClusterAuthority, Endpoint, EndpointOptions, Executor};
use octopii_wal::vfs::RealVfs;

/// They live as long as this does.
pub(crate) struct Peers {
    pub(crate) sender: Transfer,
    pub(crate) receiver: Transfer,
    endpoints: [Endpoint; 2],
}

impl Peers {
    /// On the runtime that this is called on, not connected yet.
    pub(crate) fn start(options: &TransferOptions) -> Outcome<Self> {
        let executor = Executor::new(tokio::runtime::Handle::current());
        let authority = ClusterAuthority::generate()?;
        let bind = |id| -> Outcome<_> {
            let endpoint = Endpoint::bind(&executor, &authority.issue(id)?, EndpointOptions::default())?;
            let transfer = Transfer::start(&endpoint, RealVfs::shared(), options.clone())?;
            Ok((endpoint, transfer))
        };
        let ((a, sender), (b, receiver)) = (bind(1)?, bind(2)?);
        Ok(Self { sender, receiver, endpoints: [a, b] })
    }

    pub(crate) async fn connect(&self) -> Outcome<()> {
        self.endpoints[0].connect(self.addr()).await?;
        Ok(())
    }

    /// Where the receiver is.
    pub(crate) fn addr(&self) -> std::net::SocketAddr {
        self.endpoints[1].local_addr()
    }
}
