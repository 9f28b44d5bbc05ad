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
        let has = Features { exclusion: true, history: true, ..Features::default() };
        assert_eq!(has.lacking(&["exclusion".to_owned(), "whispers".to_owned(), "history".to_owned()]), ["whispers"]);
    }
}
