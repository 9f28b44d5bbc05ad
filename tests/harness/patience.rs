//! Waiting without guessing: poll with patience.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How long anything that must happen may take. Generous: the machine may be busy with other tests, and stand still for
/// seconds.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// How long a client listens before it concludes that nothing comes; the conformance suite's value.
pub const SILENCE: Duration = Duration::from_millis(500);

/// Polls until `probe` answers, at most [`PATIENCE`]; panics with `what` otherwise.
pub async fn eventually<T>(what: &str, mut probe: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = probe().await {
            return answer;
        }
        assert!(Instant::now() < deadline, "waited {PATIENCE:?} in vain: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The blocking form of [`eventually`], for starting processes.
pub fn eventually_blocking<T>(mut probe: impl FnMut() -> Result<T, String>) -> Result<T, String> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match probe() {
            Ok(answer) => return Ok(answer),
            Err(reason) if Instant::now() >= deadline => return Err(reason),
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}

/// Lets time pass because the test is *about* that time (expiry, intervals), not to wait for something.
pub async fn let_pass(time: Duration) {
    tokio::time::sleep(time).await;
}

/// Unix time in whole seconds.
pub fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is past 1970").as_secs()
}
