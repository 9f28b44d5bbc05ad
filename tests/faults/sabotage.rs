//! Servers that were broken on purpose are found guilty. `scripts/faults --sabotage` builds one that can be.

use crate::checker::{Checked, Checker};
use crate::deployment::{Deployment, Setup, Variant};
use std::path::PathBuf;
use std::time::Duration;

/// The binary with this safeguard taken out.
fn broken(name: &str) -> PathBuf {
    let folder = std::env::var_os("CARRICK_SABOTAGED").expect("run by scripts/faults --sabotage");
    PathBuf::from(folder).join(name).join("carrick")
}

fn check(binary: Option<PathBuf>, setup: Setup, lose: bool) -> Checked {
    let options = vec![("head_check_interval", "1".to_owned())];
    let deployment = Deployment::start_variant(setup, &Variant { binary, options, ..Variant::default() });
    let arguments = [
        "--duration=12".to_owned(),
        "--clients=60".to_owned(),
        "--rate=400".to_owned(),
        "--streams=5".to_owned(),
        "--seed=7".to_owned(),
        "--stay=0.2-1".to_owned(),
        "--away=0.1-1".to_owned(),
    ];
    let mut checker = Checker::start(&deployment, false, &arguments);
    checker.wait_publishing();
    if lose {
        for _ in 0..4 {
            let proxy = &deployment.proxies[0];
            proxy.lose_live(20, 30);
            std::thread::sleep(Duration::from_secs(2));
            assert_eq!(proxy.lost(), 30, "the fault acted");
        }
    }
    checker.wait(Duration::from_secs(120))
}

/// Of one of these at least.
fn assert_guilty(checked: &Checked, violations: &[&str]) {
    assert_eq!(checked.status, Some(1), "{checked:?}");
    let found = checked.report["violations"].as_array().cloned().unwrap_or_default();
    assert!(violations.iter().any(|one| found.contains(&(*one).into())), "one of {violations:?} expected: {checked:?}");
}

#[test]
#[ignore = "needs a broken build: scripts/faults --sabotage"]
fn sabotage_barrier_off_is_caught() {
    let checked = check(Some(broken("barrier_off")), Setup::ExternalSingle, false);
    assert_guilty(&checked, &["duplicated", "reordered", "lost"]);
}

#[test]
#[ignore = "needs a broken build: scripts/faults --sabotage"]
fn sabotage_gap_check_off_is_caught() {
    assert_guilty(&check(Some(broken("gap_check_off")), Setup::ExternalSingle, true), &["lost"]);
}

#[test]
#[ignore = "needs a broken build: scripts/faults --sabotage"]
fn sabotage_earlier_sids_off_is_caught() {
    assert_guilty(&check(Some(broken("earlier_sids_off")), Setup::ExternalSingle, false), &["not_excluded"]);
}

/// The same losses do no harm to an honest build.
#[test]
fn lost_live_messages_are_repaired() {
    let checked = check(None, Setup::ExternalSingle, true);
    assert_eq!(checked.status, Some(0), "{checked:?}");
}
