//! What an endpoint shows and believes: replaced as a whole when its identity is, while connections go on.

use std::sync::Arc;

use crate::endpoint::transport_config;
use crate::join::Door;
use crate::{EndpointOptions, Identity, IdentityError, tls};

/// The configurations that follow from an identity.
#[derive(Debug)]
pub(crate) struct Credentials {
    pub(crate) identity: Identity,
    pub(crate) client: quinn::ClientConfig,
    /// For joiners, where certificates are issued.
    pub(crate) join: Option<Arc<quinn::ServerConfig>>,
}

impl Credentials {
    /// With the configuration for connections that members make to us, which quinn keeps.
    pub(crate) fn new(
        identity: &Identity,
        options: &EndpointOptions,
        mtu: u16,
    ) -> Result<(Self, quinn::ServerConfig), IdentityError> {
        let mut server = quinn::ServerConfig::with_crypto(tls::server(identity)?);
        server
            .transport_config(Arc::new(transport_config(options, mtu)))
            .max_incoming(options.limits.handshakes)
            .incoming_buffer_size(options.limits.incoming_buffer)
            .incoming_buffer_size_total(options.limits.incoming_buffer_total);
        let mut client = quinn::ClientConfig::new(tls::client(identity)?);
        client.transport_config(Arc::new(transport_config(options, mtu)));
        let join = match &options.admission {
            Some(_) => Some(Door::config(identity, &options.limits, mtu)?),
            None => None,
        };
        Ok((Self { identity: identity.clone(), client, join }, server))
    }
}
