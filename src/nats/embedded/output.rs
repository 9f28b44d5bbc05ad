//! The server's log lines, passed on through ours.

use crate::log_limit::limited;
use std::collections::VecDeque;
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::sync::watch;

/// Lines kept for the error of a server that ended.
const KEPT: usize = 5;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Severity {
    Trace,
    Debug,
    Info,
    Warning,
    Error,
}

/// A line of the server's log is `[pid] [INF] text`. What looks otherwise (a wrong configuration, a crash) is not routine.
fn parse(line: &str) -> (Severity, &str) {
    let rest = line.split_once("] ").map_or(line, |(_, rest)| rest);
    let Some((tag, text)) = rest.strip_prefix('[').and_then(|rest| rest.split_once("] ")) else {
        return (Severity::Warning, line);
    };
    match tag {
        "TRC" => (Severity::Trace, text),
        "DBG" => (Severity::Debug, text),
        "INF" => (Severity::Info, text),
        "WRN" => (Severity::Warning, text),
        "ERR" | "FTL" => (Severity::Error, text),
        _ => (Severity::Warning, line),
    }
}

/// Expected with every configuration of ours: the file is private and its passwords are random.
fn is_expected(text: &str) -> bool {
    text.starts_with("Plaintext passwords detected")
}

/// A traced payload: a saved session or a message, which are nobody's business here.
fn is_payload(text: &str) -> bool {
    text.contains("[MSG_PAYLOAD:")
}

/// What whoever reaches a port of the server can bring about as often as he likes. Such a line begins with the peer's
/// address and what it is: `127.0.0.1:50926 - cid:7 - `; of a route, a gateway or a leaf node `rid`, `gid`, `lid`.
fn is_about_a_connection(text: &str) -> bool {
    let Some((address, rest)) = text.split_once(" - ") else { return false };
    let kind = rest.split_once("id:").map_or("", |(kind, _)| kind);
    address.contains(':') && !address.contains(' ') && kind.len() == 1
}

/// The disk is full. The stream that met it, or all of JetStream, is off from then on: publishers get no answer, and only
/// a restart revives it.
fn is_out_of_space(text: &str) -> bool {
    text.contains("will be DISABLED") || text.contains("no space left on device")
}

/// What the server has said that something must be done about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Heard {
    pub out_of_space: bool,
    /// How often it has read its configuration again, and uses it.
    pub reloads: u64,
}

/// Passes on lines until the server closes its end. Routine lines only on request (`verbose`). Answers with the last
/// warnings and errors.
pub(super) async fn forward(source: impl AsyncRead + Unpin, verbose: bool, heard: watch::Sender<Heard>) -> Vec<String> {
    let mut kept = VecDeque::new();
    let mut source = BufReader::new(source);
    let mut bytes = Vec::new();
    loop {
        bytes.clear();
        // Lines are short: the server cuts traced messages (see the configuration).
        match source.read_until(b'\n', &mut bytes).await {
            Ok(0) => break,
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(context = "enats", %error, "the log of nats-server cannot be read any more");
                break;
            }
        }
        let line = String::from_utf8_lossy(&bytes);
        let (severity, text) = parse(line.trim_end_matches(['\r', '\n']));
        if text.trim().is_empty() || is_expected(text) || is_payload(text) {
            continue;
        }
        if severity >= Severity::Warning {
            if kept.len() == KEPT {
                kept.pop_front();
            }
            kept.push_back(text.to_owned());
            if is_out_of_space(text) {
                heard.send_modify(|heard| heard.out_of_space = true);
            }
        }
        if text.starts_with("Reloaded server configuration") {
            heard.send_modify(|heard| heard.reloads += 1);
        }
        match severity {
            Severity::Error if is_about_a_connection(text) => limited!(ERROR, NatsConnection, "{text}"),
            Severity::Warning if is_about_a_connection(text) => limited!(WARN, NatsConnection, "{text}"),
            Severity::Error => tracing::error!(context = "enats", "{text}"),
            Severity::Warning => tracing::warn!(context = "enats", "{text}"),
            _ if !verbose => {}
            Severity::Info => tracing::info!(context = "enats", "{text}"),
            Severity::Debug => tracing::debug!(context = "enats", "{text}"),
            Severity::Trace => tracing::debug!(context = "enats", "{text}"),
        }
    }
    kept.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_severity_and_text_from_a_line() {
        assert_eq!(parse("[12] [INF] Server is ready"), (Severity::Info, "Server is ready"));
        assert_eq!(parse("[12] [FTL] [x] no"), (Severity::Error, "[x] no"));
        assert_eq!(parse("[12] 2026/01/02 03:04:05.000006 [INF] x").0, Severity::Warning);
        assert_eq!(parse("panic: runtime error"), (Severity::Warning, "panic: runtime error"));
        assert_eq!(parse("nats-server: /c:3:1: bad"), (Severity::Warning, "nats-server: /c:3:1: bad"));
        assert_eq!(parse(""), (Severity::Warning, ""));
    }

    #[test]
    fn row_19_traced_payloads_are_left_out() {
        assert!(is_payload(r#"127.0.0.1:50926 - cid:7 - <<- [MSG_PAYLOAD: ["{\"sids\":[[\"k3Jq\",1]]}"]]"#));
        assert!(!is_payload("127.0.0.1:50926 - cid:7 - <<- [PUB a 5]"));
    }

    #[test]
    fn row_17_lines_about_connections_are_told_apart() {
        for text in [
            "127.0.0.1:50926 - cid:7 - authentication error",
            "[::1]:50926 - rid:12 - TLS route handshake error: EOF",
            "10.0.0.1:4 - lid:9 - \"v1.2\" - Leafnode Error",
        ] {
            assert!(is_about_a_connection(text), "{text}");
        }
        for text in
            ["JetStream out of File resources, will be DISABLED", "panic: a - b", "a:b - c - id:", "x y:1 - cid:1"]
        {
            assert!(!is_about_a_connection(text), "{text}");
        }
    }

    #[tokio::test]
    async fn keeps_the_last_troubles_and_tells_of_a_full_disk() {
        let (sender, receiver) = watch::channel(Heard::default());
        let mut log = String::from("[1] [INF] routine\n[1] [WRN] Plaintext passwords detected, use nkeys\n");
        for n in 0..7 {
            log.push_str(&format!("[1] [ERR] trouble {n}\n"));
        }
        log.push_str("[1] [INF] Reloaded server configuration (sha256:00)\n");
        log.push_str("[1] [ERR] JetStream out of File resources, will be DISABLED");
        let kept = forward(log.as_bytes(), false, sender).await;
        assert_eq!(kept.len(), KEPT);
        assert_eq!(kept[0], "trouble 3");
        assert_eq!(*receiver.borrow(), Heard { out_of_space: true, reloads: 1 });
    }
}
