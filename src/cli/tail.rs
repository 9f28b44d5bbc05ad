//! `carrick tail STREAM…`: subscribes like the stock client, prints what is delivered, and survives drops.

use crate::client::command::Since;
use crate::client::frame::Data;
use crate::client::signed::{public_identifier, signed_identifier};
use crate::client::{Resumable, StockClient, StockEvent, Update, now_secs};
use anyhow::Context;
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use std::collections::HashMap;
use std::io::Write;
use std::process::ExitCode;
use url::Url;

/// Numbers below are seconds ago, others Unix time.
const OLDEST_UNIX_TIME: u64 = 1_000_000_000;

pub fn command() -> Command {
    Command::new("tail")
        .about("Print the messages of streams as they are delivered, with their positions")
        .after_help(
            "Prints `stream epoch/offset data`, with `-` in place of a position for messages that are not stored. \
             A lost connection is resumed where it broke, and standard error says so. \
             Exit status: 0 at the end of --count or when the reader of the output leaves, 1 refused by the server \
             or wrong arguments.",
        )
        .arg(Arg::new("streams").value_name("STREAM").required(true).num_args(1..).help("Streams to follow"))
        .arg(
            Arg::new("url")
                .long("url")
                .value_name("URL")
                .default_value("ws://127.0.0.1:8080/cable")
                .value_parser(parse_url)
                .help("WebSocket address of the server"),
        )
        .arg(
            Arg::new("secret")
                .long("secret")
                .value_name("SECRET")
                .help("The application's secret: subscribe to signed streams instead of public ones"),
        )
        .arg(
            Arg::new("since")
                .long("since")
                .value_name("SECONDS|TIME")
                .value_parser(|text: &str| parse_since(text, now_secs()))
                .help("Begin with what was published since: seconds ago, Unix time, or 2026-01-31T12:00:00Z [default: now]"),
        )
        .arg(Arg::new("raw").long("raw").action(ArgAction::SetTrue).help("Print only the data, strings as plain text"))
        .arg(
            Arg::new("count")
                .long("count")
                .value_name("N")
                .value_parser(value_parser!(u64).range(1..))
                .help("End after N messages"),
        )
}

/// # Errors
/// Standard output cannot be written to.
pub async fn run(matches: &ArgMatches) -> anyhow::Result<ExitCode> {
    let url = matches.get_one::<Url>("url").context("--url is missing")?.clone();
    let secret = matches.get_one::<String>("secret");
    let streams: HashMap<String, String> = matches
        .get_many::<String>("streams")
        .context("STREAM is missing")?
        .map(|stream| {
            let identifier = secret.map_or_else(|| public_identifier(stream), |s| signed_identifier(s, stream));
            (identifier, stream.clone())
        })
        .collect();
    let mut stock = StockClient::new(streams.keys().cloned());
    if let Some(since) = matches.get_one::<u64>("since") {
        stock = stock.with_history_timestamp(Since::At(*since));
    }
    let output = Output { streams, raw: matches.get_flag("raw") };
    follow(Resumable::new(url, stock), &output, matches.get_one::<u64>("count").copied()).await
}

struct Output {
    /// Identifier ⇒ stream name.
    streams: HashMap<String, String>,
    raw: bool,
}

async fn follow(mut client: Resumable, output: &Output, count: Option<u64>) -> anyhow::Result<ExitCode> {
    let mut printed = 0;
    let mut refused = 0;
    let mut opened = false;
    while let Some(update) = client.next().await {
        let event = match update {
            Update::Opened => {
                opened = true;
                continue;
            }
            // A wrong path or a foreign origin does not become right by trying again.
            Update::Lost { reason, status: Some(400..=499), .. } if !opened => {
                complain(&format!("{reason}; check --url"));
                return Ok(ExitCode::FAILURE);
            }
            Update::Lost { reason, retry_in, .. } => {
                complain(&format!("{reason}; trying again in {} ms", retry_in.as_millis()));
                continue;
            }
            Update::Event(event) => event,
        };
        match event {
            StockEvent::Delivery(data) => {
                if let Err(error) = output.print(&data) {
                    // The reader has left, as `head` does.
                    return if error.kind() == std::io::ErrorKind::BrokenPipe {
                        Ok(ExitCode::SUCCESS)
                    } else {
                        Err(error).context("cannot write to standard output")
                    };
                }
                printed += 1;
                if count == Some(printed) {
                    return Ok(ExitCode::SUCCESS);
                }
            }
            StockEvent::Rejected(identifier) => {
                complain(&format!("{}: subscription rejected by the server", output.name(&identifier)));
                refused += 1;
            }
            StockEvent::GaveUp(identifier) => {
                complain(&format!("{}: subscription stayed unanswered", output.name(&identifier)));
                refused += 1;
            }
            other => output.explain(&other),
        }
        if refused == output.streams.len() {
            return Ok(ExitCode::FAILURE);
        }
    }
    Ok(ExitCode::FAILURE)
}

impl Output {
    fn name<'a>(&'a self, identifier: &'a str) -> &'a str {
        self.streams.get(identifier).map_or(identifier, String::as_str)
    }

    fn print(&self, data: &Data) -> std::io::Result<()> {
        let mut out = std::io::stdout().lock();
        if self.raw {
            let text = serde_json::from_str::<String>(&data.message);
            writeln!(out, "{}", text.as_ref().unwrap_or(&data.message))?;
        } else {
            let stream = self.name(&data.identifier);
            match &data.position {
                Some(at) => writeln!(out, "{stream} {}/{} {}", at.epoch, at.offset, data.message)?,
                None => writeln!(out, "{stream} - {}", data.message)?,
            }
        }
        out.flush()
    }

    fn explain(&self, event: &StockEvent) {
        match event {
            StockEvent::Welcome { restored: true } => complain("session resumed"),
            StockEvent::Welcome { restored: false } => complain("connected"),
            StockEvent::HistoryNotFound(identifier) => {
                complain(&format!("{}: messages were missed and cannot be had any more", self.name(identifier)));
            }
            StockEvent::Disconnect { reason, reconnect: false } => {
                complain(&format!("disconnected by the server for good: {reason}"));
            }
            StockEvent::Disconnect { reason, reconnect: true } => {
                complain(&format!("disconnected by the server: {reason}; coming back with a new session"));
            }
            _ => {}
        }
    }
}

fn complain(text: &str) {
    eprintln!("carrick tail: {text}");
}

fn parse_url(text: &str) -> Result<Url, String> {
    match Url::parse(text) {
        Ok(url) if url.scheme() == "ws" => Ok(url),
        _ => Err("not a WebSocket address, use ws://HOST[:PORT]/PATH".to_owned()),
    }
}

/// Unix seconds from seconds ago, Unix seconds, or a UTC time.
fn parse_since(text: &str, now: u64) -> Result<u64, String> {
    if let Ok(number) = text.parse::<u64>() {
        return Ok(if number < OLDEST_UNIX_TIME { now.saturating_sub(number).max(1) } else { number });
    }
    parse_utc(text).ok_or_else(|| "use seconds ago, Unix seconds, or a UTC time like 2026-01-31T12:00:00Z".to_owned())
}

/// `YYYY-MM-DDThh:mm:ssZ` to Unix seconds.
fn parse_utc(text: &str) -> Option<u64> {
    let (date, time) = text.strip_suffix('Z')?.split_once(['T', ' '])?;
    let numbers = |part: &str, by: char| -> Option<[u64; 3]> {
        let parts: Vec<u64> = part.split(by).map(|n| n.parse().ok()).collect::<Option<_>>()?;
        parts.try_into().ok()
    };
    let [year, month, day] = numbers(date, '-')?;
    let [hour, minute, second] = numbers(time, ':')?;
    if !(1970..=9999).contains(&year) || !(1..=12).contains(&month) || hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let length = |month: u64| match month {
        2 => 28 + u64::from(leap(year)),
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    };
    if day < 1 || day > length(month) {
        return None;
    }
    let days: u64 = (1970..year).map(|year| 365 + u64::from(leap(year))).sum::<u64>()
        + (1..month).map(length).sum::<u64>()
        + (day - 1);
    Some(((days * 24 + hour) * 60 + minute) * 60 + second)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_consistent() {
        command().debug_assert();
    }

    #[test]
    fn a_url_must_be_a_web_sockets() {
        assert!(command().try_get_matches_from(["tail", "a", "--url", "http://h/"]).is_err());
    }

    #[test]
    fn since_takes_seconds_ago_unix_time_and_utc() {
        let now = 1_800_000_000;
        assert_eq!(parse_since("60", now), Ok(now - 60));
        assert_eq!(parse_since("1790211845", now), Ok(1_790_211_845));
        assert_eq!(parse_since("2026-01-31T12:00:00Z", now), Ok(1_769_860_800));
        assert_eq!(parse_since("2000-02-29T00:00:01Z", now), Ok(951_782_401));
        for wrong in ["yesterday", "2026-02-29T00:00:00Z", "2026-13-01T00:00:00Z", "2026-01-31T24:00:00Z", "-5"] {
            assert!(parse_since(wrong, now).is_err(), "{wrong}");
        }
    }
}
