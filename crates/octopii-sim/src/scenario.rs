//! Machines, a network between them, and time that passes when told to.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::error::Error;
use std::fmt;
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

use turmoil::Sim;

use crate::socket::Ports;
use crate::{Machine, Power, Rng, SimDisk, Trace, Weather, world};

/// What machines' software returns. An error ends the simulation.
pub type Outcome = Result<(), Box<dyn Error>>;

/// How a [`Scenario`] is set up.
#[derive(Debug, Clone)]
pub struct Options {
    /// The shortest time a datagram takes. Default 1 ms.
    pub min_latency: Duration,
    /// The longest time a datagram takes; most take far less. Whole milliseconds, as the minimum. Default 10 ms.
    pub max_latency: Duration,
    /// Loss and duplication. Default none.
    pub weather: Weather,
    /// Events that the trace keeps in words. Default 2,000; the digest covers all.
    pub kept_events: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            min_latency: Duration::from_millis(1),
            max_latency: Duration::from_millis(10),
            weather: Weather::default(),
            kept_events: 2000,
        }
    }
}

/// Simulated time after which a scenario that is still stepped has gone wrong.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// Datagrams that wait at a socket; more are lost.
const SOCKET_QUEUE: usize = 4096;

/// A simulation under way: machines that run real code, stepped by one millisecond at a time.
pub struct Scenario {
    sim: Sim<'static>,
    seed: u64,
    weather: Weather,
    trace: Trace,
    hosts: BTreeMap<String, Host>,
}

struct Host {
    disk: SimDisk,
    boots: Rc<RefCell<Boots>>,
}

#[derive(Default)]
struct Boots {
    count: u64,
    /// The boot under way, or the last one.
    power: Power,
    /// Whether turmoil runs the software. It goes on for the rest of a step in which the power went.
    running: bool,
}

/// The condition given to [`Scenario::run_until`] did not come true in time.
#[derive(Debug)]
pub struct TimedOut {
    waited: Duration,
}

impl fmt::Display for TimedOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "did not happen within {:?} of simulated time", self.waited)
    }
}

impl Error for TimedOut {}

impl Scenario {
    /// Runs `body` with a new scenario on a thread of its own, so that nothing seeded earlier on this thread matters.
    /// The same seed gives the same run, if this process runs nothing else meanwhile (see the crate's documentation).
    ///
    /// # Panics
    ///
    /// Resumes a panic of `body`, after printing the seed and the last events.
    pub fn run<T: Send + 'static>(
        seed: u64,
        options: Options,
        body: impl FnOnce(&mut Self) -> T + Send + 'static,
    ) -> T {
        let simulation = move || {
            let _world = world::enter(seed);
            let mut scenario = Self::new(seed, &options);
            let _report = ReportOnPanic { seed, trace: scenario.trace.clone() };
            body(&mut scenario)
        };
        let thread =
            std::thread::Builder::new().name(format!("seed {seed}")).stack_size(16 << 20).spawn(simulation);
        match thread.expect("the machine can start a thread").join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    fn new(seed: u64, options: &Options) -> Self {
        let sim = turmoil::Builder::new()
            .rng_seed(Rng::labelled(seed, "turmoil").next())
            .epoch(std::time::UNIX_EPOCH + world::EPOCH)
            .simulation_duration(LONGEST)
            .tick_duration(Duration::from_millis(1))
            .min_message_latency(options.min_latency)
            .max_message_latency(options.max_latency)
            .udp_capacity(SOCKET_QUEUE)
            .build();
        let trace = Trace::new(options.kept_events);
        Self { sim, seed, weather: options.weather, trace, hosts: BTreeMap::new() }
    }

    /// The seed that everything follows from.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// What happened so far.
    pub fn trace(&self) -> &Trace {
        &self.trace
    }

    /// A generator for the scenario's own choices.
    pub fn rng(&self, purpose: &str) -> Rng {
        Rng::labelled(self.seed, &format!("scenario {purpose}"))
    }

    /// Adds a machine with an empty disk and boots it. `software` runs once per boot.
    pub fn host<F, Fut>(&mut self, name: &str, software: F)
    where
        F: Fn(Machine) -> Fut + 'static,
        Fut: Future<Output = Outcome> + 'static,
    {
        let disk = SimDisk::recorded(Rng::labelled(self.seed, name).next(), name, self.trace.clone());
        let boots = Rc::new(RefCell::new(Boots::default()));
        self.hosts.insert(name.to_owned(), Host { disk: disk.clone(), boots: Rc::clone(&boots) });
        let (seed, weather, trace, name) = (self.seed, self.weather, self.trace.clone(), name.to_owned());
        self.sim.host(name.clone(), move || {
            let power = disk.power();
            let boot = boots.borrow_mut().begin(&power);
            let (name, disk, trace) = (name.clone(), disk.clone(), trace.clone());
            let ports = Ports::default();
            let machine = Machine {
                name,
                boot,
                seed,
                disk,
                power: power.clone(),
                trace,
                weather,
                ports: ports.clone(),
            };
            let running = software(machine);
            async move {
                let _ports = CloseOnDrop(ports);
                match running.await {
                    // It noticed that its disk is gone. So is the machine: it will be taken down after this step.
                    Err(_) if !power.is_on() => std::future::pending().await,
                    ended => ended,
                }
            }
        });
    }

    /// The disk of a machine.
    ///
    /// # Panics
    ///
    /// If there is no machine of that name.
    pub fn disk(&self, name: &str) -> &SimDisk {
        &self.hosts.get(name).unwrap_or_else(|| panic!("no machine is called {name}")).disk
    }

    /// Cuts a machine's power: what it had not synced is lost as [`SimDisk`] says, and it stays down until
    /// [`Scenario::boot`].
    pub fn crash(&mut self, name: &str) {
        // First: whatever the dropped tasks still try must not reach the disk or the network.
        self.disk(name).crash();
        self.take_down(name);
    }

    /// Lets a machine lose its power in the middle of what it does, after `calls` more calls that change its disk. It stays
    /// down until [`Scenario::boot`].
    pub fn crash_after(&mut self, name: &str, calls: u64) {
        self.disk(name).crash_after(calls);
    }

    /// Whether a machine is up.
    pub fn is_up(&self, name: &str) -> bool {
        let boots = self.hosts[name].boots.borrow();
        boots.running && boots.power.is_on()
    }

    /// Kills a machine's software without losing what it wrote. It stays down until [`Scenario::boot`].
    pub fn kill(&mut self, name: &str) {
        self.disk(name).kill();
        self.take_down(name);
    }

    /// Boots a machine that is down.
    pub fn boot(&mut self, name: &str) {
        assert!(!self.is_up(name), "{name} is up already");
        self.disk(name).stay_up();
        self.trace.record(name, format_args!("boot"), &[]);
        self.sim.bounce(name);
    }

    /// Cuts the network between two machines, in both directions.
    pub fn partition(&mut self, a: &str, b: &str) {
        self.trace.record(a, format_args!("partitioned from {b}"), &[]);
        self.sim.partition(a, b);
    }

    /// Repairs the network between two machines.
    pub fn repair(&mut self, a: &str, b: &str) {
        self.trace.record(a, format_args!("joined with {b}"), &[]);
        self.sim.repair(a, b);
    }

    /// Simulated time since the start.
    pub fn elapsed(&self) -> Duration {
        self.sim.elapsed()
    }

    /// Lets one millisecond pass on every machine.
    ///
    /// # Panics
    ///
    /// If a machine's software fails.
    pub fn step(&mut self) {
        world::set_elapsed(self.sim.elapsed());
        if let Err(e) = self.sim.step() {
            panic!("a machine's software failed: {e}");
        }
        let lost_power = |host: &Host| {
            let boots = host.boots.borrow();
            boots.running && !boots.power.is_on()
        };
        let dead: Vec<String> =
            self.hosts.iter().filter(|(_, host)| lost_power(host)).map(|(name, _)| name.clone()).collect();
        dead.iter().for_each(|name| self.take_down(name));
    }

    fn take_down(&mut self, name: &str) {
        self.hosts[name].boots.borrow_mut().running = false;
        self.sim.crash(name);
    }

    /// Lets time pass.
    pub fn run_for(&mut self, time: Duration) {
        let end = self.elapsed() + time;
        while self.elapsed() < end {
            self.step();
        }
    }

    /// Lets time pass until `condition` holds, `limit` at most.
    pub fn run_until(
        &mut self,
        limit: Duration,
        mut condition: impl FnMut() -> bool,
    ) -> Result<(), TimedOut> {
        let end = self.elapsed() + limit;
        while !condition() {
            if self.elapsed() >= end {
                return Err(TimedOut { waited: limit });
            }
            self.step();
        }
        Ok(())
    }

    /// Lets time pass until a machine is down, `limit` at most.
    pub fn run_until_down(&mut self, name: &str, limit: Duration) -> Result<(), TimedOut> {
        let boots = Rc::clone(&self.hosts[name].boots);
        self.run_until(limit, || !boots.borrow().running)
    }
}

/// Part of the machine's software, so that it is dropped where turmoil can unbind the machine's ports.
struct CloseOnDrop(Ports);

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl Boots {
    /// Returns how many there were before.
    fn begin(&mut self, power: &Power) -> u64 {
        self.power = power.clone();
        self.running = true;
        self.count += 1;
        self.count - 1
    }
}

impl Drop for Scenario {
    fn drop(&mut self) {
        // Before the tasks are dropped with the simulation, outside of which their sockets cannot speak.
        self.hosts.values().for_each(|host| host.disk.kill());
    }
}

impl fmt::Debug for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scenario")
            .field("seed", &self.seed)
            .field("elapsed", &self.elapsed())
            .finish_non_exhaustive()
    }
}

/// A failed run is worth nothing without its seed.
struct ReportOnPanic {
    seed: u64,
    trace: Trace,
}

impl Drop for ReportOnPanic {
    #[expect(clippy::print_stderr, reason = "the report of a failed test")]
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the simulation with seed {} failed; its last events:", self.seed);
            let events = self.trace.events();
            for event in &events[events.len().saturating_sub(40)..] {
                eprintln!("  {event}");
            }
        }
    }
}
