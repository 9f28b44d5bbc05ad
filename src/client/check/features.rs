//! What a server has of the things that can be checked, and what of it was asked for.

use serde::{Deserialize, Serialize};

/// What the server has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Features {
    /// Publishers are told positions.
    pub publish_positions: bool,
    /// Messages carry positions.
    pub positions: bool,
    /// A publication that is repeated with its idempotency key is not a second message.
    pub idempotency_keys: bool,
    /// A client that comes back with its session id keeps its subscriptions.
    pub restore: bool,
    /// A client that comes back gets what it missed.
    pub history: bool,
    /// Several messages in one request.
    pub batches: bool,
    /// Messages that are not stored.
    pub transient: bool,
    /// A client can be excluded from a message.
    pub exclusion: bool,
    pub whispers: bool,
    /// A client can be thrown out by its identifiers.
    pub removals: bool,
}

impl Features {
    /// As the report names them.
    pub const NAMES: [&'static str; 10] = [
        "publish_positions",
        "positions",
        "idempotency_keys",
        "restore",
        "history",
        "batches",
        "transient",
        "exclusion",
        "whispers",
        "removals",
    ];

    /// In the order of [`Features::NAMES`], with words for people.
    fn all(self) -> [(bool, &'static str); Self::NAMES.len()] {
        [
            (self.publish_positions, "positions in publish answers"),
            (self.positions, "positions in messages"),
            (self.idempotency_keys, "idempotency keys"),
            (self.restore, "session restore"),
            (self.history, "history"),
            (self.batches, "batches"),
            (self.transient, "transient messages"),
            (self.exclusion, "exclusion of a client"),
            (self.whispers, "whispers"),
            (self.removals, "remote disconnects by the identifiers that were assumed"),
        ]
    }

    /// What is missing, in words.
    pub fn missing(self) -> Vec<&'static str> {
        self.all().into_iter().filter_map(|(has, words)| (!has).then_some(words)).collect()
    }

    /// The names of what is missing and among what was asked for.
    pub fn lacking(self, required: &[String]) -> Vec<&'static str> {
        let is_required = |name: &str| required.iter().any(|required| required == name);
        let named = Self::NAMES.into_iter().zip(self.all());
        named.filter_map(|(name, (has, _))| (!has && is_required(name)).then_some(name)).collect()
    }
}

/// How often a run did what can be left away, and the server took it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exercised {
    /// Requests that carried several messages.
    pub batches: u64,
    pub transient: u64,
    /// Messages from which somebody was excluded.
    pub exclusion: u64,
    /// Sent; no server answers them.
    pub whispers: u64,
    pub removals: u64,
    /// Deliveries to clients of the base protocol.
    pub base: u64,
}

impl Exercised {
    /// What can be left away, as options name it.
    pub const NAMES: [&'static str; 6] = ["batches", "transient", "exclusion", "whispers", "removals", "base"];

    /// In the order of [`Exercised::NAMES`].
    fn counts(self) -> [u64; Self::NAMES.len()] {
        [self.batches, self.transient, self.exclusion, self.whispers, self.removals, self.base]
    }

    /// The names of what was never done and among what was asked for.
    pub fn lacking(self, required: &[String]) -> Vec<&'static str> {
        let is_required = |name: &str| required.iter().any(|required| required == name);
        let named = Self::NAMES.into_iter().zip(self.counts());
        named.filter_map(|(name, count)| (count == 0 && is_required(name)).then_some(name)).collect()
    }

    pub fn add(&mut self, other: Self) {
        self.batches += other.batches;
        self.transient += other.transient;
        self.exclusion += other.exclusion;
        self.whispers += other.whispers;
        self.removals += other.removals;
        self.base += other.base;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_report_and_belong_to_their_feature() {
        let all: Vec<String> = Features::NAMES.map(str::to_owned).into();
        assert_eq!(Features::default().lacking(&all), Features::NAMES);
        for name in Features::NAMES {
            let mut report = serde_json::to_value(Features::default()).unwrap();
            report[name] = true.into();
            assert_eq!(report.as_object().unwrap().len(), Features::NAMES.len(), "{name}");
            let has: Features = serde_json::from_value(report).unwrap();
            assert_eq!(has.lacking(&all).len(), Features::NAMES.len() - 1, "{name}");
            assert!(has.lacking(&[name.to_owned()]).is_empty(), "{name}");
        }
        for name in Exercised::NAMES {
            let mut counts = serde_json::to_value(Exercised::default()).unwrap();
            counts[name] = 1.into();
            let done: Exercised = serde_json::from_value(counts).unwrap();
            let mut twice = done;
            twice.add(done);
            assert_eq!(twice.counts().iter().sum::<u64>(), 2, "{name}");
            let all = Exercised::NAMES.map(str::to_owned);
            assert_eq!(done.lacking(&all).len(), Exercised::NAMES.len() - 1, "{name}");
            assert!(done.lacking(&[name.to_owned()]).is_empty(), "{name}");
        }
        let has = Features { exclusion: true, history: true, ..Features::default() };
        assert_eq!(has.lacking(&["exclusion".to_owned(), "whispers".to_owned(), "history".to_owned()]), ["whispers"]);
    }
}
