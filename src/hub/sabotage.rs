//! Deliberate bugs, to prove that the property tests and the checker find them. In a normal build every answer is
//! `false` at compile time.
//!
//! A server built with `--cfg carrick_sabotage` lacks the safeguard that `CARRICK_SABOTAGE` names: `barrier_off`,
//! `gap_check_off` or `earlier_sids_off`. It does not run without such a name: a healthy server would prove nothing. Unit
//! tests take out any safeguard, one thread at a time; [`Safeguard::SharedCursor`] and [`Safeguard::Dedup`] can be taken out
//! there alone.

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

/// A server that was to lack a safeguard and does not know which ends here, at its start.
pub fn check() {
    off(Safeguard::Barrier);
}

/// `CARRICK_SABOTAGE` names the one that is out. Ends the process if it names none.
#[cfg(all(not(test), carrick_sabotage))]
pub fn off(safeguard: Safeguard) -> bool {
    static OFF: std::sync::OnceLock<Safeguard> = std::sync::OnceLock::new();
    let named = || {
        let name = std::env::var("CARRICK_SABOTAGE").ok();
        named(name.as_deref()).unwrap_or_else(|error| {
            eprintln!("{error}");
            std::process::exit(2)
        })
    };
    *OFF.get_or_init(named) == safeguard
}

#[cfg(any(test, carrick_sabotage))]
fn named(name: Option<&str>) -> Result<Safeguard, String> {
    match name {
        Some("barrier_off") => Ok(Safeguard::Barrier),
        Some("gap_check_off") => Ok(Safeguard::GapCheck),
        Some("earlier_sids_off") => Ok(Safeguard::EarlierSids),
        other => Err(format!(
            "this build lacks a safeguard on purpose, and CARRICK_SABOTAGE ({}) does not say which: set it to \
             barrier_off, gap_check_off or earlier_sids_off",
            other.unwrap_or("unset")
        )),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_takes_nothing_out_is_an_error() {
        assert_eq!(named(Some("gap_check_off")), Ok(Safeguard::GapCheck));
        for wrong in [None, Some(""), Some("gap_check"), Some("dedup_off")] {
            assert!(named(wrong).unwrap_err().contains("gap_check_off"), "{wrong:?}");
        }
    }
}
