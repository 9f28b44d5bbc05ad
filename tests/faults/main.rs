//! The fault suite: deployments of real processes, `carrick verify` running against them, and a fault in the middle.
//!
//! The tests are the short form. `scripts/faults` runs the whole table of faults and set-ups, the rounds that measure a
//! leader's death, and the sabotaged builds that the checker must find guilty.
//!
//! Reading order: [`deployment`] (set-ups), [`fault`] (what is done where, and what is expected), [`strike`] (doing it),
//! [`proof`] (that it acted), [`table`] (rows).

mod apart;
mod checker;
mod counters;
mod credentials;
mod deployment;
mod disk;
mod encrypted;
mod failover;
mod fault;
#[path = "../harness/mod.rs"]
#[macro_use]
#[allow(dead_code, unused_imports, unused_macros, reason = "shared with the main tests; not all of it is needed here")]
mod harness;
mod jetstream;
mod lacking;
mod nats_cluster;
mod network;
mod old_build;
mod paths;
#[path = "../kill/proc.rs"]
#[allow(dead_code, reason = "shared with the kill tests; not all of it is needed here")]
mod proc;
mod proof;
mod pulse;
mod random;
mod returning;
mod room;
mod sabotage;
mod slow;
mod strike;
mod table;
mod unable;

use apart::Place;
use deployment::{Deployment, Setup};
use fault::Fault;
use std::io::Write;
use std::sync::{Mutex, PoisonError};
use table::Size;

/// Rows share the machine badly: two at once, of which one has an embedded cluster and one does not.
static EMBEDDED: Mutex<()> = Mutex::new(());
static EXTERNAL: Mutex<()> = Mutex::new(());

fn survives(setup: Setup, fault: Fault) {
    let lane = if setup.is_embedded() { &EMBEDDED } else { &EXTERNAL };
    let _turn = lane.lock().unwrap_or_else(PoisonError::into_inner);
    let row = table::cell(setup, fault, &Size::short());
    println!("{}\n{row}", table::HEADER);
    assert!(row.passed(), "{row}\n{}", row.details());
}

/// The same with packets that vanish: in a network of its own.
fn survives_silence(test: &str, setup: Setup, fault: Fault) {
    let lane = if setup.is_embedded() { &EMBEDDED } else { &EXTERNAL };
    // This process waits for the one that does it.
    let turn = lane.lock().unwrap_or_else(PoisonError::into_inner);
    if matches!(apart::run(test, true), Place::Apart) {
        drop(turn);
        survives(setup, fault);
    }
}

/// Unless it cannot be done here, which CI does not accept.
fn survives_if_possible(setup: Setup, fault: Fault) {
    match fault.impossible() {
        None => survives(setup, fault),
        Some(why) => {
            assert!(std::env::var_os("CI").is_none(), "CI must be able to run this: {why}");
            eprintln!("NOT RUN: {why}");
        }
    }
}

#[test]
fn row_01_a_path_silent_beyond_the_window_delivers_nothing_twice() {
    let test = "row_01_a_path_silent_beyond_the_window_delivers_nothing_twice";
    survives_silence(test, Setup::ExternalSingle, Fault::SilentPathBeyond);
}

#[test]
fn a_silent_path_between_members_loses_nothing() {
    survives_silence("a_silent_path_between_members_loses_nothing", Setup::EmbeddedR3, Fault::SilentPath);
}

#[test]
fn a_slow_disk_loses_nothing() {
    survives_if_possible(Setup::EmbeddedSingle, Fault::SlowDisk);
}

#[test]
fn a_killed_node_of_an_embedded_cluster_loses_nothing() {
    survives(Setup::EmbeddedR3, Fault::KillNode);
}

#[test]
fn a_rolling_restart_of_an_embedded_cluster_loses_nothing_and_no_session() {
    survives(Setup::EmbeddedR3, Fault::RollingRestart);
}

#[test]
fn a_killed_leader_of_an_external_cluster_loses_nothing() {
    survives(Setup::ExternalR3, Fault::KillLeader);
}

#[test]
fn without_a_majority_publishers_are_refused_and_clients_stay() {
    survives(Setup::ExternalR3, Fault::LoseQuorum);
}

#[test]
fn a_cut_between_a_node_and_nats_loses_nothing() {
    survives(Setup::ExternalSingle, Fault::CutNode);
}

#[test]
fn row_02_a_node_frozen_longer_than_messages_live_tells_every_loss() {
    survives(Setup::ExternalSingle, Fault::FreezeNodeExpiry);
}

#[test]
fn a_deleted_log_is_told_to_everybody_who_misses_something() {
    survives(Setup::ExternalSingle, Fault::DeleteLog);
}

#[test]
fn an_operators_purge_is_refused() {
    survives(Setup::EmbeddedSingle, Fault::Purge);
}

#[test]
fn what_one_embedded_node_takes_all_others_deliver() {
    let _turn = EMBEDDED.lock().unwrap_or_else(PoisonError::into_inner);
    let deployment = Deployment::start(Setup::EmbeddedR3);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().worker_threads(1).build();
    runtime.expect("threads can be started").block_on(async {
        let [first, .., last] = deployment.nodes() else { panic!("a cluster has several nodes") };
        let mut client = last.subscriber("chat").await;
        let position = first.publish("chat", serde_json::json!("across")).await;
        let delivery = client.expect_message(&harness::public("chat"), serde_json::json!("across")).await;
        assert_eq!(delivery.at(), position);
    });
    assert_eq!(deployment.jetstream().replicas(), [3], "every log and bucket has three copies");
}

/// The whole table; minutes. `scripts/faults` sets the sizes.
#[test]
#[ignore = "the long form: scripts/faults"]
fn long_table() {
    if matches!(apart::run("long_table", false), Place::Done) {
        return;
    }
    let size = Size::from_environment();
    let only = std::env::var("CARRICK_FAULTS_ONLY").unwrap_or_default();
    let mut page = Page::open();
    page.line(table::HEADER);
    let mut failed = Vec::new();
    let mut delivered = 0;
    for setup in Setup::ALL {
        for fault in Fault::ALL.into_iter().filter(|fault| fault.applies_to(setup)) {
            if !format!("{setup}, {fault}").contains(&only) {
                continue;
            }
            if let Some(why) = fault.impossible() {
                page.line(&format!("| {setup} | {fault} | **not run**: {} |", why.replace('\n', " ")));
                if std::env::var_os("CI").is_some() {
                    failed.push(format!("{setup}, {fault}: CI must be able to run this: {why}"));
                }
                continue;
            }
            // A cell that could not be run does not end the table.
            let Ok(row) = std::panic::catch_unwind(|| table::cell(setup, fault, &size)) else {
                page.line(&format!("| {setup} | {fault} | **FAIL**: could not be run, see the errors |"));
                failed.push(format!("{setup}, {fault}: could not be run"));
                continue;
            };
            page.line(&row.to_string());
            delivered += row.delivered();
            if !row.passed() {
                failed.push(format!("{row}\n{}", row.details()));
            }
        }
    }
    page.line(&format!("\n{delivered} deliveries checked, {} rows failed.", failed.len()));
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

/// Rounds of `kill -9` of the log's leader on both clusters, with p50 and maximum; minutes.
#[test]
#[ignore = "figures: scripts/faults --failover"]
fn failover_rounds() {
    let (rounds, seed) = (table::number("ROUNDS", 10_u64), table::number("SEED", 1));
    let mut page = Page::open();
    page.line(failover::HEADER);
    let mut failed = Vec::new();
    let mut summaries = Vec::new();
    for setup in [Setup::ExternalR3, Setup::EmbeddedR3] {
        let mut deployment = Deployment::start(setup);
        let (mut publishing, mut complete) = (Vec::new(), Vec::new());
        for index in 0..rounds {
            match failover::round(&mut deployment, setup, index, seed) {
                Ok(round) => {
                    page.line(&round.line);
                    publishing.push(round.publishing);
                    complete.push(round.complete);
                    failed.extend(round.failures);
                }
                Err(error) => {
                    page.line(&format!("| {setup} | {} | **FAIL**: could not be run: {error} |", index + 1));
                    failed.push(error);
                }
            }
        }
        let (publishing, complete) = (failover::summary(publishing), failover::summary(complete));
        summaries
            .push(format!("{setup}: publishing again after {publishing}; everyone has everything after {complete}"));
    }
    page.line(&format!("\n{}", summaries.join("\n\n")));
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

/// Rounds of `kill -9` of the server that leads one thing, on both clusters: how long clients that come back wait; minutes.
#[test]
#[ignore = "figures: scripts/faults --returning"]
fn returning_rounds() {
    let rounds = table::number("ROUNDS", 5_usize);
    let mut page = Page::open();
    page.line("| Set-up | The server that died led | Rounds | Publishing again after | Clients restored after | Not restored |");
    page.line("|---|---|---|---|---|---|");
    let mut failed = Vec::new();
    for setup in [Setup::ExternalR3, Setup::EmbeddedR3] {
        let mut deployment = Deployment::start(setup);
        for led in returning::Led::ALL {
            let mut waits = returning::Waits::default();
            for index in 0..rounds {
                if let Err(error) = returning::round(&mut deployment, led, index, &mut waits) {
                    failed.push(format!("{setup}, {led}, round {index}: {error}"));
                }
            }
            let (publishing, returning) = (failover::summary(waits.publishing), failover::summary(waits.returning));
            page.line(&format!("| {setup} | {led} | {rounds} | {publishing} | {returning} | {} |", waits.fresh));
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

/// A seed of a random schedule per set-up, in short.
fn survives_a_schedule(setup: Setup, seed: u64) {
    let lane = if setup.is_embedded() { &EMBEDDED } else { &EXTERNAL };
    let _turn = lane.lock().unwrap_or_else(PoisonError::into_inner);
    let plan = random::Plan::of(setup, seed, random::Length::Short);
    println!("{plan}");
    let played = random::play(&plan, &random::Shelf::open());
    assert!(played.failures.is_empty(), "{plan}\n{}\n{}", played.row, played.failures.join("\n"));
}

#[test]
fn a_random_schedule_on_a_single_embedded_node() {
    survives_a_schedule(Setup::EmbeddedSingle, 1);
}

#[test]
fn a_random_schedule_on_a_single_external_server() {
    survives_a_schedule(Setup::ExternalSingle, 1);
}

#[test]
fn a_random_schedule_on_an_external_cluster() {
    survives_a_schedule(Setup::ExternalR3, 1);
}

#[test]
fn a_random_schedule_on_an_embedded_cluster() {
    survives_a_schedule(Setup::EmbeddedR3, 1);
}

/// Seed after seed; hours. `scripts/faults --random` sets how long, where it begins, and on which set-ups.
#[test]
#[ignore = "hours: scripts/faults --random"]
fn random_schedules() {
    // Silent paths come up in them.
    if matches!(apart::run("random_schedules", false), Place::Done) {
        return;
    }
    let only = std::env::var("CARRICK_FAULTS_SETUP").unwrap_or_default();
    let setups: Vec<Setup> = Setup::ALL.into_iter().filter(|setup| setup.to_string().contains(&only)).collect();
    assert!(
        !setups.is_empty(),
        "no set-up is called «{only}»: {}",
        Setup::ALL.map(|setup| setup.to_string()).join("; ")
    );
    let hours: f64 = table::number("HOURS", 0.0);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |time| time.as_secs());
    let first = table::number("SEED", now);
    let mut page = Page::open();
    page.line(random::HEADER);
    let time = std::time::Duration::from_secs_f64(hours * 3_600.0);
    let failed = random::rounds(first, &setups, time, |row| page.line(row));
    page.line(&format!("\n{} seeds failed.", failed.len()));
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

/// Where the table goes as it grows: standard output, and the file that `CARRICK_FAULTS_OUT` names.
struct Page(Option<std::fs::File>);

impl Page {
    fn open() -> Self {
        let path = std::env::var_os("CARRICK_FAULTS_OUT");
        Self(path.map(|path| std::fs::File::create(path).expect("the file of the table can be created")))
    }

    fn line(&mut self, text: &str) {
        println!("{text}");
        if let Some(file) = &mut self.0 {
            writeln!(file, "{text}").expect("the table can be written");
        }
    }
}
