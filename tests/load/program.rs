//! The load program: what one server does on this machine. Run by `scripts/load`; the client's side is written to cost
//! little, because it shares the machine with the server.

mod abuse;
mod application;
mod attack;
mod connects;
mod crowd;
mod cut;
mod fanout;
mod frames;
mod holes;
mod idle;
mod leavers;
mod memory;
mod metrics;
mod post;
#[path = "../kill/proc.rs"]
mod proc;
mod publish;
mod replay;
mod report;
#[path = "../harness/resident.rs"]
mod resident;
#[path = "../kill/server.rs"]
#[expect(dead_code, reason = "the kill tests restart the server, we do not")]
mod server;
mod socket;
mod spread;
mod steady;
mod streams;
mod swarm;
mod target;

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use std::path::PathBuf;
use std::process::ExitCode;

fn number(name: &'static str, default: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).value_name("N").value_parser(value_parser!(u64)).default_value(default).help(help)
}

fn switch(name: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).action(ArgAction::SetTrue).help(help)
}

fn broker() -> Arg {
    Arg::new("broker").long("broker").value_parser(["nats", "memory"]).default_value("nats").help("Where it stores")
}

fn command() -> Command {
    let seconds = |default| number("seconds", default, "How long to measure");
    Command::new("load")
        .about("Measures a server on this machine; starts one with its embedded nats-server unless --http is given")
        .subcommand_required(true)
        .arg(Arg::new("http").long("http").global(true).value_name("HOST:PORT").help("Client side of a running server"))
        .arg(
            Arg::new("broadcast")
                .long("broadcast")
                .global(true)
                .value_name("HOST:PORT")
                .help("Its publishers' side [default: the same]"),
        )
        .arg(Arg::new("nats").long("nats").global(true).value_name("URL").help("Its NATS server"))
        .arg(Arg::new("pid").long("pid").global(true).value_parser(value_parser!(u32)).help("Its process, for memory"))
        .arg(
            Arg::new("server")
                .long("server")
                .global(true)
                .value_parser(value_parser!(PathBuf))
                .help("Another carrick binary"),
        )
        .arg(
            Arg::new("server-arg")
                .long("server-arg")
                .global(true)
                .action(ArgAction::Append)
                .help("An argument for the server that is started, such as --server-arg=--history_limit=1000"),
        )
        // Cargo passes it to every benchmark.
        .arg(Arg::new("bench").long("bench").global(true).action(ArgAction::SetTrue).hide(true))
        .subcommand(
            Command::new("idle")
                .about("Memory per idle connection with one subscription")
                .arg(number("connections", "5000", "Connections"))
                .arg(number("streams", "0", "Streams they share; 0: one each"))
                .arg(number("settle", "15", "Seconds of idling before memory is read")),
        )
        .subcommand(
            Command::new("fanout")
                .about("Deliveries per second of one stream to many clients, each message once and in order")
                .arg(number("clients", "5000", "Subscribers"))
                .arg(seconds("10"))
                .arg(number("payload", "100", "Bytes of data per message"))
                .arg(number("outstanding", "64", "Messages published and not yet delivered, on average"))
                .arg(number("publishers", "16", "Kept-alive connections that publish"))
                .arg(number("threads", "1", "Threads that receive")),
        )
        .subcommand(
            Command::new("publish")
                .about("Acknowledged messages per second, one message per request")
                .arg(number("connections", "16", "Kept-alive connections, one request at a time on each"))
                .arg(number("streams", "100", "Streams to publish to"))
                .arg(number("payload", "100", "Bytes of data per message"))
                .arg(seconds("10")),
        )
        .subcommand(
            Command::new("streams")
                .about("One message to each of many streams: JetStream's streams and consumers, and memory")
                .arg(number("streams", "100000", "Streams"))
                .arg(number("connections", "16", "Kept-alive connections"))
                .arg(number("payload", "100", "Bytes of data per message")),
        )
        .subcommand(
            Command::new("connects")
                .about("Clients that connect at once while the application is slow, and half of them that give up")
                .arg(broker())
                .arg(number("clients", "1000", "Clients"))
                .arg(number("answer", "500", "Milliseconds that the application takes to let one in"))
                .arg(number("concurrency", "28", "Calls to the application at a time"))
                .arg(number("give-up", "2000", "Milliseconds after which half of them leave, in the second burst")),
        )
        .subcommand(
            Command::new("leavers")
                .about("Thousands that leave at once: what those who stay notice, and what the application is told")
                .arg(broker())
                .arg(number("leavers", "5000", "Clients that leave, with two subscriptions each"))
                .arg(switch("together", "One of the two follows the others' stream"))
                .arg(number("others", "200", "Clients that stay and receive"))
                .arg(number("rate", "100", "Messages per second to them"))
                .arg(number("farewells", "500", "Disconnect calls per second"))
                .arg(seconds("5"))
                .arg(number("payload", "100", "Bytes of data per message")),
        )
        .subcommand(
            Command::new("holes")
                .about("A node that was cut off from the store and missed something of every open stream")
                .arg(number("streams", "10000", "Open streams"))
                .arg(number("missed", "1", "Messages missed in each"))
                .arg(number("clients", "200", "Clients that come back meanwhile, 20 messages behind"))
                .arg(number("rate", "200", "Of them per second"))
                .arg(number("payload", "100", "Bytes of data per message")),
        )
        .subcommand(
            Command::new("replay")
                .about("Clients that come back far behind, one alone and many at once, while live messages arrive")
                .arg(broker())
                .arg(number("kept", "100000", "Messages kept in the stream of the one"))
                .arg(number("behind", "50000", "Messages that it has missed"))
                .arg(number("clients", "500", "Clients that come back at once"))
                .arg(number("clients-behind", "1000", "Messages that each of them has missed"))
                .arg(number("rate", "200", "Live messages per second"))
                .arg(switch("follower", "Another client follows the stream all the time"))
                .arg(number("payload", "100", "Bytes of data per message")),
        )
        .subcommand(
            Command::new("abuse")
                .about("Attackers that do everything at once beside honest clients: what those notice, and what stays in memory")
                .arg(number("clients", "200", "Honest clients, which drop and come back"))
                .arg(number("rate", "200", "Messages per second to them"))
                .arg(number("attackers", "50", "Attackers, of twelve kinds: one of each kind at least"))
                .arg(seconds("60"))
                .arg(number("rest", "60", "Seconds after the attack until memory is read"))
                .arg(
                    Arg::new("only")
                        .long("only")
                        .value_name("KIND")
                        .value_parser(attack::Tactic::ALL.map(attack::Tactic::key))
                        .help("Attackers of this kind alone, to see what it costs"),
                ),
        )
}

fn main() -> ExitCode {
    let matches = command().get_matches();
    let result = match matches.subcommand() {
        Some(("idle", options)) => idle::run(options),
        Some(("fanout", options)) => fanout::run(options),
        Some(("publish", options)) => publish::run(options),
        Some(("streams", options)) => streams::run(options),
        Some(("connects", options)) => connects::run(options),
        Some(("leavers", options)) => leavers::run(options),
        Some(("holes", options)) => holes::run(options),
        Some(("replay", options)) => replay::run(options),
        Some(("abuse", options)) => abuse::run(options),
        _ => Err("no such command, see --help".to_owned()),
    };
    match result {
        Ok(report) => {
            report.print();
            if report.passed() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            eprintln!("load: {error}");
            ExitCode::FAILURE
        }
    }
}

/// What the server is told of its broker.
fn broker_options(options: &ArgMatches) -> Vec<String> {
    match options.get_one::<String>("broker").map(String::as_str) {
        Some("memory") => vec!["--broker=memory".to_owned(), "--embed_nats=false".to_owned()],
        _ => Vec::new(),
    }
}

/// A numeric option.
fn of(options: &ArgMatches, name: &str) -> u64 {
    *options.get_one(name).expect("every number has a default")
}

fn count(options: &ArgMatches, name: &str) -> usize {
    usize::try_from(of(options, name)).unwrap_or(usize::MAX)
}
