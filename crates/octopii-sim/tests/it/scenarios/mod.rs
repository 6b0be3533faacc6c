//! What is played in the simulator.

mod cluster;
mod echo;

use octopii_sim::Trace;

/// Plays the scenario called `name`; its trace.
pub(crate) fn run(name: &str, seed: u64) -> Trace {
    match name {
        "cluster" => cluster::run(seed),
        "echo" => echo::run(seed),
        _ => panic!("no scenario is called {name}"),
    }
}
