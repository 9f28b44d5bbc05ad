//! What a run of `carrick verify` does, from what was asked for.

use super::arguments::{ALL, BASE};
use crate::client::Trust;
use crate::client::check::member::Habits;
use crate::client::check::source::Outlet;
use crate::client::check::{Credentials, Drops, Extras, Features, Limits, Pace, RETRY_FOR, Roster, Rules};
use crate::client::signed::broadcast_key;
use crate::protocol::names::random_text;
use anyhow::{Context, bail};
use clap::ArgMatches;
use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;
use url::Url;

/// Clients' tokens are valid for so much longer than is published.
const TOKEN_SPARE: Duration = Duration::from_secs(3_600);
/// Sources per stream: several, so that their order is not that of one connection.
const LANES: u16 = 2;

/// What was asked for.
pub(super) struct Plan {
    pub urls: Vec<Url>,
    pub outlet: Outlet,
    pub roster: Roster,
    pub pace: Pace,
    pub habits: Habits,
    pub duration: Duration,
    pub turn: Duration,
    pub patience: Duration,
    pub losses_may_be_told: bool,
    /// Features that the server must have.
    pub required: Vec<String>,
    pub rules: Rules,
    /// Seconds; 0: clocks stay right.
    pub clock_jump: i64,
}

/// # Errors
/// What was asked for makes no sense together, or a file cannot be read.
pub(super) fn plan(matches: &ArgMatches) -> anyhow::Result<Plan> {
    let number = |name: &str| matches.get_one::<u32>(name).copied().context("has a default");
    let seconds = |name: &str| matches.get_one::<u64>(name).copied().map(Duration::from_secs).context("has a default");
    let range = |name: &str| matches.get_one::<Range<Duration>>(name).cloned().context("has a default");
    let urls: Vec<Url> = matches.get_many::<Url>("url").context("has a default")?.cloned().collect();
    let secret = matches.get_one::<String>("secret");
    let key = matches.get_one::<String>("key").cloned().or_else(|| secret.map(|secret| broadcast_key(secret)));
    let publish_urls = match matches.get_many::<String>("publish-url") {
        Some(given) => given.cloned().collect(),
        None => urls.iter().map(|url| broadcast_url(url, key.is_some())).collect(),
    };
    let random_seed = || random_text(8).bytes().fold(0, |seed: u64, byte| seed * 61 + u64::from(byte % 61));
    let seed = matches.get_one::<u64>("seed").copied().unwrap_or_else(random_seed);
    let drops = match matches.get_one::<String>("drop").map(String::as_str) {
        Some("none") => Drops::Never,
        Some("all-at-once") => Drops::AllAtOnce,
        _ => Drops::Random,
    };
    let length = |name: &str| matches.get_one::<Duration>(name).copied();
    let limits = match (matches.get_one::<u64>("history-limit"), length("history-ttl")) {
        (Some(messages), Some(ttl)) => Some(Limits { messages: *messages, ttl }),
        _ => None,
    };
    let rules = Rules { limits, live_within: length("live-within").context("has a default")? };
    let trust = matches.get_one::<PathBuf>("ca-file").map(|path| Trust::file(path)).transpose()?;
    let without: Vec<&str> = matches.get_many::<String>("without").into_iter().flatten().map(String::as_str).collect();
    let mut required: Vec<String> = matches.get_many::<String>("require").into_iter().flatten().cloned().collect();
    if required.iter().any(|name| name == ALL) {
        required = Features::NAMES.into_iter().chain([BASE]).map(str::to_owned).collect();
    }
    if let Some(name) = required.iter().find(|name| without.contains(&name.as_str())) {
        bail!("{name} is required and left away: take it out of --require (which may be \"all\") or out of --without");
    }
    let with = |what: &str| !without.contains(&what);
    // Never the streams or keys of an earlier run, even with its seed.
    let run = random_text(12);
    let members = number("clients")? as usize;
    let duration = seconds("duration")?;
    let credentials = match (matches.get_one::<String>("jwt-secret"), matches.get_one::<String>("identifiers")) {
        (Some(secret), _) => Credentials::Tokens {
            secret: secret.as_str().into(),
            param: matches.get_one::<String>("jwt-param").cloned().context("has a default")?,
            run: run.clone(),
            valid: duration + TOKEN_SPARE,
        },
        (None, Some(identifiers)) => Credentials::Named { identifiers: identifiers.clone() },
        (None, None) => Credentials::Common,
    };
    Ok(Plan {
        urls,
        outlet: Outlet {
            urls: publish_urls,
            key,
            trust,
            run: run.clone(),
            retry_for: length("retry-for").unwrap_or(RETRY_FOR),
        },
        roster: Roster {
            prefix: format!("verify/{run}/"),
            seed,
            streams: number("streams")? as usize,
            members,
            doubles: members / 8,
            // They must be gone before anything is published to their stream.
            silents: if drops == Drops::Random { members / 8 } else { 0 },
            bases: if with("base") { members.div_ceil(10) } else { 0 },
            secret: secret.filter(|_| !matches.get_flag("public-streams")).cloned(),
            credentials,
        },
        pace: Pace {
            lanes: LANES,
            rate: number("rate")?,
            extras: Extras {
                batch: if with("batches") { number("batch")? } else { 0 },
                transient: with("transient"),
                exclusion: with("exclusion"),
                whispers: with("whispers"),
                removals: with("removals"),
                payload: matches.get_one::<Range<usize>>("payload").cloned().context("has a default")?,
            },
        },
        habits: Habits { drops, stay: range("stay")?, away: range("away")?, history: true, whispers: false },
        duration,
        turn: seconds("turn")?.max(Duration::from_secs(1)),
        patience: seconds("patience")?,
        losses_may_be_told: matches.get_flag("allow-rejects") || limits.is_some(),
        required,
        rules,
        clock_jump: i64::from(number("clock-jump")?),
    })
}

/// Where the server of this client address takes publications.
fn broadcast_url(url: &Url, has_key: bool) -> String {
    let host = url.host_str().unwrap_or("127.0.0.1");
    let port = if has_key { url.port_or_known_default().unwrap_or(80) } else { 8090 };
    let scheme = if url.scheme() == "wss" { "https" } else { "http" };
    format!("{scheme}://{host}:{port}/_broadcast")
}

#[cfg(test)]
mod tests {
    use super::super::arguments::command;
    use super::*;

    #[test]
    fn publications_go_where_the_server_takes_them() {
        let url = Url::parse("ws://h:81/cable").unwrap();
        assert_eq!(broadcast_url(&url, true), "http://h:81/_broadcast");
        assert_eq!(broadcast_url(&url, false), "http://h:8090/_broadcast");
        let url = Url::parse("wss://h/cable").unwrap();
        assert_eq!(broadcast_url(&url, true), "https://h:443/_broadcast");
    }

    /// The server tries a publication for its publish timeout and knows its key for the window, by default.
    #[test]
    fn the_last_attempt_ends_while_the_server_knows_its_key() {
        let plan = plan(&command().try_get_matches_from(["verify"]).unwrap()).unwrap();
        let server = crate::config::Config::default().broker;
        assert!(plan.outlet.retry_for + server.publish_timeout < server.dedup_window);
        let help = command().render_long_help().to_string();
        assert!(help.contains(&format!("[default: {}]", RETRY_FOR.as_secs())), "{help}");
    }

    #[test]
    fn everything_can_be_required_in_one_word() {
        let required = |args: &[&str]| {
            let args = ["verify"].iter().chain(args);
            plan(&command().try_get_matches_from(args).unwrap()).unwrap().required
        };
        assert!(required(&[]).is_empty());
        assert_eq!(required(&["--require=whispers", "--require=removals"]), ["whispers", "removals"]);
        assert_eq!(required(&["--require=all"])[..Features::NAMES.len()], Features::NAMES);
        assert_eq!(required(&["--require=all"])[Features::NAMES.len()..], ["base"]);
        assert!(command().try_get_matches_from(["verify", "--require=telepathy"]).is_err());
    }

    #[test]
    fn nothing_is_required_and_left_away() {
        let error = |args: &[&str]| {
            let args = ["verify"].iter().chain(args);
            plan(&command().try_get_matches_from(args).unwrap()).err().map(|error| error.to_string())
        };
        for args in [["--require=all", "--without=exclusion"], ["--require=exclusion", "--without=exclusion"]] {
            assert!(error(&args).is_some_and(|error| error.starts_with("exclusion is required")), "{args:?}");
        }
        assert!(error(&["--require=base", "--without=base"]).is_some());
        assert_eq!(error(&["--require=base", "--without=exclusion"]), None);
    }

    #[test]
    fn a_plan_has_streams_of_its_own() {
        let plan_of = |args: &[&str]| plan(&command().try_get_matches_from(args).unwrap()).unwrap();
        let args = ["verify", "--seed", "5", "--secret", "s", "--url", "ws://a/cable", "--url", "ws://b/cable"];
        let (one, two) = (plan_of(&args), plan_of(&args));
        assert_ne!(one.roster.prefix, two.roster.prefix);
        assert_eq!(one.outlet.urls, ["http://a:80/_broadcast", "http://b:80/_broadcast"]);
        assert_eq!((one.roster.seed, one.roster.secret.as_deref()), (5, Some("s")));
    }
}
