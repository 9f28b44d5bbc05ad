//! `carrick verify`: checks a running deployment: publishes, drops and returns clients, and counts what went wrong.

use crate::client::Trust;
use crate::client::check::member::Habits;
use crate::client::check::probe::{Unable, probe};
use crate::client::check::source::Outlet;
use crate::client::check::{
    Check, Conductor, Credentials, Dice, Drops, Exercised, Extras, Features, Limits, Pace, RETRY_FOR, Report, Roster,
    Rules,
};
use crate::client::signed::{broadcast_key, public_identifier, signed_identifier};
use crate::protocol::names::random_text;
use anyhow::{Context, bail};
use clap::builder::PossibleValuesParser;
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use std::io::Write;
use std::ops::Range;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
use tokio::time::Instant;
use url::Url;

/// Nothing is known about the server's promises.
pub const EXIT_UNABLE: u8 = 2;
/// For all clients to connect and subscribe.
const SETTLE_PATIENCE: Duration = Duration::from_secs(60);
/// Clocks jump no later than this, so that there are returns afterwards.
const LATEST_JUMP: Duration = Duration::from_secs(5);
/// Requires everything.
const ALL: &str = "all";
/// No feature that is found out, but required like one.
const BASE: &str = "base";
/// Clients' tokens are valid for so much longer than is published.
const TOKEN_SPARE: Duration = Duration::from_secs(3_600);
/// Sources per stream: several, so that their order is not that of one connection.
const LANES: u16 = 2;

pub fn command() -> Command {
    let seconds = |name: &'static str, default: &'static str| {
        Arg::new(name).long(name).value_name("SECONDS").value_parser(value_parser!(u64)).default_value(default)
    };
    let length = |name: &'static str| Arg::new(name).long(name).value_name("SECONDS").value_parser(parse_seconds);
    let count = |name: &'static str, default: &'static str| {
        Arg::new(name).long(name).value_name("N").value_parser(value_parser!(u32).range(1..)).default_value(default)
    };
    let range = |name: &'static str, default: &'static str| {
        Arg::new(name).long(name).value_name("MIN-MAX").value_parser(parse_range).default_value(default)
    };
    Command::new("verify")
        .about("Check a running server: publish, drop and return clients, and count what was lost")
        .after_help(
            "Works with Carrick and other AnyCable-compatible servers; what a server lacks is reported. \
             Uses streams of its own, named verify/…. Exit status: 0 everything promised was kept, 1 violations \
             (the report names them), 2 the server could not be checked, or wrong arguments. \
             An interrupt (Ctrl-C) ends publishing early and reports.",
        )
        .arg(
            Arg::new("url")
                .long("url")
                .value_name("URL")
                .action(ArgAction::Append)
                .default_value("ws://127.0.0.1:8080/cable")
                .value_parser(parse_url)
                .help("WebSocket address; several: clients come back through any of them"),
        )
        .arg(Arg::new("publish-url").long("publish-url").value_name("URL").action(ArgAction::Append).help(
            "Broadcast endpoint; several: publishers move on to the next after a failure \
                 [default: /_broadcast of each --url, on port 8090 without --secret and --key]",
        ))
        .arg(
            Arg::new("ca-file")
                .long("ca-file")
                .value_name("FILE")
                .value_parser(value_parser!(PathBuf))
                .help("PEM file of the authorities to trust with wss:// and https://, instead of the system's"),
        )
        .arg(
            Arg::new("secret")
                .long("secret")
                .value_name("SECRET")
                .help("The application's secret: signs stream names, and the publishing key follows from it"),
        )
        .arg(
            Arg::new("jwt-secret")
                .long("jwt-secret")
                .value_name("SECRET")
                .conflicts_with("identifiers")
                .help("Gives each client a token of its own, signed with this; without it they show what --url holds"),
        )
        .arg(
            Arg::new("jwt-param")
                .long("jwt-param")
                .value_name("NAME")
                .default_value("jid")
                .help("Query parameter with the token"),
        )
        .arg(Arg::new("identifiers").long("identifiers").value_name("TEMPLATE").help(
            "Connection identifiers that the application gives client {client}, whose number stands for {client} in \
             --url, too: for remote disconnects",
        ))
        .arg(Arg::new("key").long("key").value_name("KEY").help("Key of the broadcast endpoint"))
        .arg(
            Arg::new("public-streams")
                .long("public-streams")
                .action(ArgAction::SetTrue)
                .help("Subscribe to public streams even with a secret"),
        )
        .arg(count("streams", "10").help("Streams"))
        .arg(count("clients", "50").help("Clients; each follows one or two streams"))
        .arg(count("rate", "200").help("Messages per second over all streams"))
        .arg(
            Arg::new("payload")
                .long("payload")
                .value_name("MIN-MAX")
                .value_parser(parse_sizes)
                .default_value("100")
                .help("Bytes of data per message; of a range as many below its middle, by ratio, as above"),
        )
        .arg(
            Arg::new("batch")
                .long("batch")
                .value_name("N")
                .value_parser(value_parser!(u32).range(2..))
                .default_value("5")
                .help("Messages per request of one source in two"),
        )
        .arg(
            Arg::new("without")
                .long("without")
                .value_name("WHAT")
                .action(ArgAction::Append)
                .value_parser(PossibleValuesParser::new(Exercised::NAMES))
                .help("Leaves something away that is checked if the server has it; may be given several times"),
        )
        .arg(
            Arg::new("require")
                .long("require")
                .value_name("WHAT")
                .action(ArgAction::Append)
                .value_parser(PossibleValuesParser::new(Features::NAMES.into_iter().chain([BASE, ALL])))
                .help("A server that lacks it breaks a promise, and so does a run without it; may be given several times"),
        )
        .arg(seconds("duration", "30").help("How long to publish"))
        .arg(seconds("turn", "300").help(
            "After so long publishing pauses until all is there and compared: memory does not grow with the duration",
        ))
        .arg(
            Arg::new("drop")
                .long("drop")
                .value_name("PATTERN")
                .value_parser(PossibleValuesParser::new(["random", "none", "all-at-once"]))
                .default_value("random")
                .help("When clients drop"),
        )
        .arg(range("stay", "0.3-3").help("Seconds that a client stays before it drops"))
        .arg(range("away", "0.1-5").help("Seconds that it is away"))
        .arg(
            Arg::new("clock-jump")
                .long("clock-jump")
                .value_name("SECONDS")
                .value_parser(value_parser!(u32))
                .default_value("0")
                .help("After a third of the time (5 s at most) one client in three is ahead by this, and one behind"),
        )
        .arg(length("retry-for").help(
            "How long a publication is tried again with its key; keep it below the server's window for duplicates minus \
             its publish timeout (dedup_window − publish_timeout) [default: 18]",
        ))
        .arg(
            length("live-within")
                .default_value("30")
                .help("How long after its acknowledgement a message may reach a connection that stands"),
        )
        .arg(
            Arg::new("history-limit")
                .long("history-limit")
                .value_name("N")
                .value_parser(value_parser!(u64).range(1..))
                .requires("history-ttl")
                .help("The server keeps so many messages of a stream: see --history-ttl"),
        )
        .arg(length("history-ttl").requires("history-limit").help(
            "The server keeps messages for so long: losses beyond the limits may be told, and a reject_history within \
             them is a false alarm",
        ))
        .arg(seconds("patience", "15").help("How long to wait for the last messages, beyond the longest absence"))
        .arg(
            Arg::new("allow-rejects")
                .long("allow-rejects")
                .action(ArgAction::SetTrue)
                .help("A loss that reject_history tells of is no violation (for faults that destroy data)"),
        )
        .arg(
            Arg::new("seed")
                .long("seed")
                .value_name("N")
                .value_parser(value_parser!(u64))
                .help("Repeats the drops of an earlier run [default: random]"),
        )
        .arg(Arg::new("json").long("json").action(ArgAction::SetTrue).help("Print the report as one JSON object"))
}

/// What was asked for.
struct Plan {
    urls: Vec<Url>,
    outlet: Outlet,
    roster: Roster,
    pace: Pace,
    habits: Habits,
    duration: Duration,
    turn: Duration,
    patience: Duration,
    losses_may_be_told: bool,
    /// Features that the server must have.
    required: Vec<String>,
    rules: Rules,
    /// Seconds; 0: clocks stay right.
    clock_jump: i64,
}

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

fn plan(matches: &ArgMatches) -> anyhow::Result<Plan> {
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

/// Where the server of this client address takes publications.
fn broadcast_url(url: &Url, has_key: bool) -> String {
    let host = url.host_str().unwrap_or("127.0.0.1");
    let port = if has_key { url.port_or_known_default().unwrap_or(80) } else { 8090 };
    let scheme = if url.scheme() == "wss" { "https" } else { "http" };
    format!("{scheme}://{host}:{port}/_broadcast")
}

fn parse_url(text: &str) -> Result<Url, String> {
    match Url::parse(text) {
        Ok(url) if matches!(url.scheme(), "ws" | "wss") => Ok(url),
        _ => Err("not a WebSocket address, use ws://HOST[:PORT]/PATH or wss://…".to_owned()),
    }
}

/// `MIN-MAX` or one number, in seconds.
fn parse_range(text: &str) -> Result<Range<Duration>, String> {
    let (from, to) = text.split_once('-').unwrap_or((text, text));
    match (parse_seconds(from), parse_seconds(to)) {
        (Ok(from), Ok(to)) if from <= to => Ok(from..to),
        _ => Err("use MIN-MAX in seconds, such as 0.1-5".to_owned()),
    }
}

/// `MIN-MAX` or one number, in bytes.
fn parse_sizes(text: &str) -> Result<Range<usize>, String> {
    let (from, to) = text.split_once('-').unwrap_or((text, text));
    match (from.parse(), to.parse()) {
        (Ok(from), Ok(to)) if (1..=to).contains(&from) => Ok(from..to),
        _ => Err("use bytes, such as 100 or 100-50000".to_owned()),
    }
}

fn parse_seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse::<f64>().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    seconds.ok_or_else(|| "use seconds, such as 0.5 or 25".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_consistent() {
        command().debug_assert();
    }

    #[test]
    fn ranges_are_seconds() {
        let ms = Duration::from_millis;
        assert_eq!(parse_range("0.1-5"), Ok(ms(100)..ms(5000)));
        assert_eq!(parse_range("2"), Ok(ms(2000)..ms(2000)));
        for wrong in ["5-1", "a-b", "-1", "", "1-2-3"] {
            assert!(parse_range(wrong).is_err(), "{wrong}");
        }
    }

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
