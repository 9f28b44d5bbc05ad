//! Remote disconnects where clients prove who they are: by tokens, and to an application.

use crate::checker::{Checked, Checker};
use crate::harness::{Application, BROADCAST_KEY, Backend, Server, Wire};
use std::process::Command;
use std::time::Duration;

const JWT_SECRET: &str = "t0ken-secret";

fn check(server: &Server, query: &str, seconds: u32, more: &[&str]) -> Checked {
    let mut arguments = vec![
        format!("--url=ws://{}/cable{query}", server.address()),
        format!("--publish-url=http://{}/_broadcast", server.broadcast_address()),
        format!("--key={BROADCAST_KEY}"),
        format!("--duration={seconds}"),
    ];
    let usual = ["--public-streams", "--clients=10", "--rate=50"];
    arguments.extend(usual.iter().chain(more).map(|argument| (*argument).to_owned()));
    Checker::with(&arguments).wait(Duration::from_secs(120))
}

#[track_caller]
fn assert_clients_were_thrown_out(checked: &Checked) {
    assert_eq!(checked.status, Some(0), "{checked:?}");
    assert_eq!(checked.report["features"]["removals"], true, "{checked:?}");
    let counts = ["removals", "revived", "lost", "duplicated"].map(|name| checked.count(name));
    assert!(counts[0] > 0 && counts[1..] == [0; 3], "{counts:?} in {checked:?}");
}

fn with_tokens() -> Server {
    Backend::ExternalNats.builder().without("noauth").replace("jwt_secret", JWT_SECRET).start()
}

#[test]
fn clients_with_tokens_are_thrown_out_by_their_identifiers() {
    assert_clients_were_thrown_out(&check(&with_tokens(), "", 12, &[&format!("--jwt-secret={JWT_SECRET}")]));
}

#[test]
fn clients_of_an_application_are_thrown_out_by_the_identifiers_that_it_gives() {
    let app = Application::usual(Wire::Http);
    let server = app.behind(Backend::ExternalNats.builder()).start();
    assert_clients_were_thrown_out(&check(&server, "?user={client}", 12, &[r#"--identifiers={"user":"{client}"}"#]));
}

#[test]
fn where_all_clients_are_the_same_one_nobody_is_thrown_out() {
    let server = with_tokens();
    let mut command = Command::new(crate::deployment::program());
    let output = command.args(["token", r#"{"user":1}"#, "--jwt_secret", JWT_SECRET]).output().expect("it can be run");
    let token = String::from_utf8(output.stdout).expect("a token is text");
    let checked = check(&server, &format!("?jid={}", token.trim()), 2, &[]);
    assert_eq!((checked.status, &checked.report["features"]["removals"]), (Some(0), &false.into()), "{checked:?}");
}
