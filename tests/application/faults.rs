//! An application that fails: a client is told nothing and may try again, and nobody else notices.

use crate::harness::carrick::Builder;
use crate::harness::*;
use futures_util::future::join_all;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

over_every_wire!(
    a_call_that_was_cut_is_made_again,
    an_application_that_stays_away_is_given_up,
    an_application_that_hangs_is_given_up,
    a_frozen_application_is_given_up_and_taken_up_again,
    garbage_is_no_answer_and_not_asked_for_again,
    an_application_at_its_limit_is_asked_again_over_grpc,
    oversized_answers_are_no_answers,
    larger_answers_can_be_allowed,
    an_application_that_starts_later_is_found,
    an_application_that_does_not_start_refuses_nobody,
    a_flapping_application_loses_and_repeats_nothing_unnoticed,
    a_rolling_restart_of_the_application_is_not_noticed,
    slow_calls_delay_only_their_own_connection,
    calls_in_flight_are_limited,
    waiting_calls_keep_their_order,
    a_closed_session_cancels_its_call,
    a_closed_session_does_not_wait_any_more,
    a_client_that_leaves_while_it_connects_cancels_its_call,
);

fn channel() -> String {
    json!({"channel": "Chat", "streams": ["a"]}).to_string()
}

fn subscribe() -> Value {
    json!({"command": "subscribe", "identifier": channel()})
}

/// Answers a client's action with its number.
fn echo(call: &Call) -> Reply {
    match call.command() {
        "message" => Reply::success().say(call, call.data()["number"].clone()),
        _ => Reply::usual(call),
    }
}

/// The connection stands, nothing was sent, and the subscription may be tried again.
async fn it_may_try_again(app: &Application, client: &mut Client) {
    client.barrier().await;
    app.answer(Reply::usual);
    // Until the connection to the application stands again some attempts may fail.
    eventually("it is confirmed", async || {
        client.send(subscribe()).await;
        client.event_within(Duration::from_secs(1)).await.filter(|event| match event {
            client::Event::Frame(frame) => !frame.starts_with(r#"{"type":"ping""#),
            ended => panic!("the connection ended: {ended:?}"),
        })
    })
    .await;
}

async fn a_call_that_was_cut_is_made_again(wire: Wire) {
    let app = Application::usual(wire);
    let server = patient(&app).start();
    let mut client = server.connect().await;
    let cut = std::sync::atomic::AtomicBool::new(false);
    app.answer(move |call| match cut.swap(true, std::sync::atomic::Ordering::SeqCst) {
        false => Fault::Cut.into(),
        true => Reply::usual(call),
    });
    client.subscribe(&channel()).await;
    assert_eq!(app.commands(), ["subscribe", "subscribe"]);
    // Over gRPC one attempt more may find the connection not restored yet.
    assert!((1..=2).contains(&server.metric("rpc_retries_total").await));
    assert_eq!(server.metric("rpc_error_total").await, 0);
}

async fn an_application_that_stays_away_is_given_up(wire: Wire) {
    let mut app = Application::usual(wire);
    let server = app.server().option("rpc_command_timeout", 5_000).start();
    let mut client = server.connect().await;
    app.answer(|_| Fault::Hang.into());
    client.send(subscribe()).await;
    app.called(Method::Command, 1).await;
    app.kill();
    server.metric_becomes("failed_client_msg_total", 1).await;
    assert_eq!(server.metric("rpc_error_total").await, 1);
    app.restart();
    it_may_try_again(&app, &mut client).await;
}

async fn an_application_that_hangs_is_given_up(wire: Wire) {
    let app = Application::usual(wire);
    let server = app.server().option("rpc_command_timeout", 5_000).start();
    let mut client = server.connect().await;
    app.answer(|_| Fault::Hang.into());
    client.send(subscribe()).await;
    server.metric_becomes("failed_client_msg_total", 1).await;
    assert_eq!(server.metric("rpc_timeout_total").await, 1);
    assert_eq!(server.metric("rpc_retries_total").await, 0);
    eventually("the call is given up", async || (app.cancelled() == 1 && app.running() == 0).then_some(())).await;
    it_may_try_again(&app, &mut client).await;
}

/// Its connections stand, so nothing fails but the time limit.
async fn a_frozen_application_is_given_up_and_taken_up_again(wire: Wire) {
    let app = Application::usual(wire);
    let server = app.server().option("rpc_command_timeout", 5_000).start();
    let mut client = server.connect().await;
    app.freeze();
    client.send(subscribe()).await;
    server.metric_becomes("rpc_timeout_total", 1).await;
    app.thaw();
    it_may_try_again(&app, &mut client).await;
    assert_eq!(server.metric("failed_client_msg_total").await, 1);
}

async fn garbage_is_no_answer_and_not_asked_for_again(wire: Wire) {
    let app = Application::usual(wire);
    // At this level each failure has its line.
    let server = app.server().option("log_level", "debug").start();
    let mut client = server.connect().await;
    app.forget();
    let faults = [
        Fault::Garbage.into(),
        Fault::Broken.into(),
        Fault::Unimplemented.into(),
        Reply::error("no such room"),
        Reply::message(json!({"status": 7})).transmit(confirm(&channel())),
        Reply::message(json!({})),
    ];
    for (count, fault) in (1..).zip(&faults) {
        let fault = fault.clone();
        app.answer(move |_| fault.clone());
        client.send(subscribe()).await;
        server.metric_becomes("failed_client_msg_total", count).await;
        client.barrier().await;
    }
    assert_eq!(app.count(Method::Command), faults.len(), "one attempt each");
    assert_eq!(server.metric("rpc_error_total").await, faults.len() as i64);
    assert!(server.log().contains("no such room"), "{}", server.log());
    it_may_try_again(&app, &mut client).await;
}

/// HTTP has no word for it: any status but 200 is final.
async fn an_application_at_its_limit_is_asked_again_over_grpc(wire: Wire) {
    let app = Application::usual(wire);
    let server = app.server().start();
    let mut client = server.connect().await;
    let asked = std::sync::atomic::AtomicUsize::new(0);
    app.answer(move |call| match asked.fetch_add(1, std::sync::atomic::Ordering::SeqCst) {
        0..3 => Fault::Busy.into(),
        _ => Reply::usual(call),
    });
    client.send(subscribe()).await;
    match wire {
        Wire::Grpc => {
            client.expect(confirm(&channel())).await;
            assert_eq!(app.count(Method::Command), 4);
            assert_eq!(server.metric("rpc_retries_total").await, 3);
        }
        Wire::Http => {
            server.metric_becomes("failed_client_msg_total", 1).await;
            assert_eq!(app.count(Method::Command), 1);
            it_may_try_again(&app, &mut client).await;
        }
    }
}

fn says_bytes(bytes: usize) -> impl Fn(&Call) -> Reply + Send + Sync {
    move |call| match call.command() {
        "message" => Reply::success().say(call, json!("x".repeat(bytes))),
        _ => Reply::usual(call),
    }
}

/// A server that takes its time with large messages, and lets its clients take theirs.
fn patient(app: &Application) -> Builder {
    let patient = app.server().option("rpc_command_timeout", 60_000).option("rpc_request_timeout", 60_000);
    patient.option("ws_max_pending_size", 16 << 20)
}

async fn oversized_answers_are_no_answers(wire: Wire) {
    let app = Application::start(wire, says_bytes(5 << 20));
    let server = patient(&app).start();
    let mut client = server.connect().await;
    client.subscribe(&channel()).await;
    client.perform(&channel(), json!({})).await;
    server.metric_becomes("failed_client_msg_total", 1).await;
    client.barrier().await;
    app.answer(says_bytes(3 << 20));
    client.perform(&channel(), json!({})).await;
    client.expect_message(&channel(), json!("x".repeat(3 << 20))).await;
    assert_eq!(app.commands(), ["subscribe", "message", "message"], "it is not asked again");
}

async fn larger_answers_can_be_allowed(wire: Wire) {
    let app = Application::start(wire, says_bytes(5 << 20));
    let server = patient(&app).option("rpc_max_call_recv_size", 6 << 20).start();
    let mut client = server.connect().await;
    client.subscribe(&channel()).await;
    client.perform(&channel(), json!({})).await;
    client.expect_message(&channel(), json!("x".repeat(5 << 20))).await;
    app.answer(says_bytes(7 << 20));
    client.perform(&channel(), json!({})).await;
    server.metric_becomes("failed_client_msg_total", 1).await;
    client.barrier().await;
}

async fn an_application_that_starts_later_is_found(wire: Wire) {
    let mut app = Application::absent(wire, Reply::usual);
    let server = app.server().start();
    let mut client = server.dial().open().await;
    server.metric_becomes("rpc_call_total", 1).await;
    app.restart();
    assert_eq!(client.next().await["type"], "welcome");
    client.subscribe(&channel()).await;
}

/// It is not a refusal: the client may come back.
async fn an_application_that_does_not_start_refuses_nobody(wire: Wire) {
    let mut app = Application::absent(wire, Reply::usual);
    let server = app.server().option("rpc_command_timeout", 1_000).start();
    for _ in 0..3 {
        server.dial().open().await.expect_close(1011, "Auth Error").await;
    }
    assert_eq!(server.metric("failed_auths_total").await, 0);
    assert!(server.is_ready().await, "its readiness does not depend on the application");
    app.restart();
    eventually("clients are let in again", async || {
        let mut client = server.dial().open().await;
        matches!(client.event().await, client::Event::Frame(_)).then_some(())
    })
    .await;
}

/// Sends an action every 50 ms, 100 of them, and reads until `over` says so; the answers' numbers, which `answered` counts.
async fn acts(
    mut client: Client,
    first: u64,
    answered: Arc<AtomicI64>,
    over: tokio_util::sync::CancellationToken,
) -> Vec<u64> {
    let mut answers = Vec::new();
    let mut next = first;
    while !over.is_cancelled() {
        if next < first + 100 {
            client.perform(&channel(), json!({"number": next})).await;
            next += 1;
        }
        let wait_until = Instant::now() + Duration::from_millis(50);
        while let Some(event) = client.event_within(wait_until.saturating_duration_since(Instant::now())).await {
            let client::Event::Frame(frame) = event else { panic!("a connection ended: {event:?}") };
            let frame: Value = serde_json::from_str(&frame).expect("JSON");
            if frame["identifier"].is_string() {
                answers.push(frame["message"].as_u64().expect("a number"));
                answered.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
    answers
}

/// Every action is answered, or counted as failed and logged; the application never sees more of them than calls and
/// retries account for.
async fn a_flapping_application_loses_and_repeats_nothing_unnoticed(wire: Wire) {
    const CLIENTS: u64 = 8;
    let mut app = Application::usual(wire);
    // As it is by default.
    let server = app.server().option("rpc_command_timeout", 3_000).option("rpc_request_timeout", 3_000).start();
    let mut clients = join_all((0..CLIENTS).map(|_| server.connect())).await;
    for client in &mut clients {
        client.subscribe(&channel()).await;
    }
    let (calls_before, retries_before) =
        (server.metric("rpc_call_total").await, server.metric("rpc_retries_total").await);
    app.forget();
    app.answer(|call| echo(call).after(Duration::from_millis(20)));
    let over = tokio_util::sync::CancellationToken::new();
    let answered = Arc::new(AtomicI64::new(0));
    let acting = (0..).zip(clients);
    let acting = acting.map(|(who, client)| tokio::spawn(acts(client, who * 100, answered.clone(), over.clone())));
    let acting: Vec<_> = acting.collect();
    // Up and down until every action has been decided.
    let calls = CLIENTS as i64 * 100;
    let deadline = Instant::now() + 4 * PATIENCE;
    for round in 0.. {
        let made = server.metric("rpc_call_total").await - calls_before;
        if made == calls && app.running() == 0 && server.metric("rpc_pending_num").await == 0 {
            break;
        }
        assert!(Instant::now() < deadline, "{made} calls were made");
        // Now and then it is up long enough for a lasting connection.
        let_pass(Duration::from_millis(if round % 2 == 0 { 300 } else { 1_200 })).await;
        app.kill();
        let_pass(Duration::from_millis(300)).await;
        app.restart();
    }
    eventually("each call is answered or counted as failed", async || {
        let failed = server.metric("failed_client_msg_total").await;
        (answered.load(Ordering::Relaxed) + failed >= calls).then_some(())
    })
    .await;
    // What comes beyond that would be too much.
    let_pass(SILENCE).await;
    over.cancel();
    let answers: Vec<Vec<u64>> =
        join_all(acting).await.into_iter().map(|done| done.expect("no client failed")).collect();
    for answers in &answers {
        assert!(answers.is_sorted_by(|a, b| a < b), "in order, once: {answers:?}");
    }
    let answered = answers.iter().map(Vec::len).sum::<usize>() as i64;
    let failed = server.metric("failed_client_msg_total").await;
    assert_eq!(answered + failed, calls, "{answered} answered, {failed} failed");
    let mut executed: HashMap<u64, u64> = HashMap::new();
    for call in app.calls_of(Method::Command) {
        *executed.entry(call.data()["number"].as_u64().expect("a number")).or_default() += 1;
    }
    for number in answers.iter().flatten() {
        assert!(executed.contains_key(number), "{number} was answered by nobody");
    }
    let retries = server.metric("rpc_retries_total").await - retries_before;
    let again = executed.values().map(|times| times - 1).sum::<u64>() as i64;
    assert!(again <= retries, "{again} repeated, {retries} retries");
    assert!(wire == Wire::Grpc || app.cancelled() > 0, "no call was cut, nothing was tried");
    // Over gRPC calls fail at once while there is no connection, and with bad luck there seldom is one; over HTTP each
    // makes its own.
    assert!(answered > if wire == Wire::Http { calls / 4 } else { 0 }, "{answered} answered, {failed} failed");
    println!("{wire:?}: {answered} answered, {failed} failed, {again} repeated, {retries} retries");
}

/// Stopped as a deploy stops it: what runs is answered, what comes meanwhile is tried again.
async fn a_rolling_restart_of_the_application_is_not_noticed(wire: Wire) {
    let mut app = Application::usual(wire);
    let server = app.server().start();
    let mut client = server.connect().await;
    client.subscribe(&channel()).await;
    app.forget();
    app.answer(|call| echo(call).after(Duration::from_millis(50)));
    for round in 0..3 {
        for number in 0..10 {
            client.perform(&channel(), json!({"number": round * 10 + number})).await;
        }
        app.called(Method::Command, round as usize * 10 + 1).await;
        app.stop().await;
        app.restart();
        client.expect_numbers(&channel(), round * 10..=round * 10 + 9).await;
    }
    assert_eq!(app.count(Method::Command), 30, "none was made twice");
    assert_eq!(server.metric("failed_client_msg_total").await, 0);
}

async fn slow_calls_delay_only_their_own_connection(wire: Wire) {
    let app = Application::start(wire, |call| match call.action().as_str() {
        "slow" => Reply::success().say(call, json!("at last")).after(Duration::from_secs(10)),
        _ => echo(call),
    });
    let server = app.server().start();
    let (mut slow, mut quick) = (server.dial().query("pi=1").connect().await, server.connect().await);
    slow.subscribe(&channel()).await;
    quick.subscribe(&channel()).await;
    slow.perform(&channel(), json!({"action": "slow"})).await;
    slow.perform(&channel(), json!({"number": 0})).await;
    app.called(Method::Command, 3).await;
    for number in 1..=20 {
        quick.perform(&channel(), json!({"number": number})).await;
        quick.expect_message(&channel(), json!(number)).await;
    }
    server.publish("a", json!("live")).await;
    quick.expect_message(&channel(), json!("live")).await;
    slow.expect_message(&channel(), json!("live")).await;
    assert!(slow.next_ping(PATIENCE).await.is_some());
    assert_eq!(app.running(), 1, "all of this happened while the slow call ran");
    slow.expect_message(&channel(), json!("at last")).await;
    slow.expect_message(&channel(), json!(0)).await;
}

/// Clients whose subscriptions are sent one after another while the application is frozen, and all answered at last.
async fn queued(app: &Application, concurrency: usize) -> Vec<Client> {
    let server = patient(app).option("rpc_concurrency", concurrency).start();
    let mut clients = join_all((0..8).map(|_| server.connect())).await;
    app.freeze();
    for (count, client) in (1..).zip(&mut clients) {
        client.send(subscribe()).await;
        server.metric_becomes("rpc_call_total", 8 + count.min(concurrency) as i64).await;
        server.metric_becomes("rpc_pending_num", count.saturating_sub(concurrency) as i64).await;
    }
    app.thaw();
    for client in &mut clients {
        client.expect(confirm(&channel())).await;
    }
    server.metric_becomes("rpc_pending_num", 0).await;
    clients
}

async fn calls_in_flight_are_limited(wire: Wire) {
    let app = Application::start(wire, |call| Reply::usual(call).after(Duration::from_millis(300)));
    queued(&app, 3).await;
    assert_eq!(app.most_at_once(), 3);
}

async fn waiting_calls_keep_their_order(wire: Wire) {
    let app = Application::usual(wire);
    let clients = queued(&app, 1).await;
    let order: Vec<_> = app.calls_of(Method::Command).iter().map(|call| call.sid().to_owned()).collect();
    let expected: Vec<_> = clients.iter().map(|client| client.sid.clone()).collect();
    assert_eq!(order, expected);
}

async fn a_closed_session_cancels_its_call(wire: Wire) {
    let app = Application::usual(wire);
    let server = app.server().start();
    let mut client = server.connect().await;
    let sid = client.sid.clone();
    app.answer(|call| if call.command() == "subscribe" { Fault::Hang.into() } else { Reply::usual(call) });
    client.send(subscribe()).await;
    app.called(Method::Command, 1).await;
    client.drop_hard();
    eventually("the call is cancelled", async || (app.cancelled() == 1).then_some(())).await;
    server.metric_becomes("rpc_canceled_total", 1).await;
    server.metric_becomes("clients_num", 0).await;
    assert_eq!(server.metric("rpc_pending_num").await, 0);
    // Its end is told all the same.
    let call = &app.called(Method::Disconnect, 1).await[0];
    assert_eq!((call.sid(), call.subscriptions()), (sid.as_str(), vec![]));
}

async fn a_closed_session_does_not_wait_any_more(wire: Wire) {
    let app = Application::usual(wire);
    let server = app.server().option("rpc_concurrency", 1).option("disconnect_mode", "never").start();
    let mut clients = join_all((0..5).map(|_| server.connect())).await;
    app.answer(|_| Fault::Hang.into());
    for client in &mut clients {
        client.send(subscribe()).await;
    }
    server.metric_becomes("rpc_pending_num", 4).await;
    clients.into_iter().for_each(|client| drop(client.drop_hard()));
    server.metric_becomes("rpc_pending_num", 0).await;
    server.metric_becomes("rpc_canceled_total", 5).await;
    eventually("nothing runs", async || (app.running() == 0).then_some(())).await;
    app.answer(Reply::usual);
    server.connect().await.subscribe(&channel()).await;
}

async fn a_client_that_leaves_while_it_connects_cancels_its_call(wire: Wire) {
    let app = Application::start(wire, |_| Fault::Hang.into());
    let server = app.server().start();
    let client = server.dial().open().await;
    app.called(Method::Connect, 1).await;
    client.drop_hard();
    eventually("the call is cancelled", async || (app.cancelled() == 1).then_some(())).await;
    server.metric_becomes("rpc_canceled_total", 1).await;
    app.answer(Reply::usual);
    server.connect().await.close().await;
    let told = app.called(Method::Disconnect, 1).await;
    assert_eq!(told.len(), 1, "nobody was let in the first time");
}
