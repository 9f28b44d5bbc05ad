//! State that the application keeps with connections and subscriptions.

use super::{channel, following, following_as};
use crate::harness::*;
use serde_json::{Value, json};

over_every_wire!(
    channel_state_is_kept_between_commands,
    channel_state_is_available_in_unsubscribe_callbacks,
    connection_state_is_kept_and_merged,
    state_of_a_left_subscription_is_gone,
);

fn counts(call: &Call) -> Reply {
    match call.command() {
        "subscribe" => Reply::usual(call).istate("count", "1").istate("name", "chipolino"),
        "message" if call.action() == "tick" => {
            let count: u32 = call.istate()["count"].as_str().expect("text").parse().expect("a number");
            Reply::success().istate("count", &(count + 2).to_string())
        }
        "message" => {
            let count: u32 = call.istate()["count"].as_str().expect("text").parse().expect("a number");
            Reply::success().say(call, json!({"count": count, "name": call.istate()["name"]}))
        }
        _ => Reply::usual(call),
    }
}

async fn channel_state_is_kept_between_commands(wire: Wire) {
    let app = Application::start(wire, counts);
    let server = app.server().start();
    let mut client = server.connect_base().await;
    client.subscribe(&channel("State")).await;
    client.perform(&channel("State"), json!({"action": "tick"})).await;
    client.perform(&channel("State"), json!({"action": "state"})).await;
    client.expect_message(&channel("State"), json!({"count": 3, "name": "chipolino"})).await;
}

async fn channel_state_is_available_in_unsubscribe_callbacks(wire: Wire) {
    let app = Application::start(wire, |call| match call.command() {
        "subscribe" => Reply::usual(call).istate("user", call.param("name").as_str().unwrap_or_default()),
        _ => Reply::usual(call),
    });
    let server = app.server().start();
    let (mut stays, mut leaves) = (server.connect_base().await, server.connect_base().await);
    stays.subscribe(&following(&["room"])).await;
    let named = json!({"channel": "State", "name": "chipollone", "streams": ["room"]}).to_string();
    leaves.subscribe(&named).await;
    leaves.close().await;
    let call = &app.called(Method::Disconnect, 1).await[0];
    assert_eq!(call.subscriptions(), std::slice::from_ref(&named));
    let state: Value = serde_json::from_str(call.istate()[&named].as_str().expect("JSON as text")).expect("JSON");
    assert_eq!(state, json!({"user": "chipollone"}));
    let user = state["user"].as_str().expect("text");
    server.publish("room", json!(format!("user left: {user}"))).await;
    stays.expect_message(&following(&["room"]), json!("user left: chipollone")).await;
}

async fn connection_state_is_kept_and_merged(wire: Wire) {
    let app = Application::start(wire, |call| match (call.method, call.command()) {
        (Method::Connect, _) => Reply::usual(call).cstate("plan", "pro").cstate("theme", "dark"),
        (_, "subscribe") => Reply::usual(call).istate("room", "7").istate("$w", "chat/7").cstate("theme", ""),
        (_, "message") => Reply::success().istate("room", "").cstate("plan", "free"),
        _ => Reply::usual(call),
    });
    let server = app.server().start();
    let mut client = server.connect_base().await;
    client.subscribe(&channel("A")).await;
    client.perform(&channel("A"), json!({})).await;
    client.perform(&channel("A"), json!({})).await;
    client.barrier().await;
    client.close().await;
    app.called(Method::Disconnect, 1).await;
    let calls = app.calls();
    let states: Vec<_> = calls.iter().map(|call| (call.cstate().clone(), call.istate().clone())).collect();
    let (pro, free) = (json!({"plan": "pro"}), json!({"plan": "free"}));
    assert_eq!(states[0], (Value::Null, Value::Null));
    assert_eq!(states[1], (json!({"plan": "pro", "theme": "dark"}), Value::Null));
    assert_eq!(states[2], (pro, json!({"room": "7", "$w": "chat/7"})));
    assert_eq!(states[3], (free.clone(), json!({"$w": "chat/7"})));
    assert_eq!(states[4], (free, json!({channel("A"): r#"{"$w":"chat/7"}"#})));
    assert_eq!(app.connections(), 1, "one connection serves all calls");
}

async fn state_of_a_left_subscription_is_gone(wire: Wire) {
    let app = Application::start(wire, |call| match call.command() {
        "subscribe" => Reply::usual(call).istate("seen", "yes"),
        _ => Reply::usual(call),
    });
    let server = app.server().start();
    let mut client = server.connect_base().await;
    let [one, two] = [following_as(1, &["a"]), following_as(2, &["a"])];
    client.subscribe(&one).await;
    client.subscribe(&two).await;
    client.unsubscribe(&one).await;
    client.subscribe(&one).await;
    let calls = app.called(Method::Command, 4).await;
    let states: Vec<_> = calls.iter().map(|call| call.istate().clone()).collect();
    assert_eq!(states, [Value::Null, Value::Null, json!({"seen": "yes"}), Value::Null]);
}
