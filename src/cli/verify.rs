//! `carrick verify`: checks a running deployment: publishes, drops and returns clients, and counts what went wrong.

mod arguments;
mod plan;

pub use arguments::command;

use crate::client::check::probe::{Unable, probe};
use crate::client::check::{Check, Conductor, Dice, Drops, Report};
use crate::client::signed::{public_identifier, signed_identifier};
use anyhow::Context;
use clap::ArgMatches;
use plan::{Plan, plan};
use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;
use tokio::time::Instant;

/// Nothing is known about the server's promises.
pub const EXIT_UNABLE: u8 = 2;
/// For all clients to connect and subscribe.
const SETTLE_PATIENCE: Duration = Duration::from_secs(60);
/// Clocks jump no later than this, so that there are returns afterwards.
const LATEST_JUMP: Duration = Duration::from_secs(5);

/// # Errors
/// Standard output cannot be used.
pub async fn run(matches: &ArgMatches) -> anyhow::Result<ExitCode> {
    let plan = plan(matches).map_err(|error| Unable::new(format!("{error:#}")));
    let outcome = match plan {
        Ok(plan) => check(plan).await,
        Err(error) => Err(error),
    };
    let report = match outcome {
        Ok(report) => report,
        Err(error) => {
            eprintln!("carrick verify: cannot check: {error}");
            return Ok(ExitCode::from(EXIT_UNABLE));
        }
    };
    let text = match matches.get_flag("json") {
        true => serde_json::to_string(&report).context("the report is not JSON")? + "\n",
        false => report.to_string(),
    };
    std::io::stdout().write_all(text.as_bytes()).context("cannot write to standard output")?;
    Ok(if report.violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn check(mut plan: Plan) -> Result<Report, Unable> {
    let stream = format!("{}probe", plan.roster.prefix);
    let identifier = match &plan.roster.secret {
        Some(secret) => signed_identifier(secret, &stream),
        None => public_identifier(&stream),
    };
    let features = probe(&plan.urls, &plan.roster.credentials, &plan.outlet, &stream, &identifier).await?;
    if !(features.history && features.positions) && plan.habits.drops != Drops::Never {
        return Err(Unable::new(
            "the server keeps no history (is its broker off?): messages that clients miss while they are away cannot \
             be had. Start it with a broker, or check only connected clients with --drop none",
        ));
    }
    plan.habits.history = features.history;
    let extras = &mut plan.pace.extras;
    extras.batch *= u32::from(features.batches);
    extras.transient &= features.transient;
    extras.exclusion &= features.exclusion;
    extras.whispers &= features.whispers;
    // Who is thrown out misses what is published until it is back.
    extras.removals &= features.removals && features.history;
    if !features.idempotency_keys {
        eprintln!("carrick verify: the server does not know idempotency keys: nothing is published a second time");
        plan.outlet.retry_for = Duration::ZERO;
    }
    let check = Check::start(&plan.roster, &plan.pace, &plan.habits, &plan.urls, &plan.outlet);
    let mut check = check.by_rules(plan.rules);
    check.settle(SETTLE_PATIENCE).await.map_err(Unable::new)?;
    let seconds = plan.duration.as_secs();
    eprintln!("carrick verify: {} clients subscribed, publishing for {seconds} s", plan.roster.members);
    check.begin();
    let end = Instant::now() + plan.duration;
    let interrupted = tokio::signal::ctrl_c();
    // Once for all turns, however short they are.
    let (waves, jump) = (waves(check.conductor(), &plan), jump(check.conductor(), &plan));
    tokio::pin!(interrupted, waves, jump);
    loop {
        let pause = Instant::now() + plan.turn;
        tokio::select! {
            () = tokio::time::sleep_until(end.min(pause)) => {}
            () = &mut waves => {}
            () = &mut jump => {}
            _ = &mut interrupted => {
                eprintln!("carrick verify: interrupted, waiting for the last messages");
                break;
            }
        }
        if end <= pause {
            break;
        }
        check.turn(plan.patience).await.map_err(Unable::new)?;
    }
    let (outcome, behind) = check.finish(plan.patience).await.map_err(Unable::new)?;
    if let Some(behind) = behind {
        eprintln!("carrick verify: {behind}");
    }
    if outcome.verdict.acknowledged == 0 {
        return Err(Unable::new("no publication was acknowledged"));
    }
    Ok(Report::new(&outcome, features, plan.roster.seed, plan.losses_may_be_told).requiring(&plan.required))
}

/// Drops all clients again and again, if that is the pattern; never ends.
async fn waves(clients: Conductor, plan: &Plan) {
    if plan.habits.drops != Drops::AllAtOnce {
        return std::future::pending().await;
    }
    let mut dice = Dice::new(plan.roster.seed);
    loop {
        tokio::time::sleep(dice.within(&plan.habits.stay)).await;
        clients.drop_all();
        tokio::time::sleep(plan.habits.away.end).await;
    }
}

/// Makes clocks jump, if that is wanted; never ends.
async fn jump(clients: Conductor, plan: &Plan) {
    tokio::time::sleep((plan.duration / 3).min(LATEST_JUMP)).await;
    clients.jump_clocks(plan.clock_jump);
    std::future::pending().await
}
