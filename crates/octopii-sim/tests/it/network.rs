//! The simulated network and the machines on it.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use octopii_sim::{Machine, Options, Scenario, Weather};
use octopii_transport::DatagramSocket;

const PORT: u16 = 9;

async fn receive(socket: &dyn DatagramSocket) -> (Vec<u8>, SocketAddr) {
    let mut buf = [0; 2000];
    let (len, from) = poll_fn(|cx| socket.poll_recv(cx, &mut buf)).await.unwrap();
    (buf[..len].to_vec(), from)
}

/// A machine that collects the first byte of every datagram it gets.
fn listener(scenario: &mut Scenario, name: &str) -> Rc<RefCell<Vec<u8>>> {
    let heard = Rc::new(RefCell::new(Vec::new()));
    let shared = Rc::clone(&heard);
    scenario.host(name, move |machine| {
        let heard = Rc::clone(&shared);
        async move {
            let socket = machine.bind(PORT).await?;
            loop {
                let (payload, _) = receive(socket.as_ref()).await;
                heard.borrow_mut().push(payload[0]);
            }
        }
    });
    heard
}

/// A machine that sends the numbers from 0 to the listener, one each millisecond.
fn talker(scenario: &mut Scenario, name: &str, to: &'static str) {
    scenario.host(name, move |machine: Machine| async move {
        let socket = machine.bind(PORT).await?;
        for number in 0_u8.. {
            socket.try_send(&[number], machine.lookup(to, PORT))?;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Ok(())
    });
}

#[derive(Default)]
struct CountingWaker(AtomicU32);

impl Wake for CountingWaker {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn the_last_waker_is_woken_and_none_is_lost() {
    Scenario::run(1, Options::default(), |scenario| {
        let done = Rc::new(RefCell::new(false));
        let finished = Rc::clone(&done);
        scenario.host("a", move |machine| {
            let finished = Rc::clone(&finished);
            async move {
                let socket = machine.bind(PORT).await?;
                let mut buf = [0; 10];
                for round in 1..=3_u8 {
                    let (old, new) = (Arc::new(CountingWaker::default()), Arc::new(CountingWaker::default()));
                    for waker in [&old, &new] {
                        let waker = Waker::from(Arc::clone(waker));
                        assert!(socket.poll_recv(&mut Context::from_waker(&waker), &mut buf).is_pending());
                    }
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    assert_eq!((old.0.load(Ordering::SeqCst), new.0.load(Ordering::SeqCst)), (0, 1));
                    // Two arrived meanwhile, in any order.
                    let waker = Waker::from(Arc::clone(&new));
                    for _ in 0..2 {
                        let got = socket.poll_recv(&mut Context::from_waker(&waker), &mut buf);
                        assert!(matches!(got, Poll::Ready(Ok((1, _)))), "{got:?}");
                        assert_eq!(buf[0], round);
                    }
                    assert!(socket.poll_recv(&mut Context::from_waker(&waker), &mut buf).is_pending());
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                *finished.borrow_mut() = true;
                std::future::pending().await
            }
        });
        scenario.host("b", |machine| async move {
            let socket = machine.bind(PORT).await?;
            for round in 1..=3 {
                tokio::time::sleep(Duration::from_millis(20)).await;
                socket.try_send(&[round], machine.lookup("a", PORT))?;
                socket.try_send(&[round], machine.lookup("a", PORT))?;
                tokio::time::sleep(Duration::from_millis(180)).await;
            }
            std::future::pending().await
        });
        scenario.run_until(Duration::from_secs(5), || *done.borrow()).unwrap();
    });
}

#[test]
fn weather_loses_and_doubles() {
    let weather = Weather { loss: 0.2, duplication: 0.2 };
    Scenario::run(1, Options { weather, ..Options::default() }, |scenario| {
        let heard = listener(scenario, "listener");
        talker(scenario, "talker", "listener");
        scenario.run_for(Duration::from_millis(240));
        let heard = heard.borrow();
        let distinct: BTreeSet<u8> = heard.iter().copied().collect();
        assert!((150..220).contains(&distinct.len()), "{} of 240", distinct.len());
        assert!((20..70).contains(&(heard.len() - distinct.len())), "{} twice", heard.len() - distinct.len());
        assert!(!heard.is_sorted(), "delays reorder");
    });
}

#[test]
fn partitions_cut_and_repairs_join() {
    Scenario::run(1, Options::default(), |scenario| {
        let heard = listener(scenario, "listener");
        talker(scenario, "talker", "listener");
        scenario.run_for(Duration::from_millis(50));
        scenario.partition("listener", "talker");
        scenario.run_for(Duration::from_millis(50));
        scenario.repair("listener", "talker");
        scenario.run_for(Duration::from_millis(50));
        let heard = heard.borrow();
        assert!(heard.iter().any(|number| *number < 40) && heard.iter().any(|number| *number > 105));
        assert!(!heard.iter().any(|number| (60..95).contains(number)), "{heard:?}");
    });
}

#[test]
fn a_machine_without_power_says_nothing_even_while_dropped() {
    /// A program that says goodbye when it is dropped.
    struct Polite(Arc<dyn DatagramSocket>, SocketAddr);

    impl Drop for Polite {
        fn drop(&mut self) {
            self.0.try_send(&[255], self.1).unwrap();
        }
    }

    let heard_goodbye = |crash: bool| {
        Scenario::run(1, Options::default(), move |scenario| {
            let heard = listener(scenario, "listener");
            scenario.host("polite", move |machine| async move {
                let polite = Polite(machine.bind(PORT).await?, machine.lookup("listener", PORT));
                tokio::time::sleep(Duration::from_millis(50)).await;
                drop(polite);
                std::future::pending().await
            });
            scenario.run_for(Duration::from_millis(10));
            if crash {
                scenario.crash("polite");
            }
            scenario.run_for(Duration::from_millis(200));
            heard.borrow().contains(&255)
        })
    };
    assert!(heard_goodbye(false));
    assert!(!heard_goodbye(true));
}

#[test]
fn a_booted_machine_finds_its_synced_files_only() {
    for seed in 0..20 {
        Scenario::run(seed, Options::default(), |scenario| {
            let boots = Rc::new(RefCell::new(Vec::new()));
            let seen = Rc::clone(&boots);
            scenario.host("a", move |machine| {
                let seen = Rc::clone(&seen);
                async move {
                    let vfs = machine.vfs();
                    let path = std::path::Path::new("/file");
                    if machine.boot() == 0 {
                        octopii_vfs::write_file_durable(vfs.as_ref(), path, b"durable")?;
                        let file = vfs.open(path, octopii_vfs::OpenMode::ReadWrite)?;
                        file.write_all_at(&[1; 2000], 512)?;
                    }
                    seen.borrow_mut().push(octopii_vfs::read_file(vfs.as_ref(), path, 10_000)?);
                    std::future::pending().await
                }
            });
            scenario.run_for(Duration::from_millis(10));
            scenario.crash("a");
            scenario.run_for(Duration::from_millis(10));
            assert_eq!(boots.borrow().len(), 1, "it is down until it is booted");
            scenario.boot("a");
            scenario.run_for(Duration::from_millis(10));
            let boots = boots.borrow();
            assert_eq!((boots.len(), boots[0].len()), (2, 2512));
            assert_eq!(&boots[1][..7], b"durable");
        });
    }
}

#[test]
fn the_power_can_go_in_the_middle_of_a_write() {
    let lost: usize = (0..40)
        .map(|seed| {
            Scenario::run(seed, Options::default(), move |scenario| {
                scenario.host("a", |machine| async move {
                    let vfs = machine.vfs();
                    if machine.boot() > 0 {
                        return std::future::pending().await;
                    }
                    loop {
                        // Fails in the step in which the power goes; that is no failure of the scenario.
                        octopii_vfs::write_file_durable(
                            vfs.as_ref(),
                            std::path::Path::new("/file"),
                            &[7; 3000],
                        )?;
                        tokio::time::sleep(Duration::from_millis(1)).await;
                    }
                });
                scenario.run_for(Duration::from_millis(5));
                scenario.crash_after("a", seed % 8);
                scenario.run_for(Duration::from_millis(20));
                assert!(!scenario.is_up("a"));
                scenario.boot("a");
                assert!(scenario.is_up("a"));
                let vfs = scenario.disk("a").vfs();
                let whole =
                    octopii_vfs::read_file(vfs.as_ref(), std::path::Path::new("/file"), 10_000).unwrap();
                assert_eq!(whole, [7; 3000]);
                vfs.read_dir(std::path::Path::new("/")).unwrap().len()
            })
        })
        .filter(|names| *names == 2)
        .count();
    assert!(lost > 0, "no temporary file was ever left behind");
}
