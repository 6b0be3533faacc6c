//! Simulated network, disk and clock for Octopii.
