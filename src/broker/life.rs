//! How long what is stored of sessions lives. All of it follows from `sessions_ttl`, for which a session can be resumed,
//! however its connection ended.

use std::time::Duration;

/// How much later than it was due a write may be stored: as long as a command waits for one.
const WRITE_TIME: Duration = Duration::from_secs(2);

/// The life that a write gives to a session, or to a note about one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// The session's connection stands, and writes it anew when half of `sessions_ttl` is over: whenever its node dies
    /// before that is stored, `sessions_ttl` is left.
    Standing,
    /// `sessions_ttl` from now on: the connection is over, or it is no session.
    Last,
}

impl Life {
    pub fn of(self, sessions_ttl: Duration) -> Duration {
        match self {
            Self::Standing => sessions_ttl.saturating_add(sessions_ttl / 2).saturating_add(WRITE_TIME),
            Self::Last => sessions_ttl,
        }
    }
}

/// The longest life of a session: nothing that was written before can be resumed after it.
pub fn longest(sessions_ttl: Duration) -> Duration {
    Life::Standing.of(sessions_ttl)
}

/// Life of what must outlive a session that is written until `sessions_ttl` later: its parts, its succession, the mark of
/// a remote disconnect that it may not have heard of.
pub fn beside(sessions_ttl: Duration) -> Duration {
    longest(sessions_ttl).saturating_add(sessions_ttl)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_whose_node_dies_while_it_is_written_anew_has_all_its_time_left() {
        for ttl in [1, 8, 20, 300].map(Duration::from_secs) {
            let dies = ttl / 2 + WRITE_TIME;
            assert!(Life::Standing.of(ttl) - dies >= ttl, "{ttl:?}");
            assert_eq!(Life::Last.of(ttl), ttl);
        }
    }

    #[test]
    fn what_belongs_to_a_session_outlives_it_also_where_it_was_not_written_anew_in_time() {
        for ttl in [1, 8, 20, 300].map(Duration::from_secs) {
            // The next try comes when as much again is over.
            assert!(beside(ttl) >= ttl + longest(ttl), "{ttl:?}");
        }
    }

    #[test]
    fn no_life_overflows() {
        assert_eq!(beside(Duration::MAX), Duration::MAX);
    }
}
