//! Many distinct streams: what they cost, and that JetStream knows nothing of them.

use crate::count;
use crate::memory::Memory;
use crate::post::{data, drive, message, request};
use crate::publish::describe;
use crate::report::Report;
use crate::target::Target;
use async_nats::ConnectOptions;
use clap::ArgMatches;
use serde::Deserialize;
use std::time::Duration;

#[derive(Deserialize, PartialEq, Eq, Clone, Copy)]
struct JetStream {
    streams: u64,
    consumers: u64,
    memory: u64,
    storage: u64,
}

pub fn run(options: &ArgMatches) -> Result<Report, String> {
    let (streams, connections, payload) =
        (count(options, "streams"), count(options, "connections"), count(options, "payload"));
    let target = Target::from_options(options)?;
    let jet_before = target.nats_url().map(jet_stream).transpose()?;
    let before = Memory::of(&target);
    let data = data("", payload);
    let mut index = 0;
    let driven = drive(target.broadcast(), connections, || {
        index += 1;
        (index <= streams).then(|| request(target.broadcast(), &message(&format!("room/{index}.a b"), &data)))
    })
    .map_err(|error| format!("publishing failed: {error}"))?;
    let after = Memory::of(&target);
    let jet_after = target.nats_url().map(jet_stream).transpose()?;
    let mut report = Report::new(format!("streams: {streams} distinct streams, one message of {payload} bytes each"));
    describe(&mut report, &driven);
    report.bytes("carrick_before", "carrick before", before.carrick);
    report.bytes("carrick_after", "carrick after", after.carrick);
    report.bytes("nats_before", "nats-server before", before.nats);
    report.bytes("nats_after", "nats-server after", after.nats);
    if let (Some(before), Some(after)) = (jet_before, jet_after) {
        report.row(
            "jetstream_streams",
            "JetStream streams",
            format!("{} → {}", before.streams, after.streams),
            after.streams,
        );
        report.row(
            "jetstream_consumers",
            "JetStream consumers",
            format!("{} → {}", before.consumers, after.consumers),
            after.consumers,
        );
        report.bytes("jetstream_storage", "JetStream storage", Some(after.storage));
        report.bytes("jetstream_memory", "JetStream memory storage", Some(after.memory));
        if (before.streams, before.consumers) != (after.streams, after.consumers) {
            report.broken("the number of JetStream streams or consumers has changed");
        }
    }
    if driven.acknowledged != streams as u64 {
        report.broken(format!("{} of {streams} messages were acknowledged", driven.acknowledged));
    }
    target.stop()?;
    Ok(report)
}

fn jet_stream(url: &str) -> Result<JetStream, String> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| error.to_string())?;
    runtime.block_on(async {
        let answer = async {
            let parsed = url::Url::parse(url).map_err(|error| error.to_string())?;
            let options = match parsed.password() {
                Some(password) => ConnectOptions::with_user_and_password(parsed.username().into(), password.into()),
                None => ConnectOptions::new(),
            };
            let client = options.connect(url).await.map_err(|error| error.to_string())?;
            client.request("$JS.API.INFO", "".into()).await.map_err(|error| error.to_string())
        };
        let answer = tokio::time::timeout(Duration::from_secs(5), answer).await.map_err(|_| "no answer".to_owned());
        let message =
            answer.and_then(|answer| answer).map_err(|error| format!("cannot ask {url} for its streams: {error}"))?;
        serde_json::from_slice(&message.payload).map_err(|error| format!("strange answer of {url}: {error}"))
    })
}
