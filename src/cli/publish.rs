//! `carrick publish STREAM DATA`: publishes over HTTP and prints where the message stands.

use crate::client::publisher::{OutgoingMeta, PublishError};
use crate::client::signed::broadcast_key;
use crate::client::{Outgoing, Publisher};
use crate::protocol::names::random_text;
use anyhow::Context;
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;
use tokio::io::AsyncBufReadExt;

/// No acknowledgement in time.
const EXIT_UNACKNOWLEDGED: u8 = 3;

pub fn command() -> Command {
    Command::new("publish")
        .about("Publish a message to a stream and print its position")
        .after_help(
            "Exit status: 0 stored (or sent, if transient), 1 refused by the server or wrong arguments, \
             3 not acknowledged in time (the message says whether it may be stored all the same; \
             repeating with the same --idempotency-key is safe).",
        )
        .arg(Arg::new("stream").value_name("STREAM").required(true).help("Stream to publish to, such as chat/42"))
        .arg(
            Arg::new("data")
                .value_name("DATA")
                .required(true)
                .allow_hyphen_values(true)
                .help("JSON, or any other text; - reads standard input, each line a message"),
        )
        .arg(
            Arg::new("url")
                .long("url")
                .value_name("URL")
                .default_value("http://127.0.0.1:8090/_broadcast")
                .help("Address of the server's broadcast endpoint (on the main port if the server has a secret)"),
        )
        .arg(
            Arg::new("key")
                .long("key")
                .value_name("KEY")
                .help("Key of the broadcast endpoint")
                .conflicts_with("secret"),
        )
        .arg(
            Arg::new("secret")
                .long("secret")
                .value_name("SECRET")
                .help("The application's secret, from which the key is derived"),
        )
        .arg(
            Arg::new("idempotency_key")
                .long("idempotency-key")
                .value_name("KEY")
                .help("Makes a repetition the same message [default: random; with - the line's number is added]"),
        )
        .arg(
            Arg::new("transient")
                .long("transient")
                .action(ArgAction::SetTrue)
                .help("Only to clients that are connected now: not stored, no position"),
        )
        .arg(Arg::new("type").long("type").value_name("TYPE").help("`type` of the delivered message"))
        .arg(Arg::new("exclude").long("exclude").value_name("SID").help("Session that does not get the message"))
        .arg(
            Arg::new("timeout")
                .long("timeout")
                .value_name("SECONDS")
                .value_parser(value_parser!(u64))
                .default_value("30")
                .help("How long to go on trying while the server is not available"),
        )
}

/// # Errors
/// Standard input or output cannot be used.
pub async fn run(matches: &ArgMatches) -> anyhow::Result<ExitCode> {
    let text = |name: &str| matches.get_one::<String>(name).map(String::as_str);
    let stream = text("stream").context("STREAM is missing")?;
    let data = text("data").context("DATA is missing")?;
    let url = text("url").context("--url is missing")?;
    let key = text("key").map(str::to_owned).or_else(|| text("secret").map(broadcast_key));
    let timeout = Duration::from_secs(*matches.get_one::<u64>("timeout").context("--timeout is missing")?);
    let idempotency_key = text("idempotency_key").map_or_else(|| random_text(21), str::to_owned);
    let meta = OutgoingMeta {
        exclude_socket: text("exclude"),
        broadcast_type: text("type"),
        transient: matches.get_flag("transient"),
    };
    let mut publisher = match Publisher::new(url, key.as_deref(), timeout) {
        Ok(publisher) => publisher,
        Err(error) => return Ok(complain(&error)),
    };
    if data != "-" {
        return publish_one(&mut publisher, &Outgoing { stream, data, meta }, &idempotency_key).await;
    }
    let mut lines = tokio::io::BufReader::new(tokio::io::stdin()).lines();
    let mut number = 0u64;
    while let Some(line) = lines.next_line().await.context("cannot read standard input")? {
        number += 1;
        if line.is_empty() {
            continue;
        }
        let key = format!("{idempotency_key}-{number}");
        let code = publish_one(&mut publisher, &Outgoing { stream, data: &line, meta: meta.clone() }, &key).await?;
        if code != ExitCode::SUCCESS {
            return Ok(code);
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn publish_one(
    publisher: &mut Publisher,
    message: &Outgoing<'_>,
    idempotency_key: &str,
) -> anyhow::Result<ExitCode> {
    let published = match publisher.publish(message.to_body(), idempotency_key).await {
        Ok(published) => published,
        Err(error) => return Ok(complain(&error)),
    };
    let mut out = std::io::stdout().lock();
    for one in &published {
        let repeated = if one.duplicate { " (stored already)" } else { "" };
        match (&one.epoch, one.offset) {
            (Some(epoch), Some(offset)) if offset > 0 => writeln!(out, "{} {epoch}/{offset}{repeated}", one.stream),
            _ => writeln!(out, "{} -", one.stream),
        }
        .context("cannot write to standard output")?;
    }
    Ok(ExitCode::SUCCESS)
}

fn complain(error: &PublishError) -> ExitCode {
    eprintln!("carrick publish: {error}");
    let hint = match error {
        PublishError::Refused { status: 401, .. } => {
            "the key is wrong or missing: give --key, or --secret to derive it"
        }
        PublishError::Refused { status: 404, .. } => "nothing is published at this path: check --url",
        PublishError::GaveUp { last, .. } if last.contains("cannot connect") => {
            "is the server running? without a secret it takes publications on port 8090, with one on its main port"
        }
        _ => "",
    };
    if !hint.is_empty() {
        eprintln!("carrick publish: {hint}");
    }
    match error {
        PublishError::GaveUp { .. } => ExitCode::from(EXIT_UNACKNOWLEDGED),
        PublishError::Address(_) | PublishError::Header | PublishError::Refused { .. } | PublishError::Answer(_) => {
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_consistent() {
        command().debug_assert();
    }

    #[test]
    fn key_and_secret_exclude_each_other() {
        assert!(command().try_get_matches_from(["publish", "a", "1", "--key", "k", "--secret", "s"]).is_err());
        assert!(command().try_get_matches_from(["publish", "a", "-1"]).is_ok());
    }
}
