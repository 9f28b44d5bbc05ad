//! `carrick sign STREAM…`: signs stream names as the application does, for a server with the same settings.

use super::settings;
use crate::auth::Secrets;
use crate::config::Config;
use anyhow::Context;
use clap::{Arg, ArgAction, ArgMatches, Command};
use serde::Serialize;
use std::io::Write;
use std::process::ExitCode;

pub fn command() -> Command {
    let command = Command::new("sign")
        .about("Sign stream names, one line each")
        .arg(Arg::new("streams").value_name("STREAM").required(true).num_args(1..).help("Stream, such as chat/42"))
        .arg(
            Arg::new("json")
                .long("json")
                .action(ArgAction::SetTrue)
                .help("Print JSON with the identifier that a client subscribes with"),
        );
    settings::with_options(command, &["secret", "streams_secret", "config-path"])
}

/// # Errors
/// The settings are at fault or have no secret for streams, or standard output cannot be used.
pub async fn run(matches: &ArgMatches) -> anyhow::Result<ExitCode> {
    let lines = output(matches, &settings::load(matches)?)?;
    let mut out = std::io::stdout().lock();
    for line in lines {
        writeln!(out, "{line}").context("cannot write to standard output")?;
    }
    Ok(ExitCode::SUCCESS)
}

#[derive(Serialize)]
struct Identifier<'a> {
    channel: &'a str,
    signed_stream_name: &'a str,
}

#[derive(Serialize)]
struct Output<'a> {
    stream: &'a str,
    signed_stream_name: &'a str,
    identifier: String,
}

/// A line per stream.
fn output(matches: &ArgMatches, config: &Config) -> anyhow::Result<Vec<String>> {
    let secrets = config.streams.secret.as_ref().map(|secrets| Secrets::parse(secrets.expose())).unwrap_or_default();
    let channel = config.streams.pubsub_channel.as_str();
    let line = |stream: &String| {
        anyhow::ensure!(!stream.is_empty(), "a stream's name must not be empty");
        let signed = secrets
            .sign(stream)
            .context("there is no secret to sign with: give --secret or --streams_secret, or set ANYCABLE_SECRET")?;
        if !matches.get_flag("json") {
            return Ok(signed);
        }
        anyhow::ensure!(!channel.is_empty(), "streams.pubsub_channel is empty, so there is no channel to subscribe by");
        let identifier = serde_json::to_string(&Identifier { channel, signed_stream_name: &signed })?;
        Ok(serde_json::to_string(&Output { stream, signed_stream_name: &signed, identifier })?)
    };
    matches.get_many::<String>("streams").context("STREAM is missing")?.map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::settings::test_settings::given;
    use super::*;
    use serde_json::{Value, json};

    const CHAT: &str = "ImNoYXQvNyI=--36738c9aa01397fd97c3529aeba46bc81dc5cd74a8a7e1a465addb42f6281039";

    fn signed(args: &[&str], env: &[(&str, &str)], file: &str) -> anyhow::Result<Vec<String>> {
        let (matches, config) = given(command(), args, env, file);
        output(&matches, &config)
    }

    #[test]
    fn arguments_are_consistent() {
        command().debug_assert();
    }

    #[test]
    fn names_are_signed_as_the_sdks_do_whichever_way_the_secret_comes() {
        let env = [("ANYCABLE_STREAMS_SECRET", "s3cr3t-alpha")];
        for (args, env, file) in [
            (&["chat/7", "--secret", "s3cr3t-alpha"][..], &[][..], ""),
            (&["chat/7", "--secret", "s3cr3t-alpha,old"], &[], ""),
            (&["--streams_secret", "s3cr3t-alpha", "chat/7"], &[], "secret = \"other\""),
            (&["chat/7"], &env, "secret = \"other\""),
            (&["chat/7"], &[], "streams.secret = \"s3cr3t-alpha\""),
        ] {
            assert_eq!(signed(args, env, file).unwrap(), [CHAT], "{args:?} {file}");
        }
        let several = signed(&["a", "chat/7"], &[], "secret = \"s3cr3t-alpha\"").unwrap();
        assert_eq!((several.len(), several[1].as_str()), (2, CHAT));
    }

    #[test]
    fn json_has_the_identifier_to_subscribe_with() {
        let lines = signed(&["chat/7", "--json", "--secret", "s3cr3t-alpha"], &[], "").unwrap();
        let line: Value = serde_json::from_str(&lines[0]).unwrap();
        let identifier = format!(r#"{{"channel":"$pubsub","signed_stream_name":"{CHAT}"}}"#);
        assert_eq!(line, json!({"stream": "chat/7", "signed_stream_name": CHAT, "identifier": identifier}));
    }

    #[test]
    fn without_a_secret_it_says_what_to_do() {
        for args in [&["a"][..], &["a", "--secret", "none"], &["a", "--secret", "s", "--streams_secret", "none"]] {
            let error = signed(args, &[], "").unwrap_err().to_string();
            assert!(error.contains("--streams_secret") && error.contains("ANYCABLE_SECRET"), "{error}");
        }
        assert!(signed(&["", "--secret", "s"], &[], "").unwrap_err().to_string().contains("empty"));
        assert!(command().try_get_matches_from(["sign"]).is_err());
    }
}
