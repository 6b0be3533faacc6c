//! Raft consensus with a durable log and durable state, over Octopii's transport.
