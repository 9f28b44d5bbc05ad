//! Ports for servers that are told beforehand where to listen.

use std::net::TcpStream;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

/// Below the range from which systems take ports for outgoing connections (from 32,768 on Linux, 49,152 elsewhere): one
/// of those could be in use by any connection by the time its server starts.
const FIRST: u32 = 10_000;
const COUNT: u32 = 20_000;

/// A port of this machine where nobody listens, given once per process.
pub fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    for _ in 0..COUNT {
        // Test programs that run side by side begin at different places.
        let place = std::process::id().wrapping_mul(7_919).wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
        let port = u16::try_from(FIRST + place % COUNT).expect("below 65,536");
        // No listener finds out: a process that is being started just then would keep it open until it runs its program.
        if claim(port) && TcpStream::connect(("127.0.0.1", port)).is_err() {
            return port;
        }
    }
    panic!("no free port from {FIRST} on");
}

/// Takes a port out of what other test programs may choose, for as long as this one runs: nobody listens there before the
/// server that it is for has started. `false`: another one has it.
fn claim(port: u16) -> bool {
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixListener};
    static CLAIMED: Mutex<Vec<UnixListener>> = Mutex::new(Vec::new());
    let name = SocketAddr::from_abstract_name(format!("carrick-test-port-{port}")).expect("a short name");
    let Ok(claim) = UnixListener::bind_addr(&name) else { return false };
    CLAIMED.lock().expect("nobody panics with it").push(claim);
    true
}
