//! A durable, topic-isolated write-ahead log with group commit.
