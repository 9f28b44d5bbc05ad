//! `carrick token IDENTIFIERS`: makes a token (JWT) that the server with the same settings accepts.

use super::settings;
use crate::auth::{Secrets, jwt};
use crate::config::{Config, parse_time};
use anyhow::Context;
use clap::{Arg, ArgAction, ArgMatches, Command};
use serde::Serialize;
use std::io::Write;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub fn command() -> Command {
    let command = Command::new("token")
        .about("Make a token (JWT) for a client with these connection identifiers")
        .arg(
            Arg::new("identifiers")
                .value_name("IDENTIFIERS")
                .required(true)
                .help("Connection identifiers as JSON, such as '{\"user_id\":42}'"),
        )
        .arg(
            Arg::new("ttl")
                .long("ttl")
                .value_name("TIME")
                .value_parser(|text: &str| parse_time(text).ok_or("seconds, or a number with its unit (10s, 5m, 2h)"))
                .default_value("1h")
                .help("How long the token is valid; 0: for ever"),
        )
        .arg(
            Arg::new("json")
                .long("json")
                .action(ArgAction::SetTrue)
                .help("Print JSON with the address that a client connects to"),
        );
    settings::with_options(command, &["secret", "jwt_secret", "jwt_param", "config-path"])
}

/// # Errors
/// The settings are at fault or have no secret for tokens, or standard output cannot be used.
pub async fn run(matches: &ArgMatches) -> anyhow::Result<ExitCode> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).context("the clock is before 1970")?;
    let line = output(matches, &settings::load(matches)?, now.as_secs())?;
    writeln!(std::io::stdout(), "{line}").context("cannot write to standard output")?;
    Ok(ExitCode::SUCCESS)
}

#[derive(Serialize)]
struct Output<'a> {
    token: &'a str,
    identifiers: &'a str,
    exp: Option<u64>,
    /// Unknown if the port or the path is.
    url: Option<String>,
}

fn output(matches: &ArgMatches, config: &Config, now: u64) -> anyhow::Result<String> {
    let identifiers = matches.get_one::<String>("identifiers").context("IDENTIFIERS is missing")?;
    let ttl = *matches.get_one::<Duration>("ttl").context("--ttl is missing")?;
    if serde_json::from_str::<serde::de::IgnoredAny>(identifiers).is_err() {
        anyhow::bail!("IDENTIFIERS is not JSON: quote it for the shell, as in carrick token '{{\"user_id\":42}}'");
    }
    let secrets = config.jwt.secret.as_ref().map(|secrets| Secrets::parse(secrets.expose()));
    let Some(secret) = secrets.as_ref().and_then(Secrets::first) else {
        anyhow::bail!(
            "there is no secret to sign with: give --secret or --jwt_secret, or set ANYCABLE_SECRET{}",
            if config.jwt.is_on() { " (keys in files only verify; their private parts sign elsewhere)" } else { "" }
        );
    };
    // A part of a second counts as one: a token that is expired at once helps nobody.
    let exp = (!ttl.is_zero()).then(|| now.saturating_add(ttl.as_secs().max(1)));
    let token = jwt::sign(secret, identifiers, exp);
    if !matches.get_flag("json") {
        return Ok(token);
    }
    let url = url(config).map(|url| format!("{url}?{}={token}", config.jwt.param));
    serde_json::to_string(&Output { token: &token, identifiers, exp, url }).context("cannot write JSON")
}

/// Where a client on this machine connects to.
fn url(config: &Config) -> Option<String> {
    let server = &config.server;
    let scheme = if server.ssl().is_some() { "wss" } else { "ws" };
    let host = match server.host.as_str() {
        "0.0.0.0" | "::" | "[::]" => "localhost".to_owned(),
        host if host.contains(':') && !host.starts_with('[') => format!("[{host}]"),
        host => host.to_owned(),
    };
    let path = config.ws.paths.iter().find(|path| !path.contains(['{', '*']))?;
    (server.port != 0).then(|| format!("{scheme}://{host}:{}{path}", server.port))
}

#[cfg(test)]
mod tests {
    use super::settings::test_settings::given;
    use super::*;
    use crate::auth::jwt::{Claims, Jwt, JwtConfig, TokenFault};
    use serde_json::{Value, json};

    const NOW: u64 = 1_700_000_000;
    const IDENTIFIERS: &str = r#"{"user_id":42}"#;

    fn made(args: &[&str], env: &[(&str, &str)], file: &str) -> anyhow::Result<String> {
        let args: Vec<_> = std::iter::once(IDENTIFIERS).chain(args.iter().copied()).collect();
        let (matches, config) = given(command(), &args, env, file);
        output(&matches, &config, NOW)
    }

    fn verify(secret: &str, token: &str, now: u64) -> Result<Claims, TokenFault> {
        Jwt::new(JwtConfig { secrets: Secrets::parse(secret), ..JwtConfig::default() }).unwrap().verify(token, now)
    }

    #[test]
    fn arguments_are_consistent() {
        command().debug_assert();
        let help = command().render_long_help().to_string();
        assert!(help.contains("--jwt_secret") && !help.contains("--history_limit"), "{help}");
    }

    #[test]
    fn the_secret_comes_from_flag_environment_or_file() {
        let env = [("ANYCABLE_SECRET", "from-env")];
        let file = "secret = \"from-file\"";
        for (secret, args, env, file) in [
            ("from-flag", &["--secret", "from-flag"][..], &env[..], file),
            ("from-flag", &["--jwt_secret", "from-flag"], &env, file),
            ("from-env", &[], &env, file),
            ("from-file", &[], &[], file),
            ("new", &["--secret", "new,old"], &[], file),
        ] {
            let token = made(args, env, file).unwrap();
            let identifiers = verify(secret, &token, NOW).map(|claims| claims.ext);
            assert_eq!(identifiers.as_deref(), Ok(IDENTIFIERS), "{secret} {args:?}");
        }
    }

    #[test]
    fn it_is_valid_for_an_hour_or_as_asked() {
        for (args, exp) in [
            (&[][..], Some(NOW + 3600)),
            (&["--ttl", "90"], Some(NOW + 90)),
            (&["--ttl", "2h"], Some(NOW + 7200)),
            (&["--ttl", "10ms"], Some(NOW + 1)),
            (&["--ttl", "0"], None),
        ] {
            let token = made(args, &[], "secret = \"s\"").unwrap();
            assert_eq!(verify("s", &token, NOW).unwrap().exp, exp, "{args:?}");
        }
        assert!(command().try_get_matches_from(["token", "{}", "--ttl", "soon"]).is_err());
    }

    #[test]
    fn without_a_secret_it_says_what_to_do() {
        for args in [&[][..], &["--secret", "none"], &["--secret", "a", "--jwt_secret", "none"]] {
            let error = made(args, &[], "").unwrap_err().to_string();
            assert!(error.contains("--secret") && error.contains("ANYCABLE_SECRET"), "{error}");
        }
        let key_file = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/jwt/rsa.pem");
        let error = made(&["--jwt_key_file", key_file], &[], "").unwrap_err().to_string();
        assert!(error.contains("only verify"), "{error}");
    }

    #[test]
    fn identifiers_that_the_shell_took_apart_are_refused() {
        let (matches, config) = given(command(), &["{user_id:42}"], &[], "secret = \"s\"");
        assert!(output(&matches, &config, NOW).unwrap_err().to_string().contains("quote it"));
    }

    #[test]
    fn json_has_the_address_to_connect_to() {
        let json = |args: &[&str], file: &str| -> Value {
            let args = [&["--json", "--ttl", "60", "--secret", "s"], args].concat();
            serde_json::from_str(&made(&args, &[], file).unwrap()).unwrap()
        };
        let made = json(&[], "");
        let token = made["token"].as_str().unwrap();
        let url = format!("ws://localhost:8080/cable?jid={token}");
        let expected = json!({"token": token, "identifiers": IDENTIFIERS, "exp": NOW + 60, "url": url});
        assert_eq!(made, expected);

        let args = ["--host", "0.0.0.0", "--port", "9", "--jwt_param", "t", "--path", "/t/{x}/cable,/ws"];
        let url = json(&args, "")["url"].as_str().unwrap().to_owned();
        assert!(url.starts_with("ws://localhost:9/ws?t=ey"), "{url}");
        let url = json(&["--host", "::1"], "")["url"].as_str().unwrap().to_owned();
        assert!(url.starts_with("ws://[::1]:8080/cable?"), "{url}");
        assert_eq!(json(&["--port", "0"], "")["url"], Value::Null);
        assert_eq!(json(&["--path", "/*"], "")["url"], Value::Null);
    }
}
