//! Workloads that measure each layer against the machine's own limits.
