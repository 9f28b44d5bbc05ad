//! Order: of one stream's messages, of a batch, of replies to commands.

use crate::harness::client::offsets;
use crate::harness::*;
use futures_util::future::join_all;
use serde_json::json;

on_every_backend!(
    messages_come_in_the_order_of_their_publication,
    concurrent_publications_reach_all_clients_in_one_order,
    a_batch_keeps_its_order,
    replies_follow_commands,
    confirmation_comes_before_live_messages,
    each_identifier_gets_its_own_copy,
    dropping_clients_get_every_message_once_and_in_order,
);

async fn messages_come_in_the_order_of_their_publication(server: SharedServer) {
    let stream = stream("chat");
    let mut client = server.subscriber(&stream).await;
    let positions = server.publish_numbers(&stream, 1..=30).await;
    let deliveries = client.expect_numbers(&public(&stream), 1..=30).await;
    assert_eq!(deliveries.iter().map(Delivery::at).collect::<Vec<_>>(), positions);
}

async fn concurrent_publications_reach_all_clients_in_one_order(server: SharedServer) {
    let stream = stream("chat");
    let mut clients = [server.subscriber(&stream).await, server.subscriber(&stream).await];
    join_all((0..40).map(|number| server.publish(&stream, json!(number)))).await;
    let mut seen = Vec::new();
    for client in &mut clients {
        let mut deliveries = Vec::new();
        for _ in 0..40 {
            deliveries.push(Delivery::of(&client.next().await).expect("a data message"));
        }
        assert!(offsets(&deliveries).is_sorted_by(|a, b| a < b));
        seen.push(deliveries);
    }
    assert_eq!(seen[0], seen[1]);
}

async fn a_batch_keeps_its_order(server: SharedServer) {
    let stream = stream("chat");
    let mut client = server.subscriber(&stream).await;
    let batch: Vec<_> = (1..=50).map(|number| json!({"stream": stream, "data": number.to_string()})).collect();
    let results = server.accepted(json!(batch)).await;
    let deliveries = client.expect_numbers(&public(&stream), 1..=50).await;
    let answered: Vec<_> = results.as_array().expect("one result per item").iter().map(Position::of).collect();
    assert_eq!(deliveries.iter().map(Delivery::at).collect::<Vec<_>>(), answered);
}

async fn replies_follow_commands(server: SharedServer) {
    let mut client = server.connect().await;
    let streams: Vec<_> = (0..10).map(|_| stream("chat")).collect();
    for stream in &streams {
        client.send(json!({"command": "subscribe", "identifier": public(stream)})).await;
        client.send(json!({"command": "ping"})).await;
    }
    for stream in &streams {
        client.expect(confirm(&public(stream))).await;
        client.expect(json!({"type": "pong"})).await;
    }
}

async fn confirmation_comes_before_live_messages(server: SharedServer) {
    let stream = stream("chat");
    let publishing = async {
        for number in 0..60 {
            server.publish(&stream, json!(number)).await;
        }
    };
    let subscribing = async {
        for _ in 0..10 {
            let mut client = server.connect().await;
            client.subscribe(&public(&stream)).await;
        }
    };
    tokio::join!(publishing, subscribing);
}

async fn each_identifier_gets_its_own_copy(server: SharedServer) {
    let stream = stream("chat");
    let mut client = server.subscriber(&stream).await;
    client.subscribe(&public_again(&stream)).await;
    client.subscribe(&signed(&stream)).await;
    server.publish(&stream, json!("hey")).await;
    let mut identifiers = Vec::new();
    for _ in 0..3 {
        let delivery = Delivery::of(&client.next().await).expect("a data message");
        assert_eq!(delivery.message, "hey");
        identifiers.push(delivery.identifier);
    }
    identifiers.sort();
    let mut expected = [public(&stream), public_again(&stream), signed(&stream)];
    expected.sort();
    assert_eq!(identifiers, expected);
    client.expect_silence().await;
}

/// With the state of the stock client: no de-duplication, the last message overwrites the position.
async fn dropping_clients_get_every_message_once_and_in_order(server: SharedServer) {
    let stream = stream("chat");
    let total = 90;
    let mut client = stock::StockClient::new(&[public(&stream)]);
    client.connect(&server).await;
    let publishing = async {
        for number in 0..total {
            server.publish(&stream, json!(number)).await;
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    let dropping = async {
        for round in 0..8 {
            client.listen(std::time::Duration::from_millis(20 + 17 * round)).await;
            client.drop_connection();
            client.connect(&server).await;
        }
        client.listen_until(total).await;
        client
    };
    let ((), client) = tokio::join!(publishing, dropping);
    let expected: Vec<_> = (0..total).map(|number| json!(number)).collect();
    assert_eq!(client.received[&public(&stream)], expected);
    assert_eq!((client.rejected, client.restored), (0, 8));
}
