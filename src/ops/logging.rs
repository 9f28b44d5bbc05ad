//! Log records on stdout, as text or JSON.
//!
//! Each record has `nodeid`, and `context`: the component that speaks, from a field of that name or from the module.
//! Fields of the spans around a record follow its own.

use crate::config::{LogFormat, LogLevel, Logging};
use jiff::ZonedDateTime;
use std::borrow::Cow;
use std::fmt::{self, Write as _};
use std::io::{IsTerminal, Write as _};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;

/// Libraries that log what only their authors act on.
const NOISY: [&str; 4] = ["hyper", "rustls", "tungstenite", "tokio_tungstenite"];

/// The NATS client calls every end of a connection an error of its own, because ours never reconnect by themselves; the
/// broker says what matters. Who debugs sees what it says, at no higher level than that.
const MISLEADING: &str = "async_nats";

/// Sends the process's records to stdout from now on. Call once, before the first record.
pub fn init(logging: &Logging, node_id: &str) {
    let coloured = logging.format == LogFormat::Text && std::io::stdout().is_terminal();
    let subscriber = subscriber(logging, node_id, coloured, std::io::stdout);
    // A test process may have one already: the first stays.
    let _ = tracing::subscriber::set_global_default(subscriber);
}

/// What [`init`] installs, writing elsewhere.
pub fn subscriber<W>(logging: &Logging, node_id: &str, coloured: bool, writer: W) -> impl Subscriber + Send + Sync
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let level = match logging.level {
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Error => LevelFilter::ERROR,
    };
    let quiet = level.min(LevelFilter::WARN);
    let misleading = if level == LevelFilter::DEBUG { quiet } else { LevelFilter::OFF };
    let targets = Targets::new()
        .with_default(level)
        .with_targets(NOISY.map(|target| (target, quiet)))
        .with_target(MISLEADING, misleading);
    let records = Records { format: logging.format, node_id: node_id.to_owned(), coloured, writer };
    tracing_subscriber::registry().with(records.with_filter(targets))
}

struct Records<W> {
    format: LogFormat,
    node_id: String,
    coloured: bool,
    writer: W,
}

impl<S, W> Layer<S> for Records<W>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: for<'a> MakeWriter<'a> + 'static,
{
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        if let Some(span) = context.span(id) {
            span.extensions_mut().insert(fields);
        }
    }

    fn on_record(&self, id: &Id, values: &tracing::span::Record<'_>, context: Context<'_, S>) {
        if let Some(span) = context.span(id)
            && let Some(fields) = span.extensions_mut().get_mut::<Fields>()
        {
            values.record(fields);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        for span in context.event_scope(event).into_iter().flatten() {
            if let Some(outer) = span.extensions().get::<Fields>() {
                fields.inherit(outer);
            }
        }
        let record = match self.format {
            LogFormat::Text => self.text(event.metadata(), &fields),
            LogFormat::Json => self.json(event.metadata(), &fields),
        };
        // A log that cannot be written has nowhere to say so.
        let _ = self.writer.make_writer().write_all(record.as_bytes());
    }
}

impl<W> Records<W> {
    /// `2024-03-06 10:35:39.297 INF message key=value key2="two words"`, local time.
    fn text(&self, metadata: &Metadata<'_>, fields: &Fields) -> String {
        let (level, colour) = match shown_level(metadata) {
            Level::ERROR => ("ERR", "31"),
            Level::WARN => ("WRN", "33"),
            Level::INFO => ("INF", "32"),
            Level::DEBUG | Level::TRACE => ("DBG", "34"),
        };
        let mut line = ZonedDateTime::now().strftime("%Y-%m-%d %H:%M:%S%.3f ").to_string();
        let _ = if self.coloured { write!(line, "\x1b[{colour}m{level}\x1b[0m") } else { write!(line, "{level}") };
        if !fields.message.is_empty() {
            let _ = write!(line, " {}", one_line(&fields.message));
        }
        let _ = write!(line, " nodeid={}", quoted(&self.node_id));
        let _ = write!(line, " context={}", quoted(fields.context(metadata)));
        for (name, value) in &fields.others {
            let _ = match value {
                serde_json::Value::String(text) => write!(line, " {name}={}", quoted(text)),
                number => write!(line, " {name}={number}"),
            };
        }
        line.push('\n');
        line
    }

    /// One object: `time`, `level`, `msg`, `nodeid`, `context`, then the details.
    fn json(&self, metadata: &Metadata<'_>, fields: &Fields) -> String {
        // Written by hand: the order of the keys is part of the form.
        let level = match shown_level(metadata) {
            Level::TRACE => "DEBUG",
            level => level.as_str(),
        };
        let time = ZonedDateTime::now().strftime("%Y-%m-%dT%H:%M:%S%.9f%:z").to_string();
        let mut line = format!("{{\"time\":{},\"level\":\"{level}\"", json_text(&time));
        let _ = write!(line, ",\"msg\":{}", json_text(&fields.message));
        let _ = write!(line, ",\"nodeid\":{}", json_text(&self.node_id));
        let _ = write!(line, ",\"context\":{}", json_text(fields.context(metadata)));
        for (name, value) in &fields.others {
            let _ = match value {
                serde_json::Value::String(text) => write!(line, ",{}:{}", json_text(name), json_text(text)),
                other => write!(line, ",{}:{other}", json_text(name)),
            };
        }
        line.push_str("}\n");
        line
    }
}

/// How severe a record is. What [`MISLEADING`] calls an error is nobody's alarm.
fn shown_level(metadata: &Metadata<'_>) -> Level {
    let library = metadata.target().split("::").next();
    match *metadata.level() {
        Level::ERROR if library == Some(MISLEADING) => Level::DEBUG,
        level => level,
    }
}

/// A JSON string of which no terminal, and no reader, makes anything but what it says.
fn json_text(text: &str) -> Cow<'static, str> {
    let json = serde_json::Value::from(text).to_string();
    if !json.contains(is_deceptive) {
        return json.into();
    }
    let mut plain = String::with_capacity(json.len() + 16);
    for c in json.chars() {
        match is_deceptive(c) {
            // All of them are below U+10000.
            true => write!(plain, "\\u{:04x}", u32::from(c)).expect("writing to a string cannot fail"),
            false => plain.push(c),
        }
    }
    plain.into()
}

/// Control characters (C0, DEL, C1), line and paragraph separators, and what turns the direction of text or is not seen.
fn is_deceptive(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// A value of `key=value`: in quotes if it would not end at the next blank.
fn quoted(text: &str) -> Cow<'_, str> {
    let plain = |c: char| !c.is_whitespace() && !is_deceptive(c) && !matches!(c, '"' | '=');
    if !text.is_empty() && text.chars().all(plain) { Cow::Borrowed(text) } else { json_text(text) }
}

/// A record is one line, and no text from outside forges another one or moves a terminal's cursor.
fn one_line(text: &str) -> Cow<'_, str> {
    if !text.contains(is_deceptive) {
        return Cow::Borrowed(text);
    }
    text.chars().map(|c| if is_deceptive(c) { c.escape_default().to_string() } else { c.to_string() }).collect()
}

/// What a record or a span says.
#[derive(Default)]
struct Fields {
    message: String,
    context: Option<String>,
    others: Vec<(&'static str, serde_json::Value)>,
}

impl Fields {
    fn put(&mut self, field: &Field, value: serde_json::Value) {
        match (field.name(), value) {
            ("message", serde_json::Value::String(text)) => self.message = text,
            ("context", serde_json::Value::String(text)) => self.context = Some(text),
            (name, value) => match self.others.iter_mut().find(|(known, _)| *known == name) {
                Some((_, old)) => *old = value,
                None => self.others.push((name, value)),
            },
        }
    }

    /// Adds what an outer span says; the inner word counts.
    fn inherit(&mut self, outer: &Self) {
        if self.context.is_none() {
            self.context.clone_from(&outer.context);
        }
        for (name, value) in &outer.others {
            if self.others.iter().all(|(known, _)| known != name) {
                self.others.push((name, value.clone()));
            }
        }
    }

    fn context<'a>(&'a self, metadata: &Metadata<'a>) -> &'a str {
        self.context.as_deref().unwrap_or_else(|| component(metadata.target()))
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, format!("{value:?}").into());
    }
    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value.into());
    }
    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value.into());
    }
    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value.into());
    }
    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value.into());
    }
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value.into());
    }
}

/// The component of a module, in the operator's words.
fn component(target: &str) -> &str {
    let mut path = target.split("::");
    match (path.next().unwrap_or_default(), path.next().unwrap_or_default(), path.next().unwrap_or_default()) {
        ("carrick", "transport", "ws") => "ws",
        ("carrick", "transport", _) => "http",
        ("carrick", "ingest", _) => "broadcast",
        ("carrick", "broker", _) => "broker",
        ("carrick", "nats", "embedded" | "supervisor") => "enats",
        ("carrick", "nats", _) => "nats",
        ("carrick", "auth", _) => "streams",
        ("carrick", "config" | "cli", _) => "config",
        ("carrick", ..) => "node",
        (library, ..) => library,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Page(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Page {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// What `speak` logs.
    fn logged(level: LogLevel, format: LogFormat, speak: impl FnOnce()) -> String {
        let page = Page::default();
        let logging = Logging { level, format, ..Logging::default() };
        let writer = page.clone();
        let subscriber = subscriber(&logging, "n0de", false, move || writer.clone());
        tracing::subscriber::with_default(subscriber, speak);
        let bytes = page.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    /// A text record without its time, whose form is checked.
    fn without_time(line: &str) -> &str {
        let (time, rest) = line.split_at("2024-03-06 10:35:39.297 ".len());
        let form: String = time.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
        assert_eq!(form, "0000-00-00 00:00:00.000 ");
        rest
    }

    #[test]
    fn text_records_have_level_message_node_context_and_details() {
        let text = logged(LogLevel::Info, LogFormat::Text, || {
            tracing::info!(context = "ws", sid = "abc", num = 3, why = "two words", "client gone");
        });
        assert_eq!(without_time(&text), "INF client gone nodeid=n0de context=ws sid=abc num=3 why=\"two words\"\n");
    }

    #[test]
    fn an_empty_message_leaves_no_hole() {
        let text = logged(LogLevel::Info, LogFormat::Text, || tracing::info!(context = "metrics", clients_num = 2));
        assert_eq!(without_time(&text), "INF nodeid=n0de context=metrics clients_num=2\n");
    }

    #[test]
    fn json_records_have_the_fields_in_order_and_keep_types() {
        let text = logged(LogLevel::Debug, LogFormat::Json, || {
            tracing::warn!(context = "broker", num = 3, on = true, "store \"a\" away");
        });
        let (time, rest) = text.split_once(",\"level\"").unwrap();
        assert_eq!(
            rest,
            ":\"WARN\",\"msg\":\"store \\\"a\\\" away\",\"nodeid\":\"n0de\",\"context\":\"broker\",\"num\":3,\"on\":true}\n"
        );
        let time = time.strip_prefix("{\"time\":\"").unwrap().trim_end_matches('"');
        time.parse::<jiff::Timestamp>().expect("RFC 3339");
        assert_eq!(time.find('.').map(|dot| time[dot + 1..].chars().take_while(char::is_ascii_digit).count()), Some(9));
    }

    #[test]
    fn the_level_and_the_libraries_limit_hold() {
        let text = logged(LogLevel::Debug, LogFormat::Text, || {
            tracing::debug!("ours");
            tracing::info!(target: "async_nats", "theirs");
            tracing::warn!(target: "async_nats", "their warning");
        });
        assert!(text.contains("DBG ours") && text.contains("WRN their warning") && !text.contains("theirs"), "{text}");
        let text = logged(LogLevel::Error, LogFormat::Text, || {
            tracing::error!(target: "async_nats", "connection lost");
            tracing::warn!(target: "hyper", "their warning");
            tracing::warn!("ours");
            tracing::error!("failure");
        });
        assert!(without_time(&text).starts_with("ERR failure") && text.lines().count() == 1, "{text}");
    }

    /// It says so at each end of a connection, also at those that are wanted.
    #[test]
    fn what_the_nats_client_calls_an_error_is_shown_to_who_debugs_as_no_error() {
        for (format, wanted) in
            [(LogFormat::Text, "DBG max reconnection"), (LogFormat::Json, r#""level":"DEBUG","msg":"max"#)]
        {
            let text = logged(LogLevel::Debug, format, || {
                tracing::error!(target: "async_nats::connector", "max reconnection attempts reached");
                tracing::error!(target: "async_nats_of_others", "failure");
            });
            let lines: Vec<_> = text.lines().collect();
            assert!(lines[0].contains(wanted), "{text}");
            assert!(lines[1].contains(" ERR failure") || lines[1].contains(r#""level":"ERROR""#), "{text}");
        }
    }

    #[test]
    fn spans_lend_their_fields_and_the_inner_word_counts() {
        let text = logged(LogLevel::Info, LogFormat::Text, || {
            let _session = tracing::info_span!("session", context = "ws", sid = "abc", stream = "outer").entered();
            tracing::info!(stream = "inner", "delivered");
        });
        assert_eq!(without_time(&text), "INF delivered nodeid=n0de context=ws stream=inner sid=abc\n");
    }

    #[test]
    fn text_from_outside_cannot_forge_a_record() {
        let text = logged(LogLevel::Info, LogFormat::Text, || {
            tracing::info!(context = "ws", data = "a\nb=\"c\"\x1b[2J", "x\n2024 INF forged");
        });
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(!text.contains('\x1b'), "{text:?}");
        assert!(text.contains("data=\"a\\nb=\\\"c\\\"\\u001b[2J\""), "{text}");
    }

    #[test]
    fn row_25_no_character_deceives_a_reader() {
        let outside = "a\u{9b}2J\u{7f}\u{202e}b\u{2066}c\u{200f}d\u{2028}e\u{feff}";
        for format in [LogFormat::Text, LogFormat::Json] {
            let text = logged(LogLevel::Info, format, || tracing::info!(context = "ws", data = outside, "{outside}"));
            assert!(!text.trim_end_matches('\n').contains(is_deceptive), "{text:?}");
            assert!(text.contains("\\u009b2J\\u007f\\u202eb"), "{text}");
            if format == LogFormat::Json {
                let read: serde_json::Value = serde_json::from_str(&text).unwrap();
                assert_eq!((read["msg"].as_str(), read["data"].as_str()), (Some(outside), Some(outside)));
            }
        }
    }

    #[test]
    fn the_context_follows_from_the_module() {
        assert_eq!(component("carrick::transport::ws::upgrade"), "ws");
        assert_eq!(component("carrick::nats::embedded"), "enats");
        assert_eq!(component("carrick::session"), "node");
        assert_eq!(component("async_nats::connector"), "async_nats");
    }
}
