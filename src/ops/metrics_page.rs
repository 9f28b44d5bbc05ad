//! The metrics page for Prometheus: text format, names as AnyCable's dashboards expect them.

use crate::{log_limit, metrics};
use axum::Router;
use axum::routing;
use http::header::CONTENT_TYPE;
use std::fmt::Write;

const PREFIX: &str = "anycable_go_";

/// A router with the page alone, to be merged with others of the same listener. `tags` are put on every sample.
pub fn router(path: &str, tags: &[(String, String)]) -> Router {
    let labels = labels(tags);
    Router::new().route(
        path,
        routing::get(move || {
            super::files::measure();
            let samples: Vec<_> = metrics::snapshot().into_iter().chain(log_limit::samples()).collect();
            let mut page = page(&samples, &labels);
            for (name, help, histogram) in metrics::histograms() {
                page += &histogram_block(name, help, &histogram.read(), &labels);
            }
            async { ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], page) }
        }),
    )
}

/// `{name="value", …}`, or nothing without tags.
fn labels(tags: &[(String, String)]) -> String {
    if tags.is_empty() {
        return String::new();
    }
    let escape = |value: &str| value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    let tags: Vec<_> = tags.iter().map(|(name, value)| format!("{name}=\"{}\"", escape(value))).collect();
    format!("{{{}}}", tags.join(", "))
}

fn page(samples: &[metrics::Sample], labels: &str) -> String {
    let mut page = String::new();
    let mut block = "";
    for metrics::Sample { name, help, value, kind, label } in samples {
        if *name != block {
            let kind = kind.to_ascii_lowercase();
            write!(page, "\n# HELP {PREFIX}{name} {help}\n# TYPE {PREFIX}{name} {kind}\n")
                .expect("writing to a string cannot fail");
            block = name;
        }
        let labels = label.map_or(labels.to_owned(), |(label, value)| with_label(labels, label, value));
        writeln!(page, "{PREFIX}{name}{labels} {value}").expect("writing to a string cannot fail");
    }
    page
}

/// A label of the metric's own beside the configured ones. Its value needs no escaping.
fn with_label(labels: &str, name: &str, value: &str) -> String {
    let others = labels.strip_prefix('{').and_then(|labels| labels.strip_suffix('}'));
    let others = others.map_or(String::new(), |others| format!("{others}, "));
    format!("{{{others}{name}=\"{value}\"}}")
}

/// Buckets by their upper bound, then sum and count. A bucket's bound is a label beside the configured ones.
fn histogram_block(name: &str, help: &str, reading: &metrics::Reading, labels: &str) -> String {
    let mut block = format!("\n# HELP {PREFIX}{name} {help}\n# TYPE {PREFIX}{name} histogram\n");
    let bounds = metrics::BOUNDS.iter().map(|(_, shown)| *shown).chain(["+Inf"]);
    for (bound, count) in bounds.zip(reading.cumulative) {
        writeln!(block, "{PREFIX}{name}_bucket{} {count}", with_label(labels, "le", bound))
            .expect("writing to a string cannot fail");
    }
    let (seconds, micros) = (reading.micros / 1_000_000, reading.micros % 1_000_000);
    writeln!(
        block,
        "{PREFIX}{name}_sum{labels} {seconds}.{micros:06}\n{PREFIX}{name}_count{labels} {}",
        reading.count()
    )
    .expect("writing to a string cannot fail");
    block
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Sample;

    #[test]
    fn one_block_per_metric() {
        let samples = [
            Sample { name: "clients_num", help: "authenticated sessions", value: 3, kind: "Gauge", label: None },
            Sample { name: "client_msg_total", help: "commands", value: 7, kind: "Counter", label: None },
        ];
        let tags = [("env".to_owned(), "prod".to_owned()), ("zone".to_owned(), "a\"b".to_owned())];
        let expected = "\n# HELP anycable_go_clients_num authenticated sessions\n\
            # TYPE anycable_go_clients_num gauge\n\
            anycable_go_clients_num{env=\"prod\", zone=\"a\\\"b\"} 3\n\
            \n# HELP anycable_go_client_msg_total commands\n\
            # TYPE anycable_go_client_msg_total counter\n\
            anycable_go_client_msg_total{env=\"prod\", zone=\"a\\\"b\"} 7\n";
        assert_eq!(page(&samples, &labels(&tags)), expected);
        assert!(page(&samples, &labels(&[])).contains("anycable_go_clients_num 3\n"));
    }

    #[test]
    fn samples_of_one_name_share_a_block() {
        let sample = |event, value| Sample {
            name: "log_events_total",
            help: "events",
            value,
            kind: "Counter",
            label: Some(("event", event)),
        };
        let samples = [sample("a", 3), sample("b", 0)];
        let head = "\n# HELP anycable_go_log_events_total events\n# TYPE anycable_go_log_events_total counter\n";
        let rows = "anycable_go_log_events_total{event=\"a\"} 3\nanycable_go_log_events_total{event=\"b\"} 0\n";
        assert_eq!(page(&samples, ""), format!("{head}{rows}"));
        assert!(page(&samples, "{env=\"x\"}").contains("total{env=\"x\", event=\"a\"} 3\n"));
    }

    #[test]
    fn a_histogram_is_a_block_of_buckets() {
        let mut reading = metrics::RPC_DURATION.read();
        reading.cumulative = std::array::from_fn(|place| place as u64);
        reading.micros = 2_500_007;
        let block = histogram_block("rpc_call_duration_seconds", "time", &reading, "{env=\"prod\"}");
        let lines: Vec<_> = block.lines().collect();
        assert_eq!(lines[2], "# TYPE anycable_go_rpc_call_duration_seconds histogram");
        assert_eq!(lines[3], "anycable_go_rpc_call_duration_seconds_bucket{env=\"prod\", le=\"0.001\"} 0");
        assert_eq!(
            lines[15..],
            [
                "anycable_go_rpc_call_duration_seconds_bucket{env=\"prod\", le=\"+Inf\"} 12",
                "anycable_go_rpc_call_duration_seconds_sum{env=\"prod\"} 2.500007",
                "anycable_go_rpc_call_duration_seconds_count{env=\"prod\"} 12",
            ]
        );
        let bare = histogram_block("x", "time", &reading, "");
        assert!(bare.contains("\nanycable_go_x_bucket{le=\"10\"} 11\n") && bare.contains("\nanycable_go_x_count 12\n"));
    }
}
