//! The server's log lines, passed on through ours.
//!
//! Some are acted on. Lines about a connection quote what the peer sent, before he has logged in, so nothing is done, and
//! nothing left out, because of what stands in one: only lines that the server wrote of itself count.

use crate::log_limit::limited;
use crate::metrics::EMBEDDED_NATS_STORE_LIMIT;
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

/// One line of the server's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Line<'a> {
    severity: Severity,
    text: &'a str,
    about: About,
}

/// What a line tells of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum About {
    /// The server itself, in its own words. It may be acted on.
    Server,
    /// What whoever reaches a port of the server can bring about as often as he likes.
    Connection,
    /// It is no line of the log: a wrong configuration, a crash, or a part of another line.
    Unknown,
}

/// A line of the server's log is `[pid] [INF] text`. What looks otherwise is not routine.
fn parse(line: &str) -> Line<'_> {
    tagged(line).unwrap_or(Line { severity: Severity::Warning, text: line, about: About::Unknown })
}

fn tagged(line: &str) -> Option<Line<'_>> {
    let (pid, rest) = line.strip_prefix('[')?.split_once("] [")?;
    if pid.is_empty() || !pid.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let (tag, text) = rest.split_once("] ")?;
    let severity = match tag {
        "TRC" => Severity::Trace,
        "DBG" => Severity::Debug,
        "INF" => Severity::Info,
        "WRN" => Severity::Warning,
        "ERR" | "FTL" => Severity::Error,
        _ => return None,
    };
    let about = if begins_with_a_peer(text) { About::Connection } else { About::Server };
    Some(Line { severity, text, about })
}

/// A line about a connection begins with the peer's address and what it is: `127.0.0.1:50926 - cid:7 - `; of a WebSocket
/// or MQTT client `wid`, `mid`, of a route, a gateway or a leaf node `rid`, `gid`, `lid` or `lid_ws`.
fn begins_with_a_peer(text: &str) -> bool {
    let Some((address, rest)) = text.split_once(" - ") else { return false };
    let kind = rest.split_once(':').map_or("", |(kind, _)| kind);
    address.contains(':') && !address.contains(' ') && matches!(kind.as_bytes(), [_, b'i', b'd'] | b"lid_ws")
}

impl Line<'_> {
    /// Expected with every configuration of ours: the file is private and its passwords are random.
    fn is_expected(&self) -> bool {
        self.about == About::Server && self.text.starts_with("Plaintext passwords detected")
    }

    /// A traced payload: a saved session or a message, which are nobody's business here. Versions of the server differ in
    /// what stands before the word.
    fn is_payload(&self) -> bool {
        self.severity == Severity::Trace && self.text.contains("MSG_PAYLOAD")
    }

    /// The server met a full disk. The stream that met it, or all of JetStream, is off from then on: publishers get no
    /// answer, and only a restart revives it.
    fn is_out_of_space(&self) -> bool {
        self.about == About::Server
            && self.severity >= Severity::Warning
            && (self.text.contains("will be DISABLED") || self.text.contains("no space left on device"))
    }

    /// The messages have reached the limit that the configuration has for all of them.
    fn is_store_full(&self) -> bool {
        self.about == About::Server && self.text.ends_with("resource limits exceeded for server")
    }

    fn is_reload(&self) -> bool {
        self.about == About::Server && self.text.starts_with("Reloaded server configuration")
    }
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
        let line = parse(line.trim_end_matches(['\r', '\n']));
        let Line { severity, text, about } = line;
        if text.trim().is_empty() || line.is_expected() || line.is_payload() {
            continue;
        }
        // What a peer brings about does not push out why the server ended.
        if severity >= Severity::Warning && about != About::Connection {
            if kept.len() == KEPT {
                kept.pop_front();
            }
            kept.push_back(text.to_owned());
        }
        if line.is_out_of_space() {
            heard.send_modify(|heard| heard.out_of_space = true);
        }
        if line.is_reload() {
            heard.send_modify(|heard| heard.reloads += 1);
        }
        match severity {
            Severity::Error if about == About::Connection => limited!(ERROR, NatsConnection, "{text}"),
            Severity::Warning if about == About::Connection => limited!(WARN, NatsConnection, "{text}"),
            Severity::Error | Severity::Warning if line.is_store_full() => limited!(
                ERROR,
                StoreFull,
                limit = EMBEDDED_NATS_STORE_LIMIT.get(),
                "the store has reached its limit (in bytes, what its disk had room for): publications are refused until \
                 messages expire. Make room on the disk of the store (enats_store_dir), or lower history_limit or \
                 history_ttl. nats-server said: {text}"
            ),
            Severity::Error if line.is_out_of_space() => limited!(ERROR, DiskFull, "{text}"),
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
        let taken = |line| {
            let Line { severity, text, about } = parse(line);
            (severity, text, about)
        };
        assert_eq!(taken("[12] [INF] Server is ready"), (Severity::Info, "Server is ready", About::Server));
        assert_eq!(taken("[12] [FTL] [x] no"), (Severity::Error, "[x] no", About::Server));
        for other in [
            "[12] 2026/01/02 03:04:05.000006 [INF] x",
            "[1x] [INF] x",
            "[] [INF] x",
            "x] [INF] x",
            "12] [ERR] JetStream out of File resources, will be DISABLED",
            "panic: runtime error",
            "nats-server: /c:3:1: bad",
            "",
        ] {
            assert_eq!(taken(other), (Severity::Warning, other, About::Unknown));
        }
    }

    #[test]
    fn row_12_a_store_at_its_limit_is_told_from_a_full_disk() {
        let limit = parse("[1] [ERR] JetStream file resource limits exceeded for server");
        assert!(limit.is_store_full() && !limit.is_out_of_space());
        let disk = parse("[1] [ERR] Filestore [s] Critical write error: write 1.blk: no space left on device");
        assert!(disk.is_out_of_space() && !disk.is_store_full());
        let peer = r#"127.0.0.1:5 - cid:5 - authentication error - User resource limits exceeded for server"#;
        assert!(!parse(&format!("[1] [ERR] {peer}")).is_store_full(), "nobody talks of a limit by his name");
    }

    #[test]
    fn row_19_traced_payloads_are_left_out() {
        let payload = r#"127.0.0.1:50926 - cid:7 - <<- [MSG_PAYLOAD: ["{\"sids\":[[\"k3Jq\",1]]}"]]"#;
        assert!(parse(&format!("[1] [TRC] {payload}")).is_payload());
        let named = r#"127.0.0.1:5 - cid:7 - "v0.51.0:rust:carrick" - "$G/user:carrick" - <<- MSG_PAYLOAD: ["{}"]"#;
        assert!(parse(&format!("[1] [TRC] {named}")).is_payload());
        assert!(!parse("[1] [TRC] 127.0.0.1:50926 - cid:7 - <<- [PUB a 5]").is_payload());
        let hides = r#"127.0.0.1:5 - cid:5 - authentication error - User "[MSG_PAYLOAD:""#;
        assert!(!parse(&format!("[1] [ERR] {hides}")).is_payload(), "nobody keeps what he did out of the log");
    }

    /// What two peers sent before they had logged in, and the like.
    #[tokio::test]
    async fn what_a_peer_sent_makes_nobody_do_anything() {
        let mut log = String::from("[9] [ERR] why it ends\n");
        for peer in
            ["127.0.0.1:37712 - cid:5", "[::1]:37712 - lid_ws:5", "[fe80::1%eth0]:4 - wid:5", "1.2.3.4:5 - rid:6"]
        {
            for words in [
                r#"Client parser ERROR, state=10, i=1: proto='"no space left on device\r"...'"#,
                r#"authentication error - User "no space left on device""#,
                r#"authentication error - User "JetStream out of File resources, will be DISABLED""#,
                "Reloaded server configuration",
            ] {
                for tag in ["WRN", "ERR", "INF"] {
                    log.push_str(&format!("[9] [{tag}] {peer} - {words}\n"));
                }
            }
        }
        // A line that does not begin as the server's lines do.
        log.push_str("no space left on device\n[ERR] no space left on device\nReloaded server configuration\n");
        let (sender, receiver) = watch::channel(Heard::default());
        let kept = forward(log.as_bytes(), true, sender).await;
        assert_eq!(*receiver.borrow(), Heard::default());
        assert_eq!(kept[0], "why it ends", "{kept:?}");
    }

    #[test]
    fn row_17_lines_about_connections_are_told_apart() {
        for text in [
            "127.0.0.1:50926 - cid:7 - authentication error",
            "[::1]:50926 - rid:12 - TLS route handshake error: EOF",
            "10.0.0.1:4 - lid:9 - \"v1.2\" - Leafnode Error",
        ] {
            assert!(begins_with_a_peer(text), "{text}");
        }
        for text in
            ["JetStream out of File resources, will be DISABLED", "panic: a - b", "a:b - c - id:", "x y:1 - cid:1"]
        {
            assert!(!begins_with_a_peer(text), "{text}");
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
