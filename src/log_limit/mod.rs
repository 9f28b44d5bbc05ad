//! Log lines that somebody outside can cause as often as he likes: the first in full, the others counted. A leaf that
//! every part may use.
//!
//! Whatever a client, a publisher without a key or a web page can bring about at will at level `info` or above, and whatever
//! each waiting request would say while the store or the application is away, is an [`Event`] and logged by [`limited!`]:
//!
//! * The first one is logged at once, as it is.
//! * Those that follow within [`PERIOD`] and are no more severe are counted: their values are not even looked at. At level
//!   `debug` each one has a line of that level.
//! * One line tells how many they were: when the period ends, also if nothing follows, and when the process ends
//!   ([`Summaries`]).
//! * Every one counts in the metric `log_events_total`.
//!
//! What the process says about itself or its store (ready, connection lost) is no such event: it changes seldom, and each
//! change is told.

mod event;
mod window;

pub use event::{Event, PERIOD, samples};

use crate::critical::critical;
use std::borrow::Cow;
use tokio::task::AbortHandle;

/// Logs an [`Event`] at a level, in the manner of `tracing::event!`: `limited!(WARN, CommandFailed, %error, "…")`. The
/// context is the event's.
macro_rules! limited {
    ($level:ident, $event:ident, $($line:tt)+) => {{
        let event = $crate::log_limit::Event::$event;
        if event.admit(::tracing::Level::$level) {
            ::tracing::event!(
                ::tracing::Level::$level, context = event.context(), event = event.name(), $($line)+
            );
        } else {
            ::tracing::debug!(context = event.context(), event = event.name(), $($line)+);
        }
    }};
}
pub(crate) use limited;

/// Longest part of a text from outside that a record shows, in characters.
const SHOWN: usize = 100;

/// Tells how many events were counted, for as long as it lives; when it is dropped, of those that are left.
pub struct Summaries(AbortHandle);

impl Summaries {
    /// Must be called within the runtime.
    pub fn start() -> Self {
        Self(tokio::spawn(critical("log.summaries", event::tell_in_time())).abort_handle())
    }
}

impl Drop for Summaries {
    fn drop(&mut self) {
        self.0.abort();
        tell_all();
    }
}

/// Tells of everything that was counted and not told yet: the process ends.
pub fn tell_all() {
    event::tell_all();
}

/// A text from outside for a record: its first 100 characters, and how many more there are.
pub fn shorten(text: &str) -> Cow<'_, str> {
    shorten_to(text, SHOWN)
}

/// The same with another length.
pub fn shorten_to(text: &str, shown: usize) -> Cow<'_, str> {
    match text.char_indices().nth(shown) {
        None => Cow::Borrowed(text),
        Some((end, _)) => {
            let (shown, rest) = text.split_at(end);
            Cow::Owned(format!("{shown}...({})", rest.chars().count()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_texts_are_cut() {
        assert_eq!(shorten("short"), "short");
        assert_eq!(shorten(&"ж".repeat(103)), format!("{}...(3)", "ж".repeat(100)));
        assert_eq!(shorten_to("abc", 2), "ab...(1)");
    }
}
