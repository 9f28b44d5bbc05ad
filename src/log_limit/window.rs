//! One kind of event: the time in which further ones are counted. Pure.

use std::time::Duration;
use tokio::time::Instant;
use tracing::Level;

/// Begins with an event that is logged, and counts those that follow and are no more severe.
#[derive(Debug)]
pub(super) struct Window {
    began: Option<Instant>,
    level: Level,
    counted: u64,
}

/// What is to be told of a window that is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Counted {
    pub number: u64,
    pub level: Level,
    /// From the event that was logged until now.
    pub time: Duration,
}

/// What becomes of one event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is logged; what the last window counted is told before.
    Log(Option<Counted>),
    /// It is counted. The first one of a window must be told in time.
    Count { is_first: bool },
}

impl Window {
    pub const fn new() -> Self {
        Self { began: None, level: Level::WARN, counted: 0 }
    }

    pub fn admit(&mut self, level: Level, now: Instant, period: Duration) -> Verdict {
        // What is more severe than the one that was logged may not hide behind it: the log may show only such.
        let is_more_severe = level < self.level;
        if !is_more_severe && self.began.is_some_and(|began| now < began + period) {
            self.counted += 1;
            return Verdict::Count { is_first: self.counted == 1 };
        }
        let before = self.close(now);
        (self.began, self.level) = (Some(now), level);
        Verdict::Log(before)
    }

    /// When what was counted must be told. `None`: nothing was.
    pub fn due(&self, period: Duration) -> Option<Instant> {
        self.began.filter(|_| self.counted > 0).map(|began| began + period)
    }

    /// Ends the window.
    pub fn close(&mut self, now: Instant) -> Option<Counted> {
        let began = self.began.take()?;
        let number = std::mem::take(&mut self.counted);
        let time = now.saturating_duration_since(began);
        (number > 0).then_some(Counted { number, level: self.level, time })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PERIOD: Duration = Duration::from_secs(10);

    #[test]
    fn row_17_the_first_is_logged_and_the_others_are_told_once() {
        let (mut window, begin) = (Window::new(), Instant::now());
        let after = |millis: u64| begin + Duration::from_millis(millis);
        assert_eq!(window.admit(Level::WARN, after(0), PERIOD), Verdict::Log(None));
        assert_eq!(window.due(PERIOD), None, "nothing to tell");
        for number in 1..=11_999 {
            let level = if number % 2 == 0 { Level::WARN } else { Level::INFO };
            let verdict = window.admit(level, after(number / 2_000), PERIOD);
            assert_eq!(verdict, Verdict::Count { is_first: number == 1 });
        }
        assert_eq!(window.due(PERIOD), Some(after(10_000)));
        let counted = Counted { number: 11_999, level: Level::WARN, time: PERIOD };
        assert_eq!(window.close(after(10_000)), Some(counted), "at the level of the one that was logged");
        assert_eq!((window.close(after(10_001)), window.due(PERIOD)), (None, None), "once");
        assert_eq!(window.admit(Level::WARN, after(10_002), PERIOD), Verdict::Log(None), "logged again at once");
    }

    #[test]
    fn row_17_an_error_is_not_hidden_behind_warnings() {
        let (mut window, begin) = (Window::new(), Instant::now());
        let after = |millis: u64| begin + Duration::from_millis(millis);
        window.admit(Level::WARN, after(0), PERIOD);
        window.admit(Level::WARN, after(1_000), PERIOD);
        let warned = Counted { number: 1, level: Level::WARN, time: Duration::from_secs(2) };
        assert_eq!(window.admit(Level::ERROR, after(2_000), PERIOD), Verdict::Log(Some(warned)));
        for number in 1..=1_000 {
            let level = if number % 2 == 0 { Level::WARN } else { Level::ERROR };
            assert_eq!(window.admit(level, after(3_000), PERIOD), Verdict::Count { is_first: number == 1 });
        }
        let counted = Counted { number: 1_000, level: Level::ERROR, time: PERIOD };
        assert_eq!(window.close(after(12_000)), Some(counted), "told where errors are shown");
        assert_eq!(window.admit(Level::WARN, after(12_001), PERIOD), Verdict::Log(None));
    }

    #[test]
    fn row_17_nothing_is_lost_where_nobody_came_to_tell() {
        let (mut window, begin) = (Window::new(), Instant::now());
        let after = |seconds: u64| begin + Duration::from_secs(seconds);
        window.admit(Level::WARN, after(0), PERIOD);
        window.admit(Level::WARN, after(9), PERIOD);
        let counted = Counted { number: 1, level: Level::WARN, time: Duration::from_secs(40) };
        assert_eq!(window.admit(Level::WARN, after(40), PERIOD), Verdict::Log(Some(counted)));
        assert_eq!(window.admit(Level::WARN, after(41), PERIOD), Verdict::Count { is_first: true });
    }

    #[test]
    fn row_17_a_seldom_event_is_always_logged() {
        let (mut window, begin) = (Window::new(), Instant::now());
        for turn in 0..5 {
            let now = begin + PERIOD * turn;
            assert_eq!(window.admit(Level::WARN, now, PERIOD), Verdict::Log(None));
        }
    }
}
