//! `rpc_concurrency=0`: the number of calls in flight follows what the application can take.

use super::grpc::Stub;
use super::server::{Handler, Server, Version, answer};
use super::*;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::task::JoinSet;

/// What a server saw of the calls that it had room for, and of the others.
#[derive(Default)]
struct Seen {
    running: AtomicUsize,
    peak: AtomicUsize,
    refused: AtomicUsize,
}

/// An application with room for so many calls at a time.
async fn with_room(room: usize) -> (Server, Arc<Seen>) {
    let seen = Arc::new(Seen::default());
    let (inner, notes) = (Stub::default().handler(), seen.clone());
    let handler: Handler = Arc::new(move |request| {
        let (seen, inner) = (notes.clone(), inner.clone());
        Box::pin(async move {
            let running = seen.running.fetch_add(1, Ordering::SeqCst) + 1;
            seen.peak.fetch_max(running, Ordering::SeqCst);
            let response = if running > room {
                seen.refused.fetch_add(1, Ordering::SeqCst);
                let mut response = answer(200, "");
                response.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
                response.headers_mut().insert("grpc-status", "8".parse().unwrap());
                response
            } else {
                tokio::time::sleep(ms(5)).await;
                inner(request).await
            };
            seen.running.fetch_sub(1, Ordering::SeqCst);
            response
        })
    });
    (Server::start(Version::Http2, handler).await, seen)
}

fn adaptive(server: &Server, range: ConcurrencyRange) -> Arc<dyn Application> {
    application(&server.address.to_string(), |config| {
        (config.concurrency, config.range) = (0, range);
        config.health_watch = false;
    })
}

/// Forty callers that never rest.
fn crowd(app: &Arc<dyn Application>) -> JoinSet<()> {
    let mut callers = JoinSet::new();
    for _ in 0..40 {
        let app = app.clone();
        callers.spawn(async move {
            loop {
                app.command(&"s1".into(), message("")).await.unwrap();
            }
        });
    }
    callers
}

#[tokio::test]
async fn it_shrinks_to_what_the_application_has_room_for() {
    let (server, seen) = with_room(10).await;
    let app = adaptive(&server, ConcurrencyRange { initial: 12, min: 5, max: 12 });
    let _callers = crowd(&app);
    eventually("too many come at first", async || seen.refused.load(Ordering::SeqCst) > 0).await;
    eventually("then no more than there is room for", async || {
        seen.peak.store(0, Ordering::SeqCst);
        tokio::time::sleep(ms(100)).await;
        (5..=10).contains(&seen.peak.load(Ordering::SeqCst))
    })
    .await;
}

#[tokio::test]
async fn it_grows_while_calls_wait_up_to_its_bound() {
    let (server, seen) = with_room(100).await;
    let app = adaptive(&server, ConcurrencyRange { initial: 1, min: 1, max: 3 });
    let _callers = crowd(&app);
    eventually("three at a time", async || seen.peak.load(Ordering::SeqCst) == 3).await;
    let _more = crowd(&app);
    tokio::time::timeout(ms(1500), async {
        while seen.peak.load(Ordering::SeqCst) <= 3 {
            tokio::time::sleep(ms(20)).await;
        }
    })
    .await
    .expect_err("never four");
}
