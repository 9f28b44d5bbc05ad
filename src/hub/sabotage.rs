//! Deliberate bugs, to prove that the property tests and the checker find them. In a normal build every answer is
//! `false` at compile time; a server built with `--cfg carrick_sabotage` is broken by an environment variable, and unit
//! tests switch safeguards per thread.

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
    /// A client that came back is excluded under the ids that it had before, too.
    EarlierSids,
}

#[cfg(not(any(test, carrick_sabotage)))]
pub const fn off(_: Safeguard) -> bool {
    false
}

/// `CARRICK_SABOTAGE` names the one that is out.
#[cfg(all(not(test), carrick_sabotage))]
pub fn off(safeguard: Safeguard) -> bool {
    static OFF: std::sync::OnceLock<Option<Safeguard>> = std::sync::OnceLock::new();
    let named = || match std::env::var("CARRICK_SABOTAGE").as_deref() {
        Ok("barrier_off") => Some(Safeguard::Barrier),
        Ok("gap_check_off") => Some(Safeguard::GapCheck),
        Ok("earlier_sids_off") => Some(Safeguard::EarlierSids),
        _ => None,
    };
    *OFF.get_or_init(named) == Some(safeguard)
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
