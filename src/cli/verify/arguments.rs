//! What `carrick verify` may be told.

use crate::client::check::{Exercised, Features};
use clap::builder::PossibleValuesParser;
use clap::{Arg, ArgAction, Command, value_parser};
use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;
use url::Url;

/// Requires everything.
pub(super) const ALL: &str = "all";
/// No feature that is found out, but required like one.
pub(super) const BASE: &str = "base";

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
}
