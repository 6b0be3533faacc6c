//! Request/response and acknowledged messages over Octopii's transport.
