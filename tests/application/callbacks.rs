//! How often the application is called when clients leave and come back.

use crate::harness::backend::{shared_nats, unused_prefix};
use crate::harness::carrick::Builder;
use crate::harness::*;
use serde_json::{Value, json};
use std::collections::HashSet;
use std::time::{Duration, Instant};

over_every_wire!(
    a_restore_calls_nobody,
    a_restored_client_may_subscribe_and_act_at_once,
    sessions_are_restored_while_the_application_is_away,
    clients_that_leave_while_the_application_is_away_are_told_of_afterwards,
    a_shutdown_does_not_wait_for_an_application_that_is_away,
    with_rpc_restore_a_restore_calls_once_with_the_whole_state,
    an_application_without_the_method_is_asked_once,
    within_the_grace_a_drop_calls_nobody,
    after_the_grace_a_leave_calls_once_with_everything,
    a_flaky_client_is_told_of_once,
    an_old_connection_that_ends_after_the_restore_is_not_told_of,
    a_base_client_is_not_waited_for,
    a_remote_disconnect_is_not_waited_for,
    by_mode_never_nobody_is_told,
    calls_are_made_at_the_rate,
    a_granted_subscription_is_in_the_farewell,
    shutdown_makes_every_waiting_call,
    shutdown_does_not_wait_for_an_application_that_hangs,
    shutdown_makes_the_calls_of_the_grace_too_where_nothing_survives,
    a_session_moves_to_another_node_without_a_call,
    restored_on_another_node_within_the_grace_nobody_is_told,
    a_node_that_dies_in_the_grace_leaves_the_call_to_another,
    a_node_that_stops_in_the_grace_leaves_the_call_to_another,
    the_node_of_the_embedded_store_takes_the_call_over,
    a_node_that_dies_in_the_grace_of_a_restored_session_leaves_no_call,
);

fn channel(id: u32) -> String {
    json!({"channel": "Chat", "id": id, "streams": [format!("chat/{id}")]}).to_string()
}

/// Keeps state with connection and subscriptions.
fn stateful(call: &Call) -> Reply {
    match (call.method, call.command()) {
        (Method::Connect, _) => Reply::usual(call).cstate("plan", "pro"),
        (_, "subscribe") => Reply::usual(call).istate("room", &call.param("id").to_string()),
        _ => Reply::usual(call),
    }
}

/// What the application is told of a client with both subscriptions.
fn about_both(call: &Call) {
    assert_eq!(call.subscriptions(), [channel(1), channel(2)]);
    assert_eq!(call.cstate(), &json!({"plan": "pro"}));
    assert_eq!(call.istate(), &json!({channel(1): r#"{"room":"1"}"#, channel(2): r#"{"room":"2"}"#}));
}

async fn with_both(server: &Server) -> Client {
    let mut client = server.dial().query("user=5").connect().await;
    client.subscribe(&channel(1)).await;
    client.subscribe(&channel(2)).await;
    client
}

/// Until whatever could be on its way has arrived.
async fn nothing_waits(server: &Server) {
    server.metric_becomes("disconnect_queue_size", 0).await;
    let_pass(SILENCE).await;
}

async fn a_restore_calls_nobody(wire: Wire) {
    let app = Application::start(wire, stateful);
    let server = app.server().option("disconnect_mode", "never").start();
    let mut sid = with_both(&server).await.drop_hard();
    app.forget();
    for _ in 0..3 {
        let client = server.resume(&sid).await;
        assert_eq!(client.restored(), [channel(1), channel(2)]);
        sid = client.drop_hard();
    }
    nothing_waits(&server).await;
    assert!(app.calls().is_empty());
}

/// What it asks again is confirmed without a call; its actions have the restored state and the new request.
async fn a_restored_client_may_subscribe_and_act_at_once(wire: Wire) {
    let app = Application::start(wire, stateful);
    let server = app.server().option("disconnect_mode", "never").start();
    let sid = with_both(&server).await.drop_hard();
    app.forget();
    let mut client = server.dial().query("again=1").sid(&sid).connect().await;
    client.subscribe(&channel(1)).await;
    client.perform(&channel(2), json!({"action": "speak"})).await;
    let calls = app.called(Method::Command, 1).await;
    assert_eq!(app.calls().len(), 1);
    assert_eq!((calls[0].command(), calls[0].identifier()), ("message", channel(2).as_str()));
    assert_eq!(calls[0].sid(), client.sid);
    assert_eq!(calls[0].connection(), r#"{"user":"5"}"#);
    assert_eq!((calls[0].cstate(), calls[0].istate()), (&json!({"plan": "pro"}), &json!({"room": "2"})));
    assert!(calls[0].url().ends_with(&format!("?again=1&sid={sid}")), "{}", calls[0].url());
}

async fn sessions_are_restored_while_the_application_is_away(wire: Wire) {
    let mut app = Application::start(wire, stateful);
    let server = app.server().option("disconnect_mode", "never").start();
    let sid = with_both(&server).await.drop_hard();
    app.kill();
    let mut client = server.resume(&sid).await;
    assert_eq!(client.restored(), [channel(1), channel(2)]);
    client.history(&channel(1), json!({"streams": {}})).await;
    server.publish("chat/1", json!("hello")).await;
    client.expect_message(&channel(1), json!("hello")).await;
    client.subscribe(&channel(2)).await;
}

/// Longer than a call is tried: calls wait for an application that cannot be reached, as they wait for a slow one.
async fn clients_that_leave_while_the_application_is_away_are_told_of_afterwards(wire: Wire) {
    for grace in [0, 1] {
        let mut app = Application::start(wire, stateful);
        let server = app.server().option("rpc_command_timeout", 2_000).option("disconnect_grace", grace).start();
        let mut clients = Vec::new();
        for _ in 0..20 {
            clients.push(server.connect().await);
        }
        app.forget();
        app.kill();
        let sids: HashSet<_> = clients.into_iter().map(Client::drop_hard).collect();
        server.metric_becomes("clients_num", 0).await;
        let_pass(Duration::from_secs(3)).await;
        assert!(server.metric("disconnect_queue_size").await > 0, "they wait");
        app.restart();
        let told = app.called(Method::Disconnect, 20).await;
        let told: HashSet<_> = told.iter().map(|call| call.sid().to_owned()).collect();
        assert_eq!(told, sids);
        nothing_waits(&server).await;
        assert_eq!(app.calls().len(), 20);
    }
}

async fn a_shutdown_does_not_wait_for_an_application_that_is_away(wire: Wire) {
    let mut app = Application::start(wire, stateful);
    let mut server = app.server().option("rpc_command_timeout", 3_000).start();
    let clients = [server.connect().await, server.connect().await];
    app.kill();
    for client in clients {
        client.drop_hard();
    }
    server.metric_becomes("clients_num", 0).await;
    server.stop();
    assert!(server.log().contains("could not be told"), "{}", server.log());
}

async fn with_rpc_restore_a_restore_calls_once_with_the_whole_state(wire: Wire) {
    let app = Application::start(wire, stateful);
    let server = app.server().option("rpc_restore", true).option("disconnect_mode", "never").start();
    let sid = with_both(&server).await.drop_hard();
    app.forget();
    let client = server.resume(&sid).await;
    let told = app.called(Method::Restore, 1).await;
    about_both(&told[0]);
    assert_eq!((told[0].sid(), told[0].connection()), (client.sid.as_str(), r#"{"user":"5"}"#));
    nothing_waits(&server).await;
    assert_eq!(app.calls().len(), 1);
}

async fn an_application_without_the_method_is_asked_once(wire: Wire) {
    let app = Application::start(wire, |call| match call.method {
        Method::Restore => Fault::Unimplemented.into(),
        _ => stateful(call),
    });
    let server = app.server().option("rpc_restore", true).option("disconnect_mode", "never").start();
    let mut sid = with_both(&server).await.drop_hard();
    app.forget();
    for _ in 0..4 {
        let client = server.resume(&sid).await;
        assert_eq!(client.restored(), [channel(1), channel(2)]);
        app.called(Method::Restore, 1).await;
        nothing_waits(&server).await;
        sid = client.drop_hard();
    }
    assert_eq!(app.calls().len(), 1);
    let said = server.log().matches("is not told of restores").count();
    assert_eq!(said, 1, "{}", server.log());
}

fn with_grace(app: &Application, seconds: u32) -> Builder {
    app.server().option("disconnect_grace", seconds)
}

async fn within_the_grace_a_drop_calls_nobody(wire: Wire) {
    let app = Application::start(wire, stateful);
    let server = with_grace(&app, 8).start();
    let sid = with_both(&server).await.drop_hard();
    app.forget();
    server.metric_becomes("disconnect_queue_size", 1).await;
    // A network that is away for a while.
    let_pass(Duration::from_secs(5)).await;
    let mut client = server.resume(&sid).await;
    assert_eq!(client.restored(), [channel(1), channel(2)]);
    server.metric_becomes("disconnects_spared_total", 1).await;
    assert!(app.calls().is_empty());
    // The end of the new connection is another one.
    client.barrier().await;
    let sid = client.sid.clone();
    client.close().await;
    let told = app.called(Method::Disconnect, 1).await;
    about_both(&told[0]);
    assert_eq!(told[0].sid(), sid);
    nothing_waits(&server).await;
    assert_eq!(app.calls().len(), 1);
}

async fn after_the_grace_a_leave_calls_once_with_everything(wire: Wire) {
    let app = Application::start(wire, stateful);
    let server = with_grace(&app, 1).start();
    let sid = with_both(&server).await.drop_hard();
    app.forget();
    let told = app.called(Method::Disconnect, 1).await;
    about_both(&told[0]);
    assert_eq!((told[0].sid(), told[0].connection()), (sid.as_str(), r#"{"user":"5"}"#));
    nothing_waits(&server).await;
    assert_eq!(app.calls().len(), 1);
}

/// Lost and restored again and again, and away at last.
async fn a_flaky_client_is_told_of_once(wire: Wire) {
    let app = Application::start(wire, stateful);
    let server = with_grace(&app, 8).start();
    let mut sid = with_both(&server).await.drop_hard();
    app.forget();
    for _ in 0..4 {
        // A connection whose loss the server has not seen when the session goes on elsewhere did not leave: it is no call
        // that was spared.
        server.metric_becomes("clients_num", 0).await;
        let client = server.resume(&sid).await;
        assert_eq!(client.restored(), [channel(1), channel(2)]);
        sid = client.drop_hard();
    }
    let told = app.called(Method::Disconnect, 1).await;
    about_both(&told[0]);
    assert_eq!(told[0].sid(), sid);
    nothing_waits(&server).await;
    assert_eq!(app.calls().len(), 1);
    assert_eq!(server.metric("disconnects_spared_total").await, 4);
}

/// As with most lost connections, the server learns of the loss after the client has come back.
async fn an_old_connection_that_ends_after_the_restore_is_not_told_of(wire: Wire) {
    let app = Application::start(wire, stateful);
    let server = with_grace(&app, 1).start();
    let old = with_both(&server).await;
    app.forget();
    let mut new = server.resume(&old.sid).await;
    assert_eq!(new.restored(), [channel(1), channel(2)]);
    old.drop_hard();
    server.metric_becomes("disconnects_spared_total", 1).await;
    new.barrier().await;
    assert!(app.calls().is_empty());
}

/// Nor is anybody else whose session cannot be restored.
async fn a_base_client_is_not_waited_for(wire: Wire) {
    let app = Application::usual(wire);
    let server = with_grace(&app, 60).start();
    server.connect_base().await.close().await;
    app.called(Method::Disconnect, 1).await;
}

async fn a_remote_disconnect_is_not_waited_for(wire: Wire) {
    let app = Application::start(wire, stateful);
    let server = with_grace(&app, 60).start();
    let mut client = with_both(&server).await;
    server.disconnect(r#"{"user":"5"}"#, true).await;
    client.expect(disconnect("remote", true)).await;
    about_both(&app.called(Method::Disconnect, 1).await[0]);
}

async fn by_mode_never_nobody_is_told(wire: Wire) {
    let app = Application::start(wire, stateful);
    let server = app.server().option("disconnect_mode", "never").start();
    with_both(&server).await.close().await;
    server.metric_becomes("clients_num", 0).await;
    nothing_waits(&server).await;
    assert_eq!(app.count(Method::Disconnect), 0);
}

async fn calls_are_made_at_the_rate(wire: Wire) {
    let app = Application::usual(wire);
    let server = app.server().option("disconnect_rate", 4).start();
    let clients = [server.connect().await, server.connect().await, server.connect().await, server.connect().await];
    // The first call may be late at the application: what counts is when it could be made at the earliest.
    let began = Instant::now();
    for client in clients {
        client.drop_hard();
    }
    let calls = app.called(Method::Disconnect, 4).await;
    let all = calls[3].at.duration_since(began);
    assert!(all >= Duration::from_millis(700), "three quarters of a second, not {all:?}");
}

/// The socket closes while the application answers, again and again, at any moment: who was told that its subscription
/// stands, and whom the application counts in, is counted out.
async fn a_granted_subscription_is_in_the_farewell(wire: Wire) {
    let app = Application::start(wire, |call| match call.command() {
        "subscribe" => stateful(call).after(Duration::from_millis(5)),
        _ => stateful(call),
    });
    let server = app.server().start();
    for round in 0..20 {
        let mut client = server.connect().await;
        client.send(json!({"command": "subscribe", "identifier": channel(1)})).await;
        let confirmed = client.event_within(Duration::from_millis(round)).await.is_some();
        let sid = client.drop_hard();
        let told = app.called(Method::Disconnect, round as usize + 1).await.pop().expect("one more");
        assert_eq!(told.sid(), sid);
        if confirmed {
            assert_eq!(told.subscriptions(), [channel(1)]);
        }
        // One that is in it has its state.
        let state = if told.subscriptions().is_empty() { Value::Null } else { json!({channel(1): r#"{"room":"1"}"#}) };
        assert_eq!(told.istate(), &state);
    }
}

/// With mode `always`, 1 call per second and 3 clients, all three are made before the server ends.
async fn shutdown_makes_every_waiting_call(wire: Wire) {
    let app = Application::start(wire, |call| match call.method {
        Method::Disconnect => Reply::success().after(Duration::from_millis(200)),
        _ => Reply::usual(call),
    });
    let options = app.server().option("disconnect_mode", "always").option("disconnect_rate", 1);
    let mut server = options.start();
    let mut clients = [server.connect().await, server.connect().await, server.connect_base().await];
    server.begin_stop();
    for client in &mut clients {
        client.expect(disconnect("server_restart", true)).await;
    }
    server.wait_stopped();
    assert_eq!(app.count(Method::Disconnect), 3);
    assert_eq!(app.cancelled(), 0, "they were answered, too");
    assert!(server.log().contains("invoking remaining disconnects"), "{}", server.log());
}

async fn shutdown_does_not_wait_for_an_application_that_hangs(wire: Wire) {
    let app = Application::start(wire, |call| match call.method {
        Method::Connect => Reply::usual(call),
        _ => Fault::Hang.into(),
    });
    let options = app.server().option("rpc_command_timeout", 60_000).option("rpc_request_timeout", 60_000);
    let mut server = options.option("shutdown_timeout", 2).start();
    let (_left, mut acting) = (server.connect().await.drop_hard(), server.connect().await);
    app.called(Method::Disconnect, 1).await;
    acting.send(json!({"command": "subscribe", "identifier": channel(1)})).await;
    app.called(Method::Command, 1).await;
    let started = std::time::Instant::now();
    server.stop();
    assert!(started.elapsed() < PATIENCE / 2, "{:?}", started.elapsed());
    assert_eq!(app.count(Method::Disconnect), 2, "both were begun");
}

async fn shutdown_makes_the_calls_of_the_grace_too_where_nothing_survives(wire: Wire) {
    let app = Application::start(wire, stateful);
    let mut server = with_grace(&app, 60).option("shutdown_timeout", 2).start();
    with_both(&server).await.drop_hard();
    server.metric_becomes("disconnect_queue_size", 1).await;
    server.stop();
    about_both(&app.called(Method::Disconnect, 1).await[0]);
}

/// Two nodes of one deployment behind this application.
fn nodes(app: &Application, grace: u32) -> [Server; 2] {
    let prefix = unused_prefix();
    std::array::from_fn(|_| {
        let node = app.behind(Backend::on_nats(&shared_nats().url(), &prefix));
        node.without("public_streams").option("disconnect_grace", grace).start()
    })
}

async fn a_session_moves_to_another_node_without_a_call(wire: Wire) {
    let app = Application::start(wire, stateful);
    let [one, two] = nodes(&app, 60);
    let sid = with_both(&one).await.drop_hard();
    app.forget();
    let mut client = two.resume(&sid).await;
    assert_eq!(client.restored(), [channel(1), channel(2)]);
    two.publish("chat/1", json!("hello")).await;
    // Where the node hears of it after the request, it follows the confirmation.
    let mut replayed = client.history(&channel(1), json!({"streams": {}})).await;
    if replayed.is_empty() {
        replayed.push(client.expect_message(&channel(1), json!("hello")).await);
    }
    assert_eq!(client::messages(&replayed), [json!("hello")]);
    assert!(app.calls().is_empty());
}

async fn restored_on_another_node_within_the_grace_nobody_is_told(wire: Wire) {
    let app = Application::start(wire, stateful);
    let [one, two] = nodes(&app, 8);
    let sid = with_both(&one).await.drop_hard();
    app.forget();
    one.metric_becomes("disconnect_queue_size", 1).await;
    let client = two.resume(&sid).await;
    assert_eq!(client.restored(), [channel(1), channel(2)]);
    one.metric_becomes("disconnects_spared_total", 1).await;
    assert!(app.calls().is_empty());
    let sid = client.sid.clone();
    client.close().await;
    let told = app.called(Method::Disconnect, 1).await;
    about_both(&told[0]);
    assert_eq!(told[0].sid(), sid);
}

/// Waits for a call that another node takes over: after the grace and what is added to it, which is longer than other
/// things take.
async fn taken_over(app: &Application) -> Vec<Call> {
    for _ in 0..3 {
        if app.count(Method::Disconnect) > 0 {
            break;
        }
        let_pass(Duration::from_secs(10)).await;
    }
    app.called(Method::Disconnect, 1).await
}

/// Waits until the store has the node's waiting calls: it gathers them for moments.
async fn in_the_book(node: &Server) {
    node.metric_becomes("disconnect_queue_size", 1).await;
    let_pass(Duration::from_secs(1)).await;
}

async fn a_node_that_dies_in_the_grace_leaves_the_call_to_another(wire: Wire) {
    let app = Application::start(wire, stateful);
    let [mut one, _two] = nodes(&app, 3);
    let sid = with_both(&one).await.drop_hard();
    app.forget();
    in_the_book(&one).await;
    one.kill();
    let told = taken_over(&app).await;
    about_both(&told[0]);
    assert_eq!(told[0].sid(), sid);
    let_pass(SILENCE).await;
    assert_eq!(app.calls().len(), 1);
}

async fn a_node_that_stops_in_the_grace_leaves_the_call_to_another(wire: Wire) {
    let app = Application::start(wire, stateful);
    let [mut one, _two] = nodes(&app, 8);
    let sid = with_both(&one).await.drop_hard();
    app.forget();
    one.stop();
    assert!(app.calls().is_empty(), "it may come back elsewhere");
    let told = taken_over(&app).await;
    about_both(&told[0]);
    assert_eq!(told[0].sid(), sid);
    let_pass(SILENCE).await;
    assert_eq!(app.calls().len(), 1);
}

async fn the_node_of_the_embedded_store_takes_the_call_over(wire: Wire) {
    let app = Application::start(wire, stateful);
    let url = format!("nats://node:password@127.0.0.1:{}", free_port());
    let embedding = app.behind(Backend::EmbeddedNats.builder()).replace("enats_addr", &url);
    let _one = embedding.option("disconnect_grace", 3).start();
    let mut two = app.behind(Backend::on_nats(&url, "carrick")).option("disconnect_grace", 3).start();
    let sid = with_both(&two).await.drop_hard();
    app.forget();
    in_the_book(&two).await;
    two.kill();
    let told = taken_over(&app).await;
    about_both(&told[0]);
    assert_eq!(told[0].sid(), sid);
}

async fn a_node_that_dies_in_the_grace_of_a_restored_session_leaves_no_call(wire: Wire) {
    let app = Application::start(wire, stateful);
    let [mut one, two] = nodes(&app, 8);
    let sid = with_both(&one).await.drop_hard();
    app.forget();
    in_the_book(&one).await;
    one.kill();
    let client = two.resume(&sid).await;
    assert_eq!(client.restored(), [channel(1), channel(2)]);
    two_spares(&two).await;
    assert!(app.calls().is_empty());
}

/// The other node has looked at the dead one's call and found it needless.
async fn two_spares(two: &Server) {
    for _ in 0..3 {
        if two.metric("disconnects_spared_total").await > 0 {
            return;
        }
        let_pass(Duration::from_secs(10)).await;
    }
    two.metric_becomes("disconnects_spared_total", 1).await;
}
