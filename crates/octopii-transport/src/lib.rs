//! QUIC endpoint, mutual TLS identity, connection pool and typed streams.
