//! Channels of the application: what a client sees of its answers.

use super::*;
use serde_json::json as value;

const CHAT: &str = r#"{"channel":"Chat","id":1}"#;
const OTHER: &str = r#"{"channel":"Chat","id":2}"#;

fn delivered(frame: &serde_json::Value) -> (&str, &serde_json::Value) {
    (frame["identifier"].as_str().unwrap(), &frame["message"])
}

#[tokio::test(start_paused = true)]
async fn what_is_transmitted_while_subscribing_precedes_the_confirmation_and_the_streams_follow_it() {
    let app = Script::on_command(|call| {
        let transmissions =
            vec![said(&call.identifier, "hello".into()), said(&call.identifier, "world".into()), confirm(CHAT)];
        Ok(CommandEffects { transmissions, ..confirmed(call, &["a", "b", "a"]) })
    });
    let cluster = Cluster::new(app);
    let (mut browser, _) = cluster.welcomed().await;
    browser.subscribe(CHAT);
    assert_eq!(browser.next().await["message"], "hello");
    assert_eq!(browser.next().await["message"], "world");
    assert_eq!(browser.next().await, json(&confirm(CHAT)));
    for (stream, text) in [("a", "one"), ("b", "two"), ("c", "three"), ("a", "four")] {
        cluster.publish(stream, text).await;
    }
    for text in ["one", "two", "four"] {
        assert_eq!(delivered(&browser.next().await), (CHAT, &value!(text)));
    }
    browser.silence().await;
}

#[tokio::test(start_paused = true)]
async fn a_rejected_subscription_follows_nothing_and_may_be_tried_again() {
    let reject = value!({ "type": "reject_subscription", "identifier": CHAT });
    let rejection = reject.to_string();
    let app = Script::on_command(move |call| {
        if call.env.cstate.contains_key("tried") {
            return Ok(confirmed(call, &["a"]));
        }
        let transmissions = vec![rejection.clone()];
        let cstate = state(&[("tried", "yes")]);
        Ok(CommandEffects { outcome: Outcome::Failure, transmissions, cstate, ..confirmed(call, &["a"]) })
    });
    let cluster = Cluster::new(app);
    let (mut browser, _) = cluster.welcomed().await;
    browser.subscribe(CHAT);
    assert_eq!(browser.next().await, reject);
    cluster.publish("a", "x").await;
    browser.silence().await;
    browser.subscribed(CHAT).await;
}

#[tokio::test(start_paused = true)]
async fn a_failed_command_is_silent_counted_and_may_be_tried_again() {
    let failures = AtomicUsize::new(0);
    let app = Script::on_command(move |call| match failures.fetch_add(1, Ordering::Relaxed) {
        0 => Err(RpcError::Application("boom".into())),
        1 => Err(RpcError::Timeout),
        _ => Ok(confirmed(call, &["a"])),
    });
    let cluster = Cluster::new(app);
    let (mut browser, _) = cluster.welcomed().await;
    let counted = crate::metrics::FAILED_CLIENT_MSG.get();
    for _ in 0..2 {
        browser.subscribe(CHAT);
        browser.silence().await;
    }
    assert!(crate::metrics::FAILED_CLIENT_MSG.get() >= counted + 2);
    browser.subscribed(CHAT).await;
    browser.subscribe(CHAT);
    browser.silence().await;
    assert_eq!(cluster.app.commands().len(), 3, "a repeated request reaches nobody");
}

#[tokio::test(start_paused = true)]
async fn actions_get_their_data_untouched_and_answer() {
    let app = Script::on_command(|call| {
        let mut effects = confirmed(call, &[]);
        if call.kind == CommandKind::Message {
            effects.transmissions = vec![said(&call.identifier, value!({ "response": call.data }))];
        }
        Ok(effects)
    });
    let cluster = Cluster::new(app);
    let (mut browser, _) = cluster.welcomed().await;
    browser.perform(CHAT, "{}");
    browser.silence().await;
    browser.subscribed(CHAT).await;
    let data = r#"{"action":"echo",  "n":1.10}"#;
    browser.perform(CHAT, data);
    assert_eq!(browser.next().await["message"], value!({ "response": data }));
    assert_eq!(cluster.app.commands().len(), 2, "an unknown identifier is none of the application's business");
}

#[tokio::test(start_paused = true)]
async fn state_is_kept_between_commands_and_merged() {
    let app = Script::on_command(|call| {
        let mut effects = confirmed(call, &["chat/7"]);
        match call.kind {
            CommandKind::Subscribe => {
                effects.istate = state(&[("room", "7"), ("$w", "chat/7")]);
                effects.cstate = state(&[("plan", "pro")]);
            }
            _ => effects.istate = state(&[("room", ""), ("count", "3")]),
        }
        Ok(effects)
    });
    let cluster = Cluster::new(app);
    let (mut browser, _) = cluster.welcomed().await;
    browser.subscribed(CHAT).await;
    browser.subscribed(OTHER).await;
    browser.perform(CHAT, "1");
    browser.perform(CHAT, "2");
    eventually("four commands", || cluster.app.commands().len() == 4).await;
    let envs: Vec<_> = cluster.app.commands().into_iter().map(|call| (call.env.cstate, call.env.istate)).collect();
    let pro = state(&[("plan", "pro")]);
    assert_eq!(envs[0], (State::new(), State::new()));
    assert_eq!(envs[1], (pro.clone(), State::new()), "state belongs to one identifier");
    assert_eq!(envs[2], (pro.clone(), state(&[("room", "7"), ("$w", "chat/7")])));
    assert_eq!(envs[3], (pro, state(&[("count", "3"), ("$w", "chat/7")])));
}

#[tokio::test(start_paused = true)]
async fn each_identifier_gets_its_copy_and_only_the_left_one_stops() {
    let cluster = Cluster::new(Script::default());
    let (mut browser, _) = cluster.welcomed().await;
    let (mut neighbour, _) = cluster.welcomed_with(1, hello(None)).await;
    browser.subscribed(CHAT).await;
    browser.subscribed(OTHER).await;
    neighbour.subscribed(CHAT).await;
    cluster.publish("a", "x").await;
    let mut copies = [browser.next().await, browser.next().await];
    copies.sort_by_key(|frame| frame["identifier"].to_string());
    assert_eq!([delivered(&copies[0]).0, delivered(&copies[1]).0], [CHAT, OTHER]);
    assert_eq!(neighbour.next().await["message"], "x");
    browser.unsubscribe(CHAT);
    browser.unsubscribe(OTHER);
    eventually("both are left", || cluster.app.commands().len() == 5).await;
    cluster.publish("a", "y").await;
    assert_eq!(neighbour.next().await["message"], "y");
    browser.silence().await;
    assert_eq!(cluster.app.commands()[4].kind, CommandKind::Unsubscribe);
}

#[tokio::test(start_paused = true)]
async fn streams_are_stopped_and_added_by_actions() {
    let app = Script::on_command(|call| {
        let mut effects = confirmed(call, &["a", "b"]);
        match call.data.as_str() {
            "one" => effects.stopped_streams = vec!["a".into()],
            "all" => {
                effects.stop_streams = true;
                effects.stopped_streams = vec!["ignored".into()];
                effects.streams = vec!["c".into(), "c".into()];
            }
            _ => {}
        }
        if call.kind == CommandKind::Message {
            effects.transmissions = vec![said(&call.identifier, "done".into())];
        }
        Ok(effects)
    });
    let cluster = Cluster::new(app);
    let (mut browser, _) = cluster.welcomed().await;
    browser.subscribed(CHAT).await;
    for (action, heard) in [("one", vec!["b"]), ("all", vec!["c"]), ("all", vec!["c"])] {
        browser.perform(CHAT, action);
        assert_eq!(browser.next().await["message"], "done");
        for stream in ["a", "b", "c"] {
            cluster.publish(stream, stream).await;
        }
        for stream in heard {
            assert_eq!(browser.next().await["message"], stream, "after {action}");
        }
        browser.silence().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_command_may_end_the_connection_after_its_last_words() {
    let app = Script::on_command(|call| Ok(CommandEffects { disconnect: true, ..confirmed(call, &["a"]) }));
    let cluster = Cluster::new(app);
    let (mut browser, _) = cluster.welcomed().await;
    browser.subscribed(CHAT).await;
    assert_eq!(browser.next().await, value!({ "close": 1011, "reason": "Command Failed" }));
    eventually("the application hears of it", || cluster.app.disconnects().len() == 1).await;
    assert_eq!(cluster.app.disconnects()[0].subscriptions, [CHAT]);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_could_not_leave_may_subscribe_again() {
    let app = Script::on_command(|call| match call.kind {
        CommandKind::Unsubscribe => Err(RpcError::Timeout),
        _ => Ok(confirmed(call, &["a"])),
    });
    let cluster = Cluster::new(app);
    let (mut browser, _) = cluster.welcomed().await;
    browser.subscribed(CHAT).await;
    browser.unsubscribe(CHAT);
    browser.subscribed(CHAT).await;
    cluster.publish("a", "x").await;
    assert_eq!(browser.next().await["message"], "x");
    browser.silence().await;
}

#[tokio::test(start_paused = true)]
async fn the_performer_can_be_left_out_and_whispers_reach_the_others() {
    let app =
        Script::on_command(|call| Ok(CommandEffects { istate: state(&[("$w", "a")]), ..confirmed(call, &["a"]) }));
    let cluster = Cluster::new(app);
    let (mut browser, sid) = cluster.welcomed().await;
    let (mut neighbour, _) = cluster.welcomed_with(1, hello(None)).await;
    browser.subscribed(CHAT).await;
    neighbour.subscribed(CHAT).await;
    let meta = Meta { exclude_socket: Some(sid.as_str().into()), broadcast_type: None };
    cluster.publish_with("a", "\"for others\"", meta).await;
    browser.send(value!({ "command": "whisper", "identifier": CHAT, "data": { "typing": true } }));
    assert_eq!(neighbour.next().await["message"], "for others");
    assert_eq!(neighbour.next().await["message"], value!({ "typing": true }));
    browser.silence().await;
}

#[tokio::test(start_paused = true)]
async fn history_of_all_streams_follows_the_confirmation() {
    let app = Script::on_command(|call| Ok(confirmed(call, &["a", "b"])));
    let cluster = Cluster::new(app);
    for (stream, text) in [("a", "1"), ("b", "2"), ("a", "3")] {
        cluster.publish(stream, text).await;
    }
    let (mut browser, _) = cluster.welcomed().await;
    let since = crate::node::save::unix_ms() / 1_000 - 30;
    browser.send(value!({ "command": "subscribe", "identifier": CHAT, "history": { "since": since } }));
    assert_eq!(browser.next().await, json(&confirm(CHAT)));
    let mut replayed = [browser.next().await, browser.next().await, browser.next().await];
    replayed.sort_by_key(|frame| frame["offset"].as_u64());
    assert_eq!(replayed.map(|frame| frame["message"].clone()), [value!(1), value!(2), value!(3)]);
    assert_eq!(browser.next().await, value!({ "type": "confirm_history", "identifier": CHAT }));
    cluster.publish("b", "4").await;
    assert_eq!(browser.next().await["message"], 4);
}

#[tokio::test(start_paused = true)]
async fn streams_of_our_own_are_none_of_the_applications_business() {
    let cluster = Cluster::new(Script::default());
    let (mut browser, _) = cluster.welcomed().await;
    let public = r#"{"channel":"$pubsub","stream_name":"p"}"#;
    browser.subscribed(public).await;
    browser.perform(public, "{}");
    browser.unsubscribe(public);
    browser.subscribe("not an object");
    assert_eq!(browser.next().await["type"], "reject_subscription");
    assert_eq!(cluster.app.commands(), []);
}

/// The socket closes between the application's answer and our recording of it.
#[tokio::test(start_paused = true)]
async fn a_subscription_whose_streams_are_not_open_yet_is_in_the_farewell() {
    let app =
        Script::on_command(|call| Ok(CommandEffects { istate: state(&[("room", "7")]), ..confirmed(call, &["slow"]) }));
    let cluster = Cluster::new(app);
    let (browser, _) = cluster.welcomed().await;
    browser.subscribe(CHAT);
    eventually("the application has answered", || cluster.app.commands().len() == 1).await;
    tokio::time::sleep(SECOND / 10).await;
    browser.vanish();
    eventually("the application hears of it", || cluster.app.disconnects().len() == 1).await;
    let told = &cluster.app.disconnects()[0];
    assert_eq!(told.subscriptions, [CHAT]);
    assert_eq!(told.env.istate, state(&[(CHAT, r#"{"room":"7"}"#)]));
}

#[tokio::test(start_paused = true)]
async fn a_session_goes_on_with_streams_and_state_that_an_action_has_just_added() {
    let app = Script::on_command(|call| match call.kind {
        CommandKind::Subscribe => Ok(confirmed(call, &["a"])),
        _ => {
            Ok(CommandEffects { streams: vec!["slow".into()], istate: state(&[("room", "7")]), ..confirmed(call, &[]) })
        }
    });
    let cluster = Cluster::new(app);
    let (mut browser, sid) = cluster.welcomed().await;
    browser.subscribed(CHAT).await;
    browser.perform(CHAT, "{}");
    eventually("the application has answered", || cluster.app.commands().len() == 2).await;
    tokio::time::sleep(SECOND / 10).await;
    browser.vanish();
    eventually("the application hears of it", || cluster.app.disconnects().len() == 1).await;
    assert_eq!(cluster.app.disconnects()[0].env.istate, state(&[(CHAT, r#"{"room":"7"}"#)]));
    let (mut browser, _) = cluster.welcomed_with(1, hello(Some(&sid))).await;
    cluster.publish("slow", "x").await;
    assert_eq!(delivered(&browser.next().await), (CHAT, &value!("x")));
    browser.perform(CHAT, "{}");
    eventually("another action", || cluster.app.commands().len() == 3).await;
    assert_eq!(cluster.app.commands()[2].env.istate, state(&[("room", "7")]));
}
