//! One place drives a client over any transport's source and sink: commands one at a time in order, replays when nothing
//! else is to do, timers.

use super::client::Client;
use super::connect::{Hello, connect};
use super::queue::Commands;
use super::{DEPARTURE_WAIT, Node, PingPrecision};
use crate::broker::Unavailable;
use crate::hub::{Outbox, Signal};
use crate::metrics;
use crate::protocol::encoding::ping_frame;
use crate::protocol::{Close, reply};
use crate::session::{Due, TimerConfig, Timers};
use futures_util::{Stream, StreamExt};
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;
use tokio::time::Instant;

/// What comes from a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Incoming {
    /// One frame of text.
    Text(String),
    /// A WebSocket pong.
    NativePong,
    /// A message over the size limit; nothing follows.
    TooBig,
    /// Something against the rules of the transport; nothing follows.
    Faulty(Close),
    /// The client closed, or its connection failed; nothing follows.
    Closed,
}

const A_DAY: Duration = Duration::from_secs(86_400);

pub(super) type Work<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Serves one client until its source ends or its outbox is closed. The caller writes the outbox to the client.
pub async fn drive<S>(node: Arc<Node>, hello: Hello, mut source: S, outbox: Arc<Outbox>)
where
    S: Stream<Item = Incoming> + Unpin,
{
    // A client that is told to disconnect forgets its session.
    let resumes_elsewhere = node.config.handover && hello.subprotocol.extended();
    let shutting_down = if resumes_elsewhere { Close::Handover } else { Close::Restart };
    if node.is_draining() {
        outbox.close(shutting_down);
        return;
    }
    let mut commands = Commands::new(&node);
    let mut source_open = true;
    let connecting = Box::pin({
        let (node, hello, outbox) = (node.clone(), hello.clone(), outbox.clone());
        async move { connect(&node, &hello, &outbox).await }
    });
    // Commands that come before the client is let in wait.
    let patience = node.config.auth_timeout;
    let letting_in = until_let_in(connecting, &mut source, &mut source_open, &mut commands, &outbox, patience);
    let Some(client) = letting_in.await else { return };
    if node.is_draining() {
        outbox.close(shutting_down);
    }
    if source_open {
        serve(&client, &hello, &mut source, commands).await;
    }
    let _turn = tokio::time::timeout(DEPARTURE_WAIT, node.departures.acquire()).await;
    // Saved while it still follows its streams: what is known of their heads is part of it.
    client.finish().await;
    client.depart();
}

/// Finishes letting the client in. A client that goes away meanwhile is let in all the same, so that what was registered
/// is taken back in one place; only a call to the application is given up, and so it is where it takes longer than
/// `patience` (zero: no limit), its turn included.
async fn until_let_in<S>(
    mut connecting: Work<Option<Arc<Client>>>,
    source: &mut S,
    source_open: &mut bool,
    commands: &mut Commands,
    outbox: &Outbox,
    patience: Duration,
) -> Option<Arc<Client>>
where
    S: Stream<Item = Incoming> + Unpin,
{
    let deadline = tokio::time::sleep(if patience.is_zero() { A_DAY } else { patience });
    tokio::pin!(deadline);
    let mut in_time = !patience.is_zero();
    loop {
        tokio::select! {
            biased;
            client = &mut connecting => return client,
            () = &mut deadline, if in_time => {
                in_time = false;
                metrics::AUTH_TIMEOUTS.inc();
                outbox.close(Close::AuthError);
            }
            incoming = read(source, commands, false), if *source_open => match incoming {
                Some(Incoming::Text(frame)) => commands.push(frame),
                Some(Incoming::NativePong) => {}
                Some(Incoming::TooBig) => {
                    outbox.close(Close::TooBig);
                    *source_open = false;
                }
                Some(Incoming::Faulty(close)) => {
                    outbox.close(close);
                    *source_open = false;
                }
                Some(Incoming::Closed) | None => {
                    outbox.finish();
                    *source_open = false;
                }
            },
        }
    }
}

/// What comes next from a client whose commands may wait; nothing while they may not. That is asked when something has
/// come, not before: others may have taken the room meanwhile.
async fn read<S>(source: &mut S, commands: &mut Commands, let_in: bool) -> Option<Incoming>
where
    S: Stream<Item = Incoming> + Unpin,
{
    poll_fn(|cx| if commands.has_room(let_in) { source.poll_next_unpin(cx) } else { Poll::Pending }).await
}

async fn serve<S>(client: &Arc<Client>, hello: &Hello, source: &mut S, mut commands: Commands)
where
    S: Stream<Item = Incoming> + Unpin,
{
    let node = &client.node;
    let outbox = client.outbox();
    let mut timers = timers(node, hello);
    // The hold starts when `welcome` is written: a client cannot answer what it has not been sent.
    let mut welcome_unwritten = client.is_unproved();
    let mut executing: Option<Work<Result<(), Unavailable>>> = None;
    let mut replaying: Option<Work<Result<(), Unavailable>>> = None;
    let mut touching: Option<Work<()>> = None;
    let mut stalled = false;
    let mut proving: Option<Work<()>> = None;
    // Something came after the welcome had been written: it says that the client knows its new sid.
    let mut heard = false;
    let sleep = tokio::time::sleep_until(timers.next().unwrap_or_else(far_future));
    tokio::pin!(sleep);
    loop {
        // A client that does not read its answers is not given more of them.
        let room = outbox.room_for_answers();
        if executing.is_none() && room > 0 {
            executing = commands.start(client, &mut timers, room);
        }
        // Replays wait until every command that has come so far is executed, so that subscriptions to one stream that
        // were asked for together catch up together. What was live and found no room does not.
        let is_suspended = client.handle.suspended_since().is_some();
        let may_replay = executing.is_none() && commands.is_empty() && !is_suspended;
        let has_stalled = std::mem::take(&mut stalled) && !is_suspended;
        if ((may_replay && client.release_replay()) || has_stalled) && replaying.is_none() {
            let client = client.clone();
            replaying = Some(Box::pin(async move { client.replay().await }));
        }
        if touching.is_none() && client.is_behind() {
            let client = client.clone();
            touching = Some(Box::pin(async move { client.catch_up().await }));
        }
        let paced = commands.paced_until();
        match [timers.next(), paced].into_iter().flatten().min() {
            Some(deadline) if sleep.deadline() != deadline => sleep.as_mut().reset(deadline),
            None if sleep.is_elapsed() => sleep.as_mut().reset(far_future()),
            _ => {}
        }
        let mut spoke = false;
        tokio::select! {
            biased;
            signal = poll_fn(|cx| outbox.poll_signal(cx)) => match signal {
                Signal::Over => break,
                Signal::Stalled => {
                    client.note_stalled();
                    stalled = true;
                }
            },
            incoming = read(source, &mut commands, true) => match incoming {
                Some(Incoming::Text(frame)) => {
                    commands.push(frame);
                    spoke = true;
                }
                Some(Incoming::NativePong) => {
                    timers.on_native_pong(Instant::now());
                    spoke = true;
                }
                Some(Incoming::TooBig) => {
                    heard |= !welcome_unwritten || outbox.pending() == 0;
                    outbox.close(Close::TooBig);
                    break;
                }
                Some(Incoming::Faulty(close)) => {
                    heard |= !welcome_unwritten || outbox.pending() == 0;
                    outbox.close(close);
                    break;
                }
                Some(Incoming::Closed) | None => break,
            },
            () = poll_fn(|cx| outbox.poll_below(cx, 1)), if welcome_unwritten => {}
            result = poll_work(&mut executing) => {
                executing = None;
                if result.is_err() {
                    outbox.close(Close::StoreUnavailable);
                }
            }
            result = poll_work(&mut replaying) => {
                replaying = None;
                if result.is_err() {
                    outbox.close(Close::StoreUnavailable);
                }
            }
            () = poll_work(&mut touching) => touching = None,
            () = poll_fn(|cx| outbox.poll_room_for_answers(cx)), if executing.is_none() && !commands.is_empty() => {}
            () = poll_work(&mut proving) => proving = None,
            () = &mut sleep => {
                // What a client sends that is read more slowly, or that does not read its answers, may wait unread.
                let busy = executing.is_some() || paced.is_some() || !commands.is_empty();
                while let Some(due) = timers.due(Instant::now(), busy) {
                    match due {
                        Due::Ping => ping(client, hello),
                        Due::NoPong => client.close(Close::NoPong),
                        Due::HoldOver => client.end_hold(),
                        Due::Touch if touching.is_none() && client.wants_touch(touch_every(&client.node)) => {
                            let client = client.clone();
                            touching = Some(Box::pin(async move {
                                let _ = client.touch().await;
                            }));
                        }
                        Due::Touch => {}
                    }
                }
            }
        }
        if welcome_unwritten && outbox.pending() == 0 {
            welcome_unwritten = false;
            timers.hold(Instant::now() + node.config.history_hold);
        }
        heard |= spoke && !welcome_unwritten;
        if spoke && heard && proving.is_none() && client.is_unproved() {
            let client = client.clone();
            proving = Some(Box::pin(async move { client.prove().await }));
        }
    }
    // The session before is over, however soon this connection ended after that.
    if heard && client.is_unproved() {
        drop(proving);
        let _ = tokio::time::timeout(node.config.broker_timeout, client.prove()).await;
    }
    // An answer of the application that is already there counts: it is told of the end of what it has granted.
    if let Some(command) = &mut executing {
        poll_fn(|cx| Poll::Ready(command.as_mut().poll(cx).is_ready())).await;
    }
}

async fn poll_work<T>(work: &mut Option<Work<T>>) -> T {
    match work {
        Some(work) => work.await,
        None => std::future::pending().await,
    }
}

fn far_future() -> Instant {
    Instant::now() + A_DAY
}

fn timers(node: &Node, hello: &Hello) -> Timers {
    let config = &node.config;
    let extended = hello.subprotocol.extended();
    // Proofs of what was not missed grow old with the history, so they are refreshed more often than it expires.
    let touch_every = if extended { touch_every(node) } else { Default::default() };
    let timing = TimerConfig {
        ping_interval: hello.ping_interval.unwrap_or(config.ping_interval),
        pong_timeout: if extended || config.native_pings { config.pong_timeout } else { Default::default() },
        touch_every,
    };
    let mut random = [0; 2];
    getrandom::fill(&mut random).expect("the operating system's random source works");
    Timers::new(timing, f64::from(u16::from_be_bytes(random)) / 65_536.0, Instant::now())
}

/// The most often that some session may have to be written again; [`Client::wants_touch`] tells whether this one has.
fn touch_every(node: &Node) -> std::time::Duration {
    let sessions = node.config.sessions_ttl / 2;
    node.hub.table().shortest_ttl().map_or(sessions, |ttl| sessions.min(ttl / 4))
}

/// Pings queue in order with data, and carry the time up to which data was delivered.
fn ping(client: &Client, hello: &Hello) {
    let config = &client.node.config;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    // A client takes a ping's time as the moment up to which it has seen everything.
    let now = client.handle.suspended_since().map_or(now, |since| now.min(std::time::Duration::from_millis(since)));
    let timestamp = match hello.ping_precision.unwrap_or(config.ping_precision) {
        PingPrecision::Seconds => u128::from(now.as_secs()),
        PingPrecision::Milliseconds => now.as_millis(),
        PingPrecision::Nanoseconds => now.as_nanos(),
    };
    client.outbox().push_sign_of_life(reply::ping(client.receiver.encoding(), timestamp));
    if config.native_pings {
        client.outbox().push_sign_of_life(ping_frame());
    }
}
