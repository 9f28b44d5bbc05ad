//! What a server does not have is not checked, unless it is required: then it is a broken promise.

use crate::checker::{Checked, Checker};
use crate::harness::{BROADCAST_KEY, Backend, Server};
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

/// What names the client that must not get a message, and a word as long that nobody knows.
const EXCLUDE: &[u8] = b"\"exclude_socket\"";
const FORGOTTEN: &[u8] = b"\"exclude_nobody\"";

/// Passes publications on, and nobody is excluded from them: with this before it, a server has no `exclude_socket`.
fn without_exclusion(to: SocketAddr) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("an address is free");
    let address = listener.local_addr().expect("it has an address");
    // Both ends are over with the checker's connections, and the thread with the process.
    std::thread::spawn(move || {
        for from in listener.incoming().map_while(Result::ok) {
            let Ok(to) = TcpStream::connect(to) else { continue };
            let (Ok(answers), Ok(back)) = (to.try_clone(), from.try_clone()) else { continue };
            std::thread::spawn(move || pass_on(from, to, true));
            std::thread::spawn(move || pass_on(answers, back, false));
        }
    });
    address
}

fn pass_on(mut from: TcpStream, mut to: TcpStream, forget: bool) {
    let mut buffer = vec![0; 1 << 16];
    let mut held = Vec::new();
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        held.extend_from_slice(&buffer[..read]);
        // A request with a body ends with it: no word is cut in two.
        if forget && !held.ends_with(b"}") && !held.ends_with(b"]") {
            continue;
        }
        while let Some(at) = held.windows(EXCLUDE.len()).position(|word| forget && word == EXCLUDE) {
            held[at..at + EXCLUDE.len()].copy_from_slice(FORGOTTEN);
        }
        if to.write_all(&held).is_err() {
            break;
        }
        held.clear();
    }
    // It may be closed already.
    let _ = to.shutdown(Shutdown::Both);
}

fn check(server: &Server, publish: SocketAddr, more: &[&str]) -> Checked {
    let mut arguments = vec![
        format!("--url=ws://{}/cable", server.address()),
        format!("--publish-url=http://{publish}/_broadcast"),
        format!("--key={BROADCAST_KEY}"),
    ];
    let usual = ["--public-streams", "--clients=10", "--duration=8", "--away=0.1-0.5"];
    arguments.extend(usual.iter().chain(more).map(|argument| (*argument).to_owned()));
    Checker::with(&arguments).wait(Duration::from_secs(120))
}

#[test]
fn a_server_that_excludes_nobody_fails_where_that_is_required() {
    let server = Backend::Memory.builder().option("history_limit", 10_000).start();
    let publish = without_exclusion(server.broadcast_address());
    let checked = check(&server, publish, &[]);
    assert_eq!((checked.status, &checked.report["features"]["exclusion"]), (Some(0), &false.into()), "{checked:?}");
    for required in ["exclusion", "all"] {
        let checked = check(&server, publish, &[&format!("--require={required}")]);
        assert_eq!(checked.status, Some(1), "--require={required}: {checked:?}");
        assert_eq!(checked.report["violations"], serde_json::json!(["lacking"]), "{checked:?}");
        assert_eq!(checked.report["lacking"], serde_json::json!(["exclusion"]), "{checked:?}");
    }
    assert_eq!(check(&server, server.broadcast_address(), &["--require=all"]).status, Some(0), "with nothing between");
}

#[test]
fn everything_that_is_required_is_checked_by_clients_that_stay_for_half_a_second() {
    let server = Backend::Memory.builder().option("history_limit", 10_000).start();
    let checked = check(&server, server.broadcast_address(), &["--require=all", "--stay=0.1-0.6"]);
    assert_eq!(checked.status, Some(0), "{checked:?}");
    for name in ["batches", "transient", "exclusion", "whispers", "removals", "base"] {
        assert!(checked.report["exercised"][name].as_u64() > Some(0), "{name}: {checked:?}");
    }
}
