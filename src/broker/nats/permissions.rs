//! What NATS refuses this node: permission errors and limits.
//!
//! nats-server answers a refused subscription or publication with an error line that belongs to no request; the client
//! library hands it out as an event and goes on. Without this a refused subscription is a silent one, and a refused
//! publication one that nobody answers.

use super::Core;
use super::config::{Names, key_subject};
use super::generation::Link;
use crate::metrics;
use async_nats::ServerError;
use std::collections::BTreeSet;
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

/// Refused subjects that are remembered for one connection; one is enough to say what is wrong.
const MAX_KNOWN: usize = 64;
/// Error lines that were logged and are not logged again.
const MAX_LOGGED: usize = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Verb {
    Publish,
    Subscribe,
}

/// Something that NATS refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Denial {
    Permission {
        verb: Verb,
        subject: String,
    },
    /// The server or the account limits how many subscriptions there may be.
    TooManySubscriptions,
}

/// What a permission is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Grant {
    /// The subjects to allow.
    pub subjects: String,
    /// What does not work without it.
    pub lost: &'static str,
    /// The node must not get traffic without it.
    pub vital: bool,
}

impl Denial {
    /// Reads an error of the server; `None`: it is about something else.
    pub fn of(error: &ServerError) -> Option<Self> {
        let ServerError::Other(text) = error else { return None };
        if text.to_lowercase().contains("maximum subscriptions exceeded") {
            return Some(Self::TooManySubscriptions);
        }
        let rest = text.split_once("Permissions Violation for ")?.1;
        let (what, rest) = rest.split_once('"')?;
        let (subject, _) = rest.split_once('"')?;
        let verb = if what.starts_with("Subscription") { Verb::Subscribe } else { Verb::Publish };
        Some(Self::Permission { verb, subject: subject.to_owned() })
    }

    pub fn is_subscription(&self) -> bool {
        matches!(self, Self::TooManySubscriptions | Self::Permission { verb: Verb::Subscribe, .. })
    }

    fn publishes_to(&self, key: u64) -> bool {
        matches!(self, Self::Permission { verb: Verb::Publish, subject } if subject_key(subject) == key)
    }
}

/// A subject as one number.
pub(super) fn subject_key(subject: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    subject.hash(&mut hasher);
    hasher.finish()
}

/// What is lost with a permission that is not listed.
const UNKNOWN: &str = "it is not known what for";

impl Names {
    /// The permission that is missing, as `nats/STREAMS.md` lists them.
    pub fn grant(&self, verb: Verb, subject: &str) -> Grant {
        let (log, live) = (self.area("log"), self.area("live"));
        let (ctl, ctl_live, peer) = (self.area("ctl"), self.area("ctllive"), self.witness_subject());
        let session_over = self.session_over_subject();
        let (meta, sessions) = (key_subject(&self.meta_bucket(), ""), key_subject(&self.sessions_bucket(), ""));
        let within = |prefix: &str| format!("{prefix}>");
        let (subjects, lost, vital) = match verb {
            Verb::Subscribe if subject.starts_with(&live) => (within(&live), "messages come by polling only", true),
            Verb::Subscribe if self.peer_live_subjects("").any(|peer| within_live(&peer, subject)) => {
                (subject.to_owned(), "messages of another cluster do not come", true)
            }
            Verb::Subscribe if subject.starts_with(&ctl_live) => {
                (within(&ctl_live), "remote disconnects come by polling only", true)
            }
            Verb::Subscribe if subject.starts_with("_INBOX.") => ("_INBOX.>".into(), "no answer is heard", true),
            Verb::Subscribe if subject == peer => (peer, "starting nodes cannot ask this one what it has seen", false),
            _ if subject == session_over => (
                session_over,
                "connections whose session was ended, or goes on elsewhere, are closed some time later",
                false,
            ),
            Verb::Subscribe if subject.starts_with(&meta) => {
                (subject.to_owned(), "changes made by other nodes are noticed some seconds later", false)
            }
            Verb::Subscribe if subject.starts_with("$JS.EVENT.ADVISORY.") => {
                ("$JS.EVENT.ADVISORY.STREAM.LEADER_ELECTED.>".into(), "elections are noticed some seconds later", false)
            }
            Verb::Publish if subject.starts_with(&log) => (within(&log), "nothing can be published", true),
            Verb::Publish if subject.starts_with(&live) => {
                (within(&live), "messages that are not stored reach nobody", true)
            }
            Verb::Publish if subject.starts_with(&ctl) => (within(&ctl), "remote disconnects cannot be stored", true),
            Verb::Publish if subject.starts_with(&ctl_live) => {
                (within(&ctl_live), "the feed of remote disconnects cannot be tested", true)
            }
            Verb::Publish if subject.starts_with(&sessions) => (within(&sessions), "no session can be saved", true),
            Verb::Publish if subject.starts_with(&meta) => (within(&meta), "this node cannot say that it runs", true),
            Verb::Publish if subject == peer => (peer, "other nodes cannot be asked what they have seen", false),
            Verb::Publish if subject.starts_with("_INBOX.") => {
                ("_INBOX.>".into(), "starting nodes get no answer from this one", false)
            }
            Verb::Publish if subject.starts_with("$JS.API.DIRECT.GET.") => {
                ("$JS.API.DIRECT.GET.>".into(), "history cannot be read", true)
            }
            Verb::Publish if subject.starts_with("$JS.API.STREAM.") => {
                ("$JS.API.STREAM.>".into(), "logs and sessions can be neither set up nor read", true)
            }
            Verb::Publish if subject.starts_with("$JS.API.") => (subject.to_owned(), "JetStream cannot be asked", true),
            _ => (subject.to_owned(), UNKNOWN, false),
        };
        Grant { subjects, lost, vital }
    }
}

/// `pattern` is `<peer>.live.*.`.
fn within_live(pattern: &str, subject: &str) -> bool {
    subject.starts_with(pattern.trim_end_matches("*."))
}

/// A refusal as an operator reads it.
struct Told<'a>(&'a Denial, &'a Names);

impl fmt::Display for Told<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Denial::Permission { verb, subject } => {
                let Grant { subjects, lost, .. } = self.1.grant(*verb, subject);
                let (doing, grant) = match verb {
                    Verb::Publish => ("publishing", "publish"),
                    Verb::Subscribe => ("subscribing", "subscribe"),
                };
                write!(f, "NATS permissions deny {doing} to {subject}: {lost}; allow this user to {grant}: {subjects}")
            }
            Denial::TooManySubscriptions => f.write_str(
                "NATS limits the number of subscriptions, and it is reached: messages of some streams come by polling \
                 only; raise max_subscriptions of nats-server, or the account's limit",
            ),
        }
    }
}

/// What was refused on one connection.
pub(super) struct Denials {
    names: Names,
    known: Mutex<Vec<Denial>>,
    /// Counts refusals, repeated ones too.
    count: watch::Sender<u64>,
}

impl Denials {
    pub fn new(names: Names) -> Self {
        Self { names, known: Mutex::default(), count: watch::Sender::new(0) }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Denial>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn note(&self, denial: Denial) {
        {
            let mut known = self.lock();
            if !known.contains(&denial) && known.len() < MAX_KNOWN {
                known.push(denial);
            }
        }
        self.count.send_modify(|count| *count += 1);
    }

    pub fn forget(&self, denial: &Denial) {
        self.lock().retain(|known| known != denial);
    }

    pub fn forget_publications(&self) {
        self.lock().retain(Denial::is_subscription);
    }

    pub fn all(&self) -> Vec<Denial> {
        self.lock().clone()
    }

    /// Changes with each refusal.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.count.subscribe()
    }

    pub fn text(&self, denial: &Denial) -> String {
        Told(denial, &self.names).to_string()
    }

    pub fn is_vital(&self, denial: &Denial) -> bool {
        match denial {
            Denial::Permission { verb, subject } => self.names.grant(*verb, subject).vital,
            Denial::TooManySubscriptions => true,
        }
    }

    /// Those without which the node must not get traffic.
    pub fn vital(&self) -> Vec<Denial> {
        self.all().into_iter().filter(|denial| self.is_vital(denial)).collect()
    }

    /// The first of them, as text.
    pub fn reason(&self) -> Option<String> {
        self.vital().first().map(|denial| self.text(denial))
    }

    /// Keys of all subjects that cannot be published to.
    pub fn unpublishable(&self) -> Vec<u64> {
        let key = |denial: &Denial| match denial {
            Denial::Permission { verb: Verb::Publish, subject } => Some(subject_key(subject)),
            _ => None,
        };
        self.lock().iter().filter_map(key).collect()
    }

    /// Why this subject cannot be published to; `None`: it was not refused.
    pub fn why_not(&self, key: u64) -> Option<String> {
        let denial = self.lock().iter().find(|denial| denial.publishes_to(key)).cloned();
        denial.map(|denial| self.text(&denial))
    }
}

impl Core {
    /// Takes note of an error line of the server.
    pub(super) fn server_error(&self, link: &Link, error: &ServerError) {
        let Some(denial) = Denial::of(error) else {
            if self.is_news(error.to_string()) {
                tracing::warn!(%error, "NATS reports an error");
            }
            return;
        };
        metrics::STORE_DENIALS.inc();
        let text = link.denials.text(&denial);
        // Not once per stream: what has to be allowed is the same.
        let news = match &denial {
            Denial::Permission { verb, subject } => format!("{verb:?} {}", self.names.grant(*verb, subject).subjects),
            Denial::TooManySubscriptions => text.clone(),
        };
        if self.is_news(news) {
            match link.denials.is_vital(&denial) {
                true => tracing::error!("{text}"),
                false => tracing::warn!("{text}"),
            }
        }
        link.denials.note(denial);
        self.nudge.notify_one();
    }

    fn is_news(&self, line: String) -> bool {
        let mut logged = self.errors_logged.lock().unwrap_or_else(PoisonError::into_inner);
        if logged.len() >= MAX_LOGGED {
            logged.clear();
        }
        logged.insert(line)
    }

    /// Everything works: the next refusal is news again.
    pub(super) fn nothing_refused(&self) {
        let mut logged = self.errors_logged.lock().unwrap_or_else(PoisonError::into_inner);
        *logged = BTreeSet::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::Limits;
    use crate::broker::nats::NatsBrokerConfig;
    use crate::nats::connect::ClientConfig;
    use std::time::Duration;

    fn names() -> Names {
        let limits = Limits::plain(1, Duration::from_secs(1), Duration::from_secs(1));
        Names::new(&NatsBrokerConfig::new(ClientConfig::default(), limits))
    }

    #[test]
    fn the_servers_words() {
        let denial = |text: &str| Denial::of(&ServerError::Other(text.into()));
        let permission = |verb, subject: &str| Some(Denial::Permission { verb, subject: subject.into() });
        let text = r#"Permissions Violation for Subscription to "carrick.live.default.x""#;
        assert_eq!(denial(text), permission(Verb::Subscribe, "carrick.live.default.x"));
        let text = r#"Permissions Violation for Subscription to "a.b" using queue "q""#;
        assert_eq!(denial(text), permission(Verb::Subscribe, "a.b"));
        let text = r#"Permissions Violation for Publish to "carrick.log.default.x""#;
        assert_eq!(denial(text), permission(Verb::Publish, "carrick.log.default.x"));
        assert_eq!(denial("maximum subscriptions exceeded"), Some(Denial::TooManySubscriptions));
        assert_eq!(denial("Stale Connection"), None);
        assert_eq!(Denial::of(&ServerError::AuthorizationViolation), None);
    }

    #[test]
    fn every_subject_of_ours_names_its_permission() {
        let names = names();
        let grant = |verb, subject: &str| {
            let grant = names.grant(verb, subject);
            (grant.subjects, grant.vital)
        };
        for (verb, subject, subjects, vital) in [
            (Verb::Subscribe, "carrick.live.default.x", "carrick.live.>", true),
            (Verb::Subscribe, "carrick.ctllive.*", "carrick.ctllive.>", true),
            (Verb::Subscribe, "_INBOX.abc.*", "_INBOX.>", true),
            (Verb::Subscribe, "carrick.peer.witness", "carrick.peer.witness", false),
            (Verb::Subscribe, "carrick.peer.session_over", "carrick.peer.session_over", false),
            (Verb::Publish, "carrick.peer.session_over", "carrick.peer.session_over", false),
            (Verb::Publish, "carrick.peer.witness", "carrick.peer.witness", false),
            (Verb::Publish, "carrick.ctllive.x", "carrick.ctllive.>", true),
            (Verb::Subscribe, "$KV.carrick_meta.log.*", "$KV.carrick_meta.log.*", false),
            (Verb::Publish, "carrick.log.default.x", "carrick.log.>", true),
            (Verb::Publish, "carrick.live.default.x", "carrick.live.>", true),
            (Verb::Publish, "carrick.ctl.x", "carrick.ctl.>", true),
            (Verb::Publish, "$KV.carrick_sessions.x", "$KV.carrick_sessions.>", true),
            (Verb::Publish, "$KV.carrick_meta.x", "$KV.carrick_meta.>", true),
            (Verb::Publish, "$JS.API.DIRECT.GET.x", "$JS.API.DIRECT.GET.>", true),
            (Verb::Publish, "$JS.API.STREAM.INFO.x", "$JS.API.STREAM.>", true),
        ] {
            assert_eq!(grant(verb, subject), (subjects.to_owned(), vital), "{verb:?} {subject}");
            assert_ne!(names.grant(verb, subject).lost, UNKNOWN, "{verb:?} {subject}");
        }
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let denials = Denials::new(names());
        for number in 0..1_000 {
            denials.note(Denial::Permission { verb: Verb::Publish, subject: format!("carrick.log.default.{number}") });
        }
        assert_eq!(denials.all().len(), MAX_KNOWN);
        assert!(denials.why_not(subject_key("carrick.log.default.0")).is_some_and(|why| why.contains("carrick.log.>")));
        assert_eq!(denials.why_not(subject_key("carrick.log.other.0")), None);
    }
}
