//! Tasks that the process cannot do without: a panic in one of them ends the process, with a line in the log and an exit
//! status of its own, and whoever supervises it starts it anew. A node that looks ready never has a dead part.
//!
//! What belongs to one client, one request or one call of the application is no such task: a panic there ends that one
//! thing, and a guard cleans up behind it.

use futures_util::FutureExt;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Exit status of a process that ends because a part of it panicked: `EX_SOFTWARE` of `sysexits.h`.
pub const STATUS: u8 = 70;

/// The task, which takes the process with it when it panics. `part` names it in the log.
pub async fn critical<F: Future>(part: &'static str, task: F) -> F::Output {
    let watched = AssertUnwindSafe(async {
        #[cfg(debug_assertions)]
        return injection::run(part, task).await;
        #[cfg(not(debug_assertions))]
        task.await
    });
    match watched.catch_unwind().await {
        Ok(output) => output,
        Err(_) => end_process(part),
    }
}

/// The same for a thread's work.
pub fn critical_thread<T>(part: &'static str, work: impl FnOnce() -> T) -> T {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| end_process(part))
}

/// Ends the process: the state that `part` shares with others cannot be trusted any more. The panic itself is in the log
/// already.
pub fn end_process(part: &'static str) -> ! {
    tracing::error!(
        context = "node",
        part,
        "a part that the server cannot do without has panicked; the process ends, so that it is started anew"
    );
    crate::log_limit::tell_all();
    // A test process has other tests to run.
    #[cfg(test)]
    panic!("{part} has panicked");
    #[cfg(not(test))]
    std::process::exit(i32::from(STATUS));
}

/// Panics on demand, for tests. Not in release builds.
#[cfg(debug_assertions)]
mod injection {
    use std::time::Duration;

    /// Names the part that panics soon after its start.
    const VARIABLE: &str = "CARRICK_TEST_PANIC";

    pub(super) async fn run<F: Future>(part: &'static str, task: F) -> F::Output {
        if std::env::var_os(VARIABLE).is_none_or(|named| named != part) {
            return task.await;
        }
        tokio::select! {
            biased;
            () = tokio::time::sleep(Duration::from_millis(50)) => panic!("asked for by {VARIABLE}"),
            output = task => output,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_result_passes_and_a_panic_does_not() {
        assert_eq!(critical("test.part", async { 7 }).await, 7);
        let ends = tokio::spawn(critical("test.part", async { panic!("on purpose") }));
        assert!(ends.await.unwrap_err().is_panic());
        assert_eq!(critical_thread("test.part", || 8), 8);
    }
}
