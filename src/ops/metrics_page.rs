//! The metrics page for Prometheus: text format, names as AnyCable's dashboards expect them.

use crate::metrics;
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
            let page = page(&metrics::snapshot(), &labels);
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
    for metrics::Sample { name, help, value, kind } in samples {
        let kind = kind.to_ascii_lowercase();
        write!(page, "\n# HELP {PREFIX}{name} {help}\n# TYPE {PREFIX}{name} {kind}\n{PREFIX}{name}{labels} {value}\n")
            .expect("writing to a string cannot fail");
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Sample;

    #[test]
    fn one_block_per_metric() {
        let samples = [
            Sample { name: "clients_num", help: "authenticated sessions", value: 3, kind: "Gauge" },
            Sample { name: "client_msg_total", help: "commands", value: 7, kind: "Counter" },
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
}
