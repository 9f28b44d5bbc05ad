//! Calls against real servers: one of gRPC and one of HTTP, each scripted by its test.

mod capacity;
mod grpc;
mod health;
mod http;
mod sent;
mod server;
mod tls;

use super::*;
use std::time::Duration;

pub fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// The application at `host`, with these further settings.
pub fn application(host: &str, change: impl FnOnce(&mut RpcConfig)) -> std::sync::Arc<dyn Application> {
    let mut config = RpcConfig { host: host.to_owned(), ..RpcConfig::default() };
    change(&mut config);
    start(config).unwrap().expect("an application")
}

pub fn message(data: &str) -> CommandCall {
    CommandCall {
        kind: CommandKind::Message,
        identifier: "{\"channel\":\"Chat\"}".to_owned(),
        connection_identifiers: "{\"user\":\"5\"}".to_owned(),
        data: data.to_owned(),
        env: Env {
            url: "http://ws.acme.test/cable".to_owned(),
            headers: [("cookie".to_owned(), "a=1".to_owned())].into(),
            cstate: [("plan".to_owned(), "pro".to_owned())].into(),
            istate: [("room".to_owned(), "7".to_owned())].into(),
        },
    }
}

pub fn leaving() -> DisconnectCall {
    DisconnectCall {
        identifiers: "{\"user\":\"5\"}".to_owned(),
        subscriptions: vec!["{\"channel\":\"Chat\"}".to_owned()],
        env: Env::default(),
    }
}

/// Asks until it holds; panics after ten seconds.
pub async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let patience = tokio::time::timeout(Duration::from_secs(10), async {
        while !holds().await {
            tokio::time::sleep(ms(5)).await;
        }
    });
    patience.await.unwrap_or_else(|_| panic!("never: {what}"));
}

#[tokio::test]
async fn the_wire_follows_from_the_implementation_and_the_scheme() {
    let with = |host: &str, implementation| RpcConfig { host: host.into(), implementation, ..RpcConfig::default() };
    let none = start(with("localhost:50051", Implementation::None)).unwrap();
    assert!(none.is_none());
    for (host, implementation, fault) in [
        ("localhost", Implementation::ByScheme, "rpc_host \"localhost\" is no gRPC address"),
        ("http://localhost:1/x", Implementation::Grpc, "is no gRPC address"),
        ("localhost:50051", Implementation::Http, "is no URL for HTTP RPC"),
        ("http://", Implementation::ByScheme, "is no URL for HTTP RPC"),
        ("http://ann:pa55@localhost:1", Implementation::ByScheme, "holds a user or a password"),
    ] {
        let error = start(with(host, implementation)).err().expect(host).to_string();
        assert!(error.contains(fault) && !error.contains("pa55"), "{error}");
    }
    for host in ["localhost:1", "dns:///localhost:1", "grpc-list://localhost:1,localhost:2", "http://localhost:1/_x"] {
        assert!(start(with(host, Implementation::ByScheme)).unwrap().is_some(), "{host}");
    }
}
