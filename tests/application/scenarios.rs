//! The conformance suite's core scenarios, named after them.

use crate::harness::*;
use serde_json::json;

over_every_wire!(client_receives_welcome,);

async fn client_receives_welcome(wire: Wire) {
    let app = Application::usual(wire);
    let server = app.server().start();
    let client = server.connect_base().await;
    let calls = app.calls();
    assert_eq!(calls.len(), 1);
    assert_eq!(calls[0].method, Method::Connect);
    assert_eq!(client.welcome, json!({"type": "welcome", "sid": calls[0].sid()}));
}
