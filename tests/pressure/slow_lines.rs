//! A client whose line is slow, with real kernels: only they know what a peer has acknowledged.
//!
//! The trial is a program of its own in a network namespace of its own, with the server in a second one.

use crate::harness::client::Event;
use crate::harness::namespaces::{done, in_a_new_one, possible, second};
use crate::harness::process::Process;
use crate::harness::*;
use serde_json::json;
use std::process::Command;
use std::time::{Duration, Instant};

const TRIAL: &str = "pressure::slow_lines::a_slow_line_in_a_namespace_of_its_own";
/// The server's end of the path.
const SERVER: &str = "10.79.1.2";
/// Ten of these without anything taken end a connection.
const WRITE_TIMEOUT: Duration = Duration::from_secs(1);
/// A device follows, and then how slow it is.
const TC: [&str; 4] = ["tc", "qdisc", "replace", "dev"];
const SHAPE: [&str; 8] = ["root", "tbf", "rate", "16kbit", "burst", "1600", "limit", "6000"];

/// Traffic can be shaped as the trial needs it: `tc` is there, and so is the kernel's token bucket.
fn can_be_slow() -> bool {
    let tried = in_a_new_one().args(TC).arg("lo").args(SHAPE).output();
    let why = match tried {
        Ok(output) if output.status.success() => return true,
        Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        Err(error) => error.to_string(),
    };
    assert!(std::env::var_os("CI").is_none(), "no slow lines, and CI must have them: {why}");
    eprintln!("NOT RUN, no slow lines here (tc of iproute2 and the kernel's sch_tbf are needed): {why}");
    false
}

#[test]
fn a_client_on_a_slow_line_is_not_taken_for_one_that_does_not_read() {
    if !(possible() && can_be_slow()) {
        return;
    }
    let folder = tempfile::Builder::new().prefix("slow-").tempdir_in(env!("CARGO_TARGET_TMPDIR"));
    let folder = folder.expect("a folder can be created");
    let mut command = in_a_new_one();
    command.arg(std::env::current_exe().expect("this program has a path"));
    command.args(["--ignored", "--exact", "--nocapture", TRIAL]);
    let mut process = Process::spawn(command, &folder.path().join("trial.log"));
    let status = process.wait(Duration::from_secs(150));
    let said = process.log();
    let passed = status.success() && said.contains("1 passed");
    let kept = (!passed).then(|| folder.keep());
    assert!(passed, "{status}, see {kept:?}\n{said}");
}

/// A line of 16 kbit/s whose client reads everything at once: it acknowledges something every few seconds, but half a minute
/// passes before the server's kernel takes more. Then the line is cut.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a network namespace of its own"]
async fn a_slow_line_in_a_namespace_of_its_own() {
    let folder = tempfile::Builder::new().prefix("slow-").tempdir_in(env!("CARGO_TARGET_TMPDIR"));
    let folder = folder.expect("a folder can be created");
    let there = second(&folder.path().join("log"));
    let pid = there.pid().to_string();
    let on_server = |words: &[&str]| done(Command::new("nsenter").args(["-t", &pid, "--net", "--"]).args(words));
    let link = ["link", "add", "near", "type", "veth", "peer", "name", "far", "netns", &pid];
    done(Command::new("ip").args(link));
    done(Command::new("ip").args(["addr", "add", "10.79.1.1/24", "dev", "near"]));
    done(Command::new("ip").args(["link", "set", "near", "up"]));
    on_server(&["ip", "addr", "add", &format!("{SERVER}/24"), "dev", "far"]);
    on_server(&["ip", "link", "set", "far", "up"]);
    on_server(&["ip", "link", "set", "lo", "up"]);
    let server = Server::on(Backend::Memory)
        .option("metrics_http", "/metrics")
        .option("ws_write_timeout", format!("{}s", WRITE_TIMEOUT.as_secs()))
        .option("ping_interval", 0)
        .replace("host", SERVER)
        .namespace(there.pid())
        .start();
    let text = "x".repeat(5_000);
    for _ in 0..100 {
        server.publish("chat", json!(text)).await;
    }

    on_server(&[&TC[..], &["far"], &SHAPE[..]].concat());
    let mut client = server.dial().connect().await;
    client.subscribe_with(&public("chat"), since(unix_now() - 60)).await;
    let begin = Instant::now();
    let mut bytes = 0;
    while begin.elapsed() < 4 * 10 * WRITE_TIMEOUT {
        match client.event_within(Duration::from_secs(15)).await {
            Some(Event::Frame(text)) => bytes += text.len(),
            other => panic!("{other:?} after {:?} and {bytes} bytes\n{}", begin.elapsed(), server.log()),
        }
    }
    assert!(bytes > 30_000, "it has read all the time: {bytes} bytes");

    // Packets of the server vanish: its client takes nothing any more.
    on_server(&[
        "ip",
        "neigh",
        "replace",
        "10.79.1.1",
        "lladdr",
        "02:00:00:00:00:ff",
        "dev",
        "far",
        "nud",
        "permanent",
    ]);
    let cut = Instant::now();
    // What was queued behind the address of before arrives yet, and is acknowledged: the server counts from there on.
    // It comes after the look before: this program may be late to see it.
    let (mut taken, mut looked) = (cut, cut);
    while !server.log().contains("event=client_not_reading") {
        assert!(cut.elapsed() < 20 * WRITE_TIMEOUT, "nobody noticed\n{}", server.log());
        let before = std::mem::replace(&mut looked, Instant::now());
        if let Some(Event::Frame(_)) = client.event_within(Duration::from_millis(50)).await {
            taken = before;
        }
    }
    assert!(taken.elapsed() > 9 * WRITE_TIMEOUT, "after {:?}", taken.elapsed());
}
