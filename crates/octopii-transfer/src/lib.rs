//! Verified, durable chunk transfer over Octopii's transport.
