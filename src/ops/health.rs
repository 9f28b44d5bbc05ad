//! Whether the process lives, and whether it should get traffic.
//!
//! Liveness asks nothing: a process that waits for its store must not be restarted for it. Readiness depends on the
//! store and turns off as soon as a shutdown begins, so that load balancers look elsewhere in time.

use crate::broker::Status;
use axum::Router;
use axum::response::{IntoResponse, Response};
use axum::routing;
use http::StatusCode;
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use serde::Serialize;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Paths of the health answers.
#[derive(Clone, Debug)]
pub struct HealthConfig {
    /// Liveness, such as `/health`.
    pub health_path: String,
    /// Readiness, such as `/ready`.
    pub ready_path: String,
}

impl Default for HealthConfig {
    fn default() -> Self {
        Self { health_path: "/health".to_owned(), ready_path: "/ready".to_owned() }
    }
}

/// What readiness depends on.
#[derive(Clone)]
pub struct Health {
    broker: watch::Receiver<Status>,
    draining: CancellationToken,
}

impl Health {
    /// `broker` is the broker's status; `draining` is cancelled when a shutdown begins.
    pub fn new(broker: watch::Receiver<Status>, draining: CancellationToken) -> Self {
        Self { broker, draining }
    }

    /// Why this node should get no traffic now; nothing if it should.
    pub fn not_ready(&self) -> Option<String> {
        if self.draining.is_cancelled() {
            return Some("shutting down".to_owned());
        }
        let status = self.broker.borrow();
        (!status.ready).then(|| match &*status.reason {
            "" => "the broker is not ready".to_owned(),
            reason => reason.to_owned(),
        })
    }

    /// Both answers, for any method, to be merged with others of the same listener.
    pub fn router(self, config: &HealthConfig) -> Router {
        let live = routing::any(|| async { ([(CACHE_CONTROL, "no-store")], "ok\n") });
        let ready = routing::any(move || {
            let answer = self.ready_answer();
            async { answer }
        });
        Router::new().route(&config.health_path, live).route(&config.ready_path, ready)
    }

    fn ready_answer(&self) -> Response {
        #[derive(Serialize)]
        struct Readiness {
            ready: bool,
            #[serde(skip_serializing_if = "Option::is_none")]
            reason: Option<String>,
        }
        let reason = self.not_ready();
        let status = if reason.is_none() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        let body = serde_json::to_vec(&Readiness { ready: reason.is_none(), reason }).expect("texts are always JSON");
        (status, [(CONTENT_TYPE, "application/json"), (CACHE_CONTROL, "no-store")], body).into_response()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::Broker;
    use crate::node::publish::scripted::ScriptedBroker;
    use axum::body::Body;
    use tower_service::Service;

    async fn ask(router: &Router, method: &str, path: &str) -> (u16, String) {
        let request = http::Request::builder().method(method).uri(path).body(Body::empty()).unwrap();
        let response = router.clone().call(request).await.unwrap();
        let status = response.status().as_u16();
        let body = axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn live_always_ready_with_the_broker_and_until_the_shutdown() {
        let (broker, draining) = (ScriptedBroker::default(), CancellationToken::new());
        let router = Health::new(broker.status(), draining.clone()).router(&HealthConfig::default());
        let not_ready = |reason: &str| (503, format!(r#"{{"ready":false,"reason":"{reason}"}}"#));

        assert_eq!(ask(&router, "GET", "/ready").await, (200, r#"{"ready":true}"#.to_owned()));
        broker.set_ready(false, "no connection to NATS");
        assert_eq!(ask(&router, "GET", "/ready").await, not_ready("no connection to NATS"));
        broker.set_ready(false, "");
        assert_eq!(ask(&router, "GET", "/ready").await, not_ready("the broker is not ready"));
        broker.set_ready(true, "");
        assert_eq!(ask(&router, "HEAD", "/ready").await.0, 200);
        draining.cancel();
        assert_eq!(ask(&router, "GET", "/ready").await, not_ready("shutting down"));

        for method in ["GET", "HEAD", "POST", "OPTIONS", "DELETE"] {
            assert_eq!(ask(&router, method, "/health").await.0, 200, "{method}");
        }
        assert_eq!(ask(&router, "GET", "/health/").await.0, 404);
    }
}
