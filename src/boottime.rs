//! A clock that goes on while the machine is suspended and that nobody sets, for time that passes elsewhere meanwhile, too:
//! `Instant` stands still then. A leaf that every part may use.

use rustix::time::{ClockId, clock_gettime};
use std::time::Duration;

/// macOS has no such name: its monotonic clock goes on while the machine sleeps.
#[cfg(target_os = "linux")]
const CLOCK: ClockId = ClockId::Boottime;
#[cfg(not(target_os = "linux"))]
const CLOCK: ClockId = ClockId::Monotonic;

/// Time since some moment before this process began.
pub fn now() -> Duration {
    let now = clock_gettime(CLOCK);
    Duration::new(u64::try_from(now.tv_sec).unwrap_or(0), u32::try_from(now.tv_nsec).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_goes_on() {
        let begin = now();
        std::thread::sleep(Duration::from_millis(20));
        let passed = now() - begin;
        assert!((Duration::from_millis(20)..Duration::from_secs(20)).contains(&passed), "{passed:?}");
    }
}
