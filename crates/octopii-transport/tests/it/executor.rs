//! The executor from threads that are not its own.

use std::future::pending;
use std::time::Duration;

use octopii_transport::Executor;

/// Whoever waits on a thread of the application's must not panic when Octopii's runtime goes away meanwhile.
#[test]
fn a_wait_elsewhere_ends_with_the_runtime() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let executor = Executor::new(runtime.handle().clone());
    let elsewhere = || tokio::runtime::Builder::new_current_thread().build().unwrap();
    assert_eq!(elsewhere().block_on(executor.timeout(Duration::from_secs(60), async { 7 })), Some(7));
    assert_eq!(elsewhere().block_on(executor.timeout(Duration::from_millis(20), pending::<()>())), None);
    let waiting = {
        let executor = executor.clone();
        std::thread::spawn(move || {
            elsewhere().block_on(executor.timeout(Duration::from_secs(60), pending::<()>()))
        })
    };
    std::thread::sleep(Duration::from_millis(100));
    runtime.shutdown_background();
    assert_eq!(waiting.join().expect("the wait does not panic"), None);
    // Nor does one that begins too late.
    assert_eq!(elsewhere().block_on(executor.timeout(Duration::from_secs(60), pending::<()>())), None);
}
