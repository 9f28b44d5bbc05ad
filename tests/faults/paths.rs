//! Paths on which packets vanish for a while: nothing is closed, nothing is refused, and what the kernels hold is delivered
//! when the path heals. Only in a network namespace of our own, see [`crate::apart`].
//!
//! Processes that share the loopback interface are told apart by the address that they are called at. Members of an
//! embedded cluster call each other, so each of them lives in a namespace of its own, and this one is the router between
//! them: what passes through it can be dropped, while clients, who are here, still reach every member.

use crate::apart;
use crate::harness::patience::eventually_blocking;
use crate::harness::process::Process;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr};
use std::process::{Command, Stdio};
use tempfile::TempDir;

/// Addresses at which a nats-server can be called: two ways to the same place.
pub const WAYS: [Ipv4Addr; 2] = [Ipv4Addr::new(127, 0, 0, 2), Ipv4Addr::new(127, 0, 0, 3)];
const TABLE: &str = "ip silent";

pub struct Paths {
    members: Vec<Process>,
    _folder: TempDir,
}

impl Paths {
    /// Among processes of this namespace.
    pub fn by_address() -> Self {
        Self::new("input", 0)
    }

    /// Between members, each in a namespace of its own.
    pub fn between_members(count: u8) -> Self {
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").expect("packets can be passed on");
        Self::new("forward", count)
    }

    fn new(hook: &str, members: u8) -> Self {
        assert!(apart::is_apart(), "packets of other programs are none of our business");
        nft(&format!("table {TABLE} {{\n chain drops {{\n type filter hook {hook} priority 0;\n }}\n }}\n"));
        let folder = tempfile::Builder::new().prefix("paths-").tempdir_in(env!("CARGO_TARGET_TMPDIR"));
        let folder = folder.expect("a folder can be created");
        Self { members: (0..members).map(|number| member(&folder, number)).collect(), _folder: folder }
    }

    /// Process whose namespace a member's processes must enter.
    pub fn namespace(&self, member: usize) -> u32 {
        self.members[member].pid()
    }

    /// Drops all packets from and to these addresses.
    pub fn silence(&self, addresses: &[IpAddr]) {
        let rule = |end: &str, address: &IpAddr| format!("add rule {TABLE} drops ip {end} {address} counter drop\n");
        let rules = addresses.iter().flat_map(|address| ["saddr", "daddr"].map(|end| rule(end, address)));
        nft(&rules.collect::<String>());
    }

    /// Lets everything pass again. Answers with the number of packets that vanished.
    pub fn heal(&self) -> u64 {
        let rules = run(Command::new("nft").args(["list", "chain"]).args(TABLE.split(' ')).arg("drops"));
        nft(&format!("flush chain {TABLE} drops\n"));
        let packets = |line: &str| line.split_once("counter packets ")?.1.split(' ').next()?.parse::<u64>().ok();
        rules.lines().filter_map(packets).sum()
    }
}

impl Drop for Paths {
    fn drop(&mut self) {
        // They go with the namespace otherwise.
        let _ = Command::new("nft").args(["delete", "table"]).args(TABLE.split(' ')).status();
        // A member's namespace takes its interface along some time after its process: the next member may come before.
        for number in 0..self.members.len() {
            let _ = Command::new("ip").args(["link", "del", &interface_of(number)]).status();
        }
    }
}

/// Where a member is called.
pub fn address_of(member: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 78, u8::try_from(member).expect("few members"), 2)
}

/// The end of a member's path in this namespace.
fn interface_of(member: usize) -> String {
    format!("member{member}")
}

/// Makes a namespace, and the path to it.
fn member(folder: &TempDir, number: u8) -> Process {
    let own = folder.path().join(number.to_string());
    std::fs::create_dir(&own).expect("a folder can be created");
    let mut command = Command::new("unshare");
    command.args(["--net", "--", "sleep", "infinity"]);
    let process = Process::spawn(command, &own.join("log"));
    let pid = process.pid().to_string();
    let namespace = |of: &str| std::fs::read_link(format!("/proc/{of}/ns/net")).map_err(|error| error.to_string());
    let is_another = || {
        let (ours, other) = (namespace("self")?, namespace(&pid)?);
        (ours != other).then_some(()).ok_or_else(|| "no namespace yet".to_owned())
    };
    eventually_blocking(is_another).expect("a namespace of its own");
    let (here, router) = (interface_of(number.into()), format!("10.78.{number}.1"));
    let address = format!("{}/24", address_of(number.into()));
    ip(&["link", "add", &here, "type", "veth", "peer", "name", "eth0", "netns", &pid]);
    ip(&["addr", "add", &format!("{router}/24"), "dev", &here]);
    ip(&["link", "set", &here, "up"]);
    let inside = |arguments: &[&str]| {
        run(Command::new("nsenter").args(["-t", &pid, "--net", "--", "ip"]).args(arguments));
    };
    inside(&["link", "set", "lo", "up"]);
    inside(&["addr", "add", &address, "dev", "eth0"]);
    inside(&["link", "set", "eth0", "up"]);
    inside(&["route", "add", "default", "via", &router]);
    process
}

/// The way that most connections to nats-servers of this namespace take.
pub fn way_in_use() -> Option<Ipv4Addr> {
    let table = std::fs::read_to_string("/proc/self/net/tcp").unwrap_or_default();
    let established = |line: &str| {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let address = u32::from_str_radix(words.get(2)?.split_once(':')?.0, 16).ok()?.to_le_bytes();
        (*words.get(3)? == "01").then_some(Ipv4Addr::from(address))
    };
    let called: Vec<Ipv4Addr> = table.lines().skip(1).filter_map(established).collect();
    let count = |way: &Ipv4Addr| called.iter().filter(|called| *called == way).count();
    WAYS.into_iter().filter(|way| count(way) > 0).max_by_key(count)
}

fn ip(arguments: &[&str]) {
    run(Command::new("ip").args(arguments));
}

fn nft(script: &str) {
    let mut child = Command::new("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn().expect("nft can be run");
    let mut stdin = child.stdin.take().expect("a pipe");
    stdin.write_all(script.as_bytes()).expect("nft reads");
    drop(stdin);
    let status = child.wait().expect("a child can be waited for");
    assert!(status.success(), "nft: {status}: {script}");
}

fn run(command: &mut Command) -> String {
    let output = command.output().expect("ip, nft and nsenter can be run");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}
