//! Deliberate bugs, to prove that the property tests and the checker find them. In a normal build every answer is
//! `false` at compile time; `--cfg carrick_sabotage="…"` builds a broken server, and unit tests switch them per thread.

/// A safeguard that can be taken out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Safeguard {
    /// Live messages wait while a client catches up.
    Barrier,
    /// A hole in the live feed is noticed.
    GapCheck,
    /// All subscriptions of a connection on one stream share one cursor.
    SharedCursor,
    /// A message that was had before is dropped.
    Dedup,
}

#[cfg(not(test))]
pub const fn off(safeguard: Safeguard) -> bool {
    match safeguard {
        Safeguard::Barrier => cfg!(carrick_sabotage = "barrier_off"),
        Safeguard::GapCheck => cfg!(carrick_sabotage = "gap_check_off"),
        Safeguard::SharedCursor => cfg!(carrick_sabotage = "shared_cursor_off"),
        Safeguard::Dedup => cfg!(carrick_sabotage = "dedup_off"),
    }
}

#[cfg(test)]
thread_local! {
    static OFF: std::cell::Cell<Option<Safeguard>> = const { std::cell::Cell::new(None) };
}

#[cfg(test)]
pub fn off(safeguard: Safeguard) -> bool {
    OFF.get() == Some(safeguard)
}

/// Runs `body` on this thread with one safeguard taken out.
#[cfg(test)]
pub fn without<T>(safeguard: Option<Safeguard>, body: impl FnOnce() -> T) -> T {
    OFF.set(safeguard);
    let result = body();
    OFF.set(None);
    result
}
