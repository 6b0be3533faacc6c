//! Ship files, answer RPC, keep a log and agree: a toolkit for distributed services over one QUIC port.
