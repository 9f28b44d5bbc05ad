use super::*;
use crate::hub::{Held, Identifier, SavedProof};
use crate::protocol::{Epoch, Position, StreamName, Subprotocol};
use crate::session::{Followed, SavePlan, SavedSession, Session, State, Subscription};
use bytes::Bytes;
use proptest::prelude::*;
use std::ops::Range;

fn no_proof(_: &StreamName, _: &Identifier) -> Option<SavedProof> {
    None
}

/// A store of heads and parts that can refuse.
#[derive(Default)]
struct Store {
    head: Option<Bytes>,
    parts: HashMap<u64, (u64, Bytes)>,
    revision: u64,
    written: usize,
    writes: usize,
    /// The session as it was when the head was composed.
    kept: Vec<(String, u64, State)>,
}

/// How a commit ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Stored,
    /// Larger than it may be: nothing is written.
    TooLarge,
    PartRefused,
    /// Its parts are stored, and its head is not handed over.
    NeverOffered,
    HeadRefused,
    /// Stored without an answer.
    HeadUnknown,
}

impl Store {
    fn commit(&mut self, session: &mut Session, all: bool, end: End, meanwhile: impl FnMut(&mut Session)) {
        self.commit_while(session, all, end, meanwhile, |_| {});
    }

    /// `meanwhile`: what happens while parts are written; `late`: while the head is.
    fn commit_while(
        &mut self,
        session: &mut Session,
        all: bool,
        end: End,
        meanwhile: impl FnMut(&mut Session),
        late: impl FnMut(&mut Session),
    ) {
        let plan = session.plan(&no_proof, all, 1, true);
        self.carry_out(session, plan, end, meanwhile, late);
    }

    /// The same of the next part that is to be written anew.
    fn commit_piece(&mut self, session: &mut Session, end: End, meanwhile: impl FnMut(&mut Session)) {
        let plan = session.plan_piece(&no_proof, 1, true);
        self.carry_out(session, plan, end, meanwhile, |_| {});
    }

    fn carry_out(
        &mut self,
        session: &mut Session,
        plan: SavePlan,
        end: End,
        mut meanwhile: impl FnMut(&mut Session),
        mut late: impl FnMut(&mut Session),
    ) {
        if end == End::TooLarge {
            return;
        }
        session.begin(&plan);
        let body = match plan {
            SavePlan::Head(head) => head.body,
            SavePlan::Split(split) => {
                let mut revisions = Vec::new();
                for part in &split.parts {
                    self.revision += 1;
                    self.note(part.body.len());
                    assert!(self.parts.insert(part.number, (self.revision, part.body.clone())).is_none());
                    revisions.push(self.revision);
                }
                meanwhile(session);
                if end == End::PartRefused {
                    let abandoned = session.abandon();
                    return self.delete(abandoned);
                }
                let head = session.adopt(split, &revisions, &no_proof, 1, true);
                if end == End::NeverOffered {
                    let unoffered = session.take_unoffered();
                    return self.delete(unoffered);
                }
                head.body
            }
        };
        session.note_offered();
        let (composed, version) = (content(session), session.version());
        late(session);
        if end == End::HeadRefused {
            let unnamed = session.take_unnamed();
            return self.delete(unnamed);
        }
        session.note_named();
        self.note(body.len());
        (self.head, self.kept) = (Some(body), composed);
        if end == End::Stored {
            let obsolete = session.take_obsolete(version);
            self.delete(obsolete);
        }
    }

    fn delete(&mut self, numbers: Vec<u64>) {
        for number in numbers {
            assert!(self.parts.remove(&number).is_some(), "part {number} was deleted twice, or was never there");
        }
    }

    fn note(&mut self, bytes: usize) {
        self.written += bytes;
        self.writes += 1;
    }

    /// Every part that the head names must be there, with that revision.
    fn read(&self) -> Session {
        let mut saved = SavedSession::decode(self.head.as_ref().unwrap()).unwrap();
        for name in saved.parts().to_vec() {
            let (revision, body) = &self.parts[&name.number];
            assert_eq!(*revision, name.revision);
            saved.join(&name, body).unwrap();
        }
        saved.restore("new".into(), Subprotocol::ExtJson, 0, 0, Held::unlimited())
    }
}

fn text(n: u16) -> String {
    // As long as the signed name of a stream.
    format!("{{\"channel\":\"Turbo::StreamsChannel\",\"signed_stream_name\":\"{n:0>100}\"}}")
}

fn subscribe(session: &mut Session, n: u16, offset: u64) {
    let began = Position { epoch: Epoch::from("epoch"), offset };
    let streams = vec![Followed { stream: StreamName::from(format!("s/{n}")), began }];
    session.subscribed(&Identifier::new(text(n).into()), streams, State::new());
}

fn session() -> Session {
    Session::new("s".into(), "i".into(), Subprotocol::ExtJson, 0)
}

fn content(session: &Session) -> Vec<(String, u64, State)> {
    let one = |one: &Subscription| {
        let offset = one.streams.first().map_or(0, |followed| followed.began.offset);
        (one.identifier.text.to_string(), offset, one.istate.clone())
    };
    let mut all: Vec<_> = session.subscriptions().map(one).collect();
    all.sort();
    all
}

#[test]
fn row_13_a_command_costs_the_same_in_a_session_of_any_size() {
    let mut costs = Vec::new();
    for size in [100, 1_000, 4_000] {
        let (mut session, mut store) = (session(), Store::default());
        for n in 0..size {
            subscribe(&mut session, n, 1);
            store.commit(&mut session, false, End::Stored, |_| {});
        }
        store.written = 0;
        for round in 0..500 {
            subscribe(&mut session, 10_000, round);
            store.commit(&mut session, false, End::Stored, |_| {});
            session.unsubscribe(&text(10_000));
            store.commit(&mut session, false, End::Stored, |_| {});
        }
        costs.push(store.written / 1_000);
        assert_eq!(content(&store.read()), content(&session));
    }
    assert!(costs.iter().all(|cost| *cost < 2 * 4_096 + 1_024), "{costs:?}");
    assert!(costs[2] < 3 * costs[0].max(2_048), "{costs:?}");
}

#[test]
fn row_13_subscribing_one_by_one_writes_a_small_multiple_of_what_is_kept() {
    let (mut session, mut store) = (session(), Store::default());
    for n in 0..2_000 {
        subscribe(&mut session, n, 1);
        store.commit(&mut session, false, End::Stored, |_| {});
    }
    let kept: usize = store.parts.values().map(|(_, body)| body.len()).sum();
    // Each command writes the head once: what it holds itself, 4 KiB at most, and the names of the parts.
    assert!(store.written < 2_000 * (4_096 + 1_536), "{} for {kept}", store.written);
    assert_eq!(content(&store.read()).len(), 2_000);
}

#[test]
fn what_was_left_by_most_of_its_subscriptions_shrinks() {
    let (mut session, mut store) = (session(), Store::default());
    (0..2_000).for_each(|n| subscribe(&mut session, n, 1));
    store.commit(&mut session, false, End::Stored, |_| {});
    for n in 0..1_990 {
        session.unsubscribe(&text(n));
        store.commit(&mut session, false, End::Stored, |_| {});
    }
    let kept: usize = store.parts.values().map(|(_, body)| body.len()).sum();
    assert!(kept <= 3 * PART, "{kept}");
    assert_eq!(content(&store.read()), content(&session));
    store.commit(&mut session, true, End::Stored, |_| {});
    assert!(store.parts.is_empty() && !session.has_parts());
    assert_eq!(content(&store.read()), content(&session));
}

#[test]
fn a_session_that_is_too_large_leaves_no_trace_however_often_it_is_looked_at() {
    let (mut session, mut store) = (session(), Store::default());
    (0..1_000).for_each(|n| subscribe(&mut session, n, 1));
    assert!(session.least_size() > 100_000);
    for n in 0..50 {
        session.unsubscribe(&text(0));
        subscribe(&mut session, 0, n);
        let all = n % 2 == 0;
        assert!(session.plan(&no_proof, all, 1, true).size() > session.least_size());
        store.commit(&mut session, all, End::TooLarge, |_| {});
    }
    assert!(session.scatter().is_empty(), "nothing was ever written");
    store.commit(&mut session, false, End::Stored, |_| {});
    assert!(store.parts.len() < 20 && store.parts.keys().max() < Some(&20), "{:?}", store.parts.keys());
    assert_eq!(content(&store.read()), content(&session));
}

/// There may be no other head for long.
#[test]
fn row_05_a_part_that_is_left_while_a_head_that_names_it_is_written_stays_until_the_next_one() {
    let (mut session, mut store) = (session(), Store::default());
    (0..100).for_each(|n| subscribe(&mut session, n, 1));
    store.commit(&mut session, false, End::Stored, |_| {});
    subscribe(&mut session, 200, 1);
    store.commit_while(
        &mut session,
        false,
        End::Stored,
        |_| {},
        |session| {
            (0..100).for_each(|n| drop(session.unsubscribe(&text(n))));
        },
    );
    assert_eq!(content(&store.read()).len(), 101, "as it was written");
    store.commit(&mut session, false, End::Stored, |_| {});
    assert_eq!(content(&store.read()), content(&session));
    assert!(store.parts.is_empty(), "{:?}", store.parts.keys());
}

#[test]
fn row_13_a_plan_counts_the_head_that_names_its_parts() {
    for size in [100, 1_000, 4_000] {
        let mut session = session();
        session.merge_cstate(State::from([("k".into(), "v".repeat(10_000))]));
        (0..size).for_each(|n| subscribe(&mut session, n, 1));
        let plan = session.plan(&no_proof, true, 1, true);
        let planned = plan.size();
        session.begin(&plan);
        let SavePlan::Split(split) = plan else { panic!("it needs parts") };
        let revisions: Vec<u64> = (1..).take(split.parts.len()).collect();
        let head = session.adopt(split, &revisions, &no_proof, 1, true);
        assert!((head.size()..head.size() + 1_500).contains(&planned), "{planned} for {}", head.size());
    }
}

#[derive(Clone, Debug)]
enum Op {
    Subscribe(u16),
    Unsubscribe(u16),
    Change(u16),
    Many(u16),
    Commit {
        all: bool,
        end: End,
        meanwhile: Vec<(bool, u16)>,
        late: Vec<Range<u16>>,
    },
    /// From now on everything is to be written anew, piece by piece.
    Stale,
    Piece {
        end: End,
        meanwhile: Vec<(bool, u16)>,
    },
    Delete,
}

fn op() -> impl Strategy<Value = Op> {
    let end = || {
        prop_oneof![
            4 => Just(End::Stored), 1 => Just(End::TooLarge), 1 => Just(End::PartRefused), 1 => Just(End::HeadRefused),
            1 => Just(End::NeverOffered), 1 => Just(End::HeadUnknown)
        ]
    };
    let meanwhile = || prop::collection::vec((any::<bool>(), 0u16..300), 0..4);
    // Enough to leave whole parts.
    let late = prop::collection::vec((0u16..300, 0u16..200).prop_map(|(n, many)| n..n + many), 0..3);
    prop_oneof![
        3 => (0u16..300).prop_map(Op::Subscribe),
        3 => (0u16..300).prop_map(Op::Unsubscribe),
        2 => (0u16..300).prop_map(Op::Change),
        1 => (0u16..250).prop_map(Op::Many),
        4 => (prop::bool::weighted(0.2), end(), meanwhile(), late)
            .prop_map(|(all, end, meanwhile, late)| Op::Commit { all, end, meanwhile, late }),
        1 => Just(Op::Stale),
        4 => (end(), meanwhile()).prop_map(|(end, meanwhile)| Op::Piece { end, meanwhile }),
        1 => Just(Op::Delete),
    ]
}

fn change(session: &mut Session, changes: &[(bool, u16)], offset: u64) {
    for (add, n) in changes {
        match add {
            true => subscribe(session, *n, offset),
            false => drop(session.unsubscribe(&text(*n))),
        }
    }
}

/// What is there beside it never takes more room than one part.
#[test]
fn row_12_a_session_is_written_anew_part_by_part() {
    let (mut session, mut store) = (session(), Store::default());
    (0..1_000).for_each(|n| subscribe(&mut session, n, 1));
    store.commit(&mut session, false, End::Stored, |_| {});
    let before: Vec<u64> = store.parts.keys().copied().collect();
    session.note_stale();
    let mut pieces = 0;
    while session.has_stale() {
        let planned = session.plan_piece(&no_proof, 1, true);
        let SavePlan::Split(split) = &planned else { panic!("each needs a part") };
        assert!(split.parts.len() == 1 && split.parts[0].body.len() <= PART + 1_024);
        store.commit_piece(&mut session, End::Stored, |session| subscribe(session, 2_000 + pieces, 1));
        assert_eq!(store.parts.len(), before.len());
        assert_eq!(content(&store.read()), content(&session));
        pieces += 1;
    }
    assert_eq!(usize::from(pieces), before.len());
    assert!(before.iter().all(|number| !store.parts.contains_key(number)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever was refused before: what a head names is there, and it is the session as of when it was composed.
    #[test]
    fn a_head_and_its_parts_are_the_session(ops in prop::collection::vec(op(), 1..80)) {
        let (mut session, mut store) = (session(), Store::default());
        let mut offset = 0;
        for op in ops {
            offset += 1;
            match op {
                Op::Subscribe(n) => subscribe(&mut session, n, offset),
                Op::Unsubscribe(n) => drop(session.unsubscribe(&text(n))),
                Op::Change(n) => {
                    session.merge_istate(&text(n), State::from([("k".into(), offset.to_string())]));
                }
                Op::Many(n) => (n..n + 50).for_each(|n| subscribe(&mut session, n, offset)),
                Op::Delete => {
                    let parts = session.scatter();
                    store.head = None;
                    store.delete(parts);
                    prop_assert!(store.parts.is_empty(), "all that was there was named");
                }
                Op::Stale => session.note_stale(),
                Op::Piece { end, meanwhile } => {
                    store.commit_piece(&mut session, end, |session| change(session, &meanwhile, offset));
                    if store.head.is_some() {
                        prop_assert_eq!(&content(&store.read()), &store.kept);
                    }
                }
                Op::Commit { all, end, meanwhile, late } => {
                    let change = |session: &mut Session| change(session, &meanwhile, offset);
                    store.commit_while(&mut session, all, end, change, |session| {
                        late.iter().cloned().flatten().for_each(|n| drop(session.unsubscribe(&text(n))));
                    });
                    if store.head.is_some() {
                        prop_assert_eq!(&content(&store.read()), &store.kept);
                    }
                }
            }
        }
        store.commit(&mut session, true, End::Stored, |_| {});
        prop_assert_eq!(content(&store.read()), content(&session));
        let named = SavedSession::decode(store.head.as_ref().unwrap()).unwrap().parts().len();
        prop_assert_eq!(store.parts.len(), named, "nothing is left behind");
    }
}
