//! Open streams take memory, so their number has a limit.

use crate::harness::client::Event;
use crate::harness::*;
use serde_json::json;

/// Three anonymous clients ask for more streams than may be open, beside one that follows a stream.
#[tokio::test]
async fn nobody_opens_more_streams_than_the_node_has_room_for() {
    let server = Server::on(Backend::Memory)
        .option("max_streams", 50)
        .option("stream_linger", "500ms")
        .option("metrics_http", "/metrics")
        .start();
    let mut honest = server.connect().await;
    honest.subscribe(&public("chat")).await;
    let mut attackers = Vec::new();
    for one in 0..3 {
        let mut attacker = server.connect().await;
        for number in 0..20 {
            attacker.send(json!({"command": "subscribe", "identifier": public(&format!("{one}/{number}"))})).await;
        }
        attackers.push(attacker);
    }
    // Their commands are carried out in any order: it may hit each of them.
    let ends = attackers.iter_mut().map(|attacker| {
        Box::pin(async {
            loop {
                if let Event::Closed(code, reason) = attacker.event().await {
                    return (code, reason);
                }
            }
        })
    });
    let (end, ..) = futures_util::future::select_all(ends).await;
    assert_eq!(end, (1013, "Too many streams: max_streams".to_owned()), "whoever asked for too many may try again");
    assert!(server.metric("broadcast_streams_num").await <= 50);
    assert!(server.metric("refused_streams_total").await > 0);
    assert!(server.log().contains("max_streams"), "the operator is told");

    // An open stream has room for everybody, and nobody who follows it has noticed anything.
    let mut other = server.connect().await;
    other.subscribe(&public("chat")).await;
    server.publish("chat", json!(1)).await;
    for client in [&mut honest, &mut other] {
        client.expect_message(&public("chat"), json!(1)).await;
    }
    // Those who leave make room.
    for attacker in attackers {
        attacker.drop_hard();
    }
    server.metric_becomes("broadcast_streams_num", 1).await;
    other.subscribe(&public("news")).await;
}
