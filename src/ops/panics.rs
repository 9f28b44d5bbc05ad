//! Panics in the log: one line that says where and what, counted, without what may be a secret.
//!
//! Whoever knows how to bring a panic about may do so as often as he likes: the first one at each place of the source is
//! always told, further ones are [limited](crate::log_limit).

use crate::log_limit::Event;
use crate::metrics;
use std::any::Any;
use std::backtrace::{Backtrace, BacktraceStatus};
use std::collections::BTreeSet;
use std::panic::{self, PanicHookInfo};
use std::sync::{Mutex, PoisonError};
use tracing::Level;

/// Where panics have been, as places of the source: no more than the program has.
static PLACES: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

/// From now on panics are logged in place of being printed. Call once, after the log was set up.
pub fn log_them() {
    panic::set_hook(Box::new(record));
}

fn record(panic: &PanicHookInfo<'_>) {
    metrics::PANICS.inc();
    let location = panic.location().map(ToString::to_string).unwrap_or_default();
    if !is_told(&location) {
        return;
    }
    let thread = std::thread::current().name().unwrap_or("unnamed").to_owned();
    let task = tokio::task::try_id().map(|id| id.to_string()).unwrap_or_default();
    let said = gist(panic.payload());
    // Only where RUST_BACKTRACE asks for it.
    let backtrace = Backtrace::capture();
    if backtrace.status() == BacktraceStatus::Captured {
        tracing::error!(context = "node", location, thread, task, %backtrace, "panic: {said}");
    } else {
        tracing::error!(context = "node", location, thread, task, "panic: {said}");
    }
}

/// Whether a panic at this place has a line. Others are counted.
fn is_told(location: &str) -> bool {
    let is_new = PLACES.lock().unwrap_or_else(PoisonError::into_inner).insert(location.to_owned());
    is_new || Event::Panic.admit(Level::ERROR)
}

/// What stands before values in the texts of panics, the standard library's among them.
const VALUES_BEGIN: [&str; 6] = [": ", "; ", " of `", " when slicing", "\"", "\n"];

/// What a panic says, up to where values begin: a value may be a client's text or a secret.
fn gist(payload: &(dyn Any + Send)) -> &str {
    // A literal holds no values.
    if let Some(text) = payload.downcast_ref::<&'static str>() {
        return text;
    }
    let Some(text) = payload.downcast_ref::<String>() else { return "without a text" };
    let end = VALUES_BEGIN.iter().filter_map(|sign| text.find(sign)).min();
    end.map_or(text, |end| &text[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gist_of(work: impl FnOnce() + panic::UnwindSafe) -> String {
        gist(&*panic::catch_unwind(work).unwrap_err()).to_owned()
    }

    #[test]
    fn row_17_a_panic_that_is_caused_again_and_again_is_told_seldom_and_another_one_at_once() {
        let told = (0..1_000).filter(|_| is_told("src/a.rs:1:1")).count();
        assert_eq!(told, 2, "the first, and the first of those that are counted");
        assert!(is_told("src/b.rs:1:1"));
    }

    #[test]
    fn values_stay_out_of_the_text() {
        assert_eq!(gist_of(|| panic!("plain words: kept")), "plain words: kept");
        let secret = String::from("s3cr3t-ä");
        let text = secret.clone();
        assert_eq!(gist_of(move || panic!("no such key: {text}")), "no such key");
        let text = secret.clone();
        let sliced = gist_of(move || drop(std::hint::black_box(&text[..8]).to_owned()));
        assert!(!sliced.contains("s3cr3t"), "{sliced}");
        // All ways in which the standard library says that a text was sliced wrongly.
        for (begin, end) in [(9, 4), (0, 8), (8, 9), (0, 9_000), (8_000, 9_000)] {
            for text in [secret.clone(), secret.repeat(40)] {
                let sliced = gist_of(move || drop(std::hint::black_box(&text[begin..end]).to_owned()));
                assert!(!sliced.contains("s3cr3t"), "{sliced}");
            }
        }
        let failed: Result<(), String> = std::hint::black_box(Err(secret));
        let unwrapped = gist_of(move || failed.unwrap());
        assert!(!unwrapped.contains("s3cr3t"), "{unwrapped}");
        let items: Vec<u8> = Vec::new();
        assert_eq!(gist_of(move || assert_eq!(std::hint::black_box(items[3]), 0)), "index out of bounds");
    }
}
