//! Memory that a burst needed goes back to the system when the burst is over.
//!
//! The allocator of glibc keeps what was freed: after thousands of clients have left, or attackers have, a process looks as
//! large as it was at its peak, for good. Only it knows which pages are free, and gives them back when it is asked to. That
//! takes some milliseconds, in which others may wait for memory, so it is asked only when much more is unused than when it
//! was asked last, and for some time. Elsewhere than on Linux with glibc nothing is done.

use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// How often is looked.
const LOOK: Duration = Duration::from_secs(5);
/// Unused bytes beyond those that there were after the last time; with much in use a quarter of that, if it is more.
const WORTH: i64 = 8 << 20;
/// What is still in use frees further pages as it goes: asked again while it gives so many bytes, so often at most.
const AGAIN: i64 = 1 << 20;
const ROUNDS: u32 = 6;

/// What the process holds, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Held {
    /// Of its own, in memory.
    resident: i64,
    /// Of those, what nobody uses. (Less than 0: something was asked for and never written to.)
    unused: i64,
}

/// Decides when to give back.
struct Keeper {
    /// Unused after the last time.
    kept: i64,
    /// The last look found enough to give back.
    was_due: bool,
    rounds: u32,
}

impl Keeper {
    fn new(now: Held) -> Self {
        Self { kept: now.unused, was_due: false, rounds: 0 }
    }

    /// Whether it is time to give back.
    fn look(&mut self, now: Held) -> bool {
        self.kept = self.kept.min(now.unused);
        let in_use = now.resident - now.unused;
        let due = now.unused > self.kept + WORTH.max(in_use / 4);
        // What comes and goes within one look may be there again.
        let give = due && self.was_due || self.rounds > 0;
        self.was_due = due;
        give
    }

    /// What it came to.
    fn gave(&mut self, before: Held, after: Held) {
        self.kept = after.unused;
        self.was_due = false;
        let pays = before.resident - after.resident >= AGAIN;
        self.rounds = if pays && self.rounds < ROUNDS { self.rounds + 1 } else { 0 };
    }
}

/// Gives back what bursts leave behind, until `stop`.
pub async fn give_back(stop: CancellationToken) {
    let Some(mut keeper) = held().map(Keeper::new) else { return };
    let mut looks = tokio::time::interval(LOOK);
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while stop.run_until_cancelled(looks.tick()).await.is_some() {
        // It walks through all that is free.
        let looked = tokio::task::spawn_blocking(move || {
            let before = held()?;
            if keeper.look(before) {
                let begun = Instant::now();
                trim();
                let micros = begun.elapsed().as_micros();
                let after = held()?;
                keeper.gave(before, after);
                let bytes = u64::try_from(before.resident - after.resident).unwrap_or(0);
                crate::metrics::MEMORY_GIVEN_BACK.add(bytes);
                tracing::debug!(context = "node", bytes, unused = after.unused, micros, "unused memory was given back");
            }
            Some(keeper)
        });
        match looked.await {
            Ok(Some(next)) => keeper = next,
            // The system says no more how much there is.
            Ok(None) => return,
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        }
    }
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn held() -> Option<Held> {
    let text = std::fs::read_to_string("/proc/self/statm").ok()?;
    let mut pages = text.split(' ').skip(1).map(|number| number.parse::<i64>().ok());
    let (all, shared) = (pages.next()??, pages.next()??);
    let resident = (all - shared) * i64::try_from(rustix::param::page_size()).ok()?;
    #[expect(unsafe_code, reason = "no crate asks the allocator; the call takes nothing and changes nothing")]
    // SAFETY: it may be called at any time by any thread.
    let info = unsafe { libc::mallinfo() };
    let in_use = info.uordblks.wrapping_add(info.hblkhd);
    Some(Held { resident, unused: difference(resident, in_use) })
}

/// What is left of the resident bytes without those in use, of which only the lower 32 bits are told: right if it is
/// between -512 MiB and 3.5 GiB. (The function with longer numbers is missing in glibc before 2.33.)
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn difference(resident: i64, in_use: i32) -> i64 {
    let low = (resident as u32).wrapping_sub(in_use as u32);
    if low >= u32::MAX - (512 << 20) { i64::from(low as i32) } else { i64::from(low) }
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn trim() {
    #[expect(unsafe_code, reason = "no crate asks the allocator; what is in use stays where it is")]
    // SAFETY: it may be called at any time by any thread; no bytes are to be kept at the top of the heap.
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn held() -> Option<Held> {
    None
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn trim() {}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: i64 = 1 << 20;

    fn held_of(in_use: i64, unused: i64) -> Held {
        Held { resident: (in_use + unused) * MIB, unused: unused * MIB }
    }

    #[test]
    fn what_a_burst_leaves_is_given_back_once_it_has_lasted() {
        let mut keeper = Keeper::new(held_of(6, 2));
        assert!(!keeper.look(held_of(70, 3)), "in use");
        assert!(!keeper.look(held_of(6, 67)), "it may be needed again at once");
        assert!(!keeper.look(held_of(70, 3)), "as it was");
        assert!(!keeper.look(held_of(6, 67)));
        assert!(keeper.look(held_of(6, 67)));
        keeper.gave(held_of(6, 67), held_of(6, 20));
        assert!(keeper.look(held_of(6, 20)), "what has gone since frees further pages");
        keeper.gave(held_of(6, 20), held_of(6, 20));
        assert!(!keeper.look(held_of(6, 20)), "nothing more to be had");
        assert!(!keeper.look(held_of(6, 27)) && !keeper.look(held_of(6, 27)), "not worth it");
        assert!(!keeper.look(held_of(400, 100)) && !keeper.look(held_of(400, 100)), "not worth it beside so much");
    }

    #[test]
    fn what_is_needed_again_and_again_is_not_given_back_all_the_time() {
        let mut keeper = Keeper::new(held_of(6, 2));
        let gives = (0..100).filter(|_| {
            let give = keeper.look(held_of(6, 6));
            if give {
                keeper.gave(held_of(6, 6), held_of(6, 2));
            }
            give
        });
        assert_eq!(gives.count(), 0);
        keeper.rounds = 1;
        let mut rounds = 0;
        while keeper.look(held_of(6, 6)) && rounds < 100 {
            keeper.gave(held_of(6, 6), held_of(6, 2));
            rounds += 1;
        }
        assert_eq!(rounds, ROUNDS);
    }

    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    #[test]
    fn numbers_of_32_bits_are_enough() {
        for (resident, in_use) in [(20, 15), (15, 20), (6_000, 5_000), (9_000, 6_000), (5_000, 5_300), (3_000, 10)] {
            let (resident, in_use): (i64, i64) = (resident * MIB, in_use * MIB);
            assert_eq!(difference(resident, in_use as i32), resident - in_use, "{resident} {in_use}");
        }
    }

    /// Set for [`what_is_freed_goes_back`], which otherwise does nothing.
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    const ALONE: &str = "CARRICK_TEST_MEMORY_ALONE";

    /// In a process of its own: elsewhere other tests take memory and give it back meanwhile.
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    #[test]
    fn freed_memory_is_unused_and_goes_back() {
        let mut alone = std::process::Command::new(std::env::current_exe().unwrap());
        alone.args(["--exact", "ops::memory::tests::what_is_freed_goes_back", "--nocapture"]).env(ALONE, "1");
        let ended = alone.output().unwrap();
        let said = String::from_utf8_lossy(&ended.stdout);
        assert!(ended.status.success() && said.contains("\ngone"), "{said}{}", String::from_utf8_lossy(&ended.stderr));
    }

    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    #[test]
    fn what_is_freed_goes_back() {
        if std::env::var_os(ALONE).is_none() {
            return;
        }
        // Too small to be mapped by themselves; every second one stays at first.
        let mut all: Vec<Option<Vec<u8>>> = (0..80_000).map(|_| Some(vec![1; 2_000])).collect();
        let full = held().unwrap();
        all.iter_mut().step_by(2).for_each(|one| *one = None);
        let half = held().unwrap();
        assert!(half.unused > full.unused + 50 * MIB, "{full:?}, then {half:?}");
        let kept = all.pop();
        drop(all);
        trim();
        let after = held().unwrap();
        assert!(after.resident < full.resident - 100 * MIB, "{full:?}, then {after:?}");
        drop(kept);
        println!("\ngone");
    }
}
