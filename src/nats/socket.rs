//! The kernel's side of a connection whose socket the client library keeps to itself.
//!
//! A connection that is given up still has bytes in the kernel: written, but not acknowledged by the peer. The kernel goes
//! on sending them for a quarter of an hour after the library has closed its descriptor. A path that was silent and heals
//! would deliver a publication that has long been repeated over another connection, and that the log has forgotten the id
//! of. So the bytes must end with the connection.
//!
//! The library does not hand out its socket. It binds it to a local port of our choice, though, and no other socket of the
//! process can have that port: with it the descriptor is found among those of the process, and duplicated.

use rustix::net::{self, SocketType, sockopt};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};
use std::sync::Once;
use std::time::Duration;

/// Where a system lists the descriptors of the process that asks.
const LISTS: [&str; 2] = ["/proc/self/fd", "/dev/fd"];
/// Without such a list numbers are tried up to this one.
const MOST: RawFd = 1 << 16;
/// Ports that are tried one after another when the system finds none: its own range can be used up by connections.
const TRIES: u16 = 64;

/// A hold on the socket of one connection. What is dropped is aborted.
pub struct Socket {
    /// A duplicate, so that the number cannot become another file's. `None`: the socket was not found.
    descriptor: Option<OwnedFd>,
}

impl Socket {
    /// Finds this process's TCP socket on a local port, and lets it acknowledge or end: see [`Socket::limit`].
    pub async fn of(local: Option<SocketAddr>, unacknowledged: Duration) -> Self {
        let found = match local {
            Some(local) => tokio::task::spawn_blocking(move || find(local.port())).await.map_err(io::Error::other),
            None => Err(io::Error::from(io::ErrorKind::AddrNotAvailable)),
        };
        let socket = match found.and_then(|found| found) {
            Ok(descriptor) => Self { descriptor: Some(descriptor) },
            Err(error) => {
                static ONCE: Once = Once::new();
                ONCE.call_once(|| {
                    tracing::warn!(
                        %error,
                        "the socket of a connection to NATS cannot be found: should the network hold back what was sent \
                         over a connection that was given up, a publication may be stored twice"
                    );
                });
                Self { descriptor: None }
            }
        };
        socket.limit(unacknowledged);
        socket
    }

    /// Ends the connection when the peer has acknowledged nothing of what was sent for so long, or has had no room for it.
    /// The kernel sees to it, also while this process is stopped. (Linux only.)
    pub fn limit(&self, unacknowledged: Duration) {
        let Some(descriptor) = &self.descriptor else { return };
        #[cfg(target_os = "linux")]
        {
            let millis = u32::try_from(unacknowledged.as_millis()).unwrap_or(u32::MAX);
            if let Err(error) = sockopt::set_tcp_user_timeout(descriptor, millis) {
                tracing::warn!(%error, "cannot limit how long bytes to NATS may stay unacknowledged");
            }
        }
        #[cfg(not(target_os = "linux"))]
        let _ = (descriptor, unacknowledged);
    }

    /// Ends the connection now: what the peer's kernel has not taken yet is forgotten, although the library still holds its
    /// descriptor. (Elsewhere than on Linux it is forgotten when the library has let go of it, too.)
    pub fn abort(&self) {
        let Some(descriptor) = &self.descriptor else { return };
        #[cfg(target_os = "linux")]
        let outcome = net::connect_unspec(descriptor);
        #[cfg(not(target_os = "linux"))]
        let outcome = net::shutdown(descriptor, net::Shutdown::Both);
        match outcome {
            // It has ended already.
            Ok(()) | Err(rustix::io::Errno::NOTCONN) => {}
            Err(error) => tracing::warn!(%error, "cannot discard the bytes of a connection to NATS"),
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.abort();
    }
}

/// A free local port for a connection to an IPv4 or IPv6 address. Somebody else may take it before it is used.
pub fn free_port(ipv6: bool) -> io::Result<SocketAddr> {
    let any = |port| match ipv6 {
        true => SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)),
        false => SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)),
    };
    // Like the library's own: it shares its port with nobody.
    let bound = |port| {
        let socket = socket2::Socket::new(socket2::Domain::for_address(any(port)), socket2::Type::STREAM, None)?;
        socket.bind(&any(port).into())?;
        socket.local_addr()?.as_socket().ok_or_else(|| io::Error::from(io::ErrorKind::AddrNotAvailable))
    };
    bound(0).or_else(|error| {
        let random = || getrandom::u32().map(|number| 1024 + (number % (65_536 - 1024)) as u16);
        (0..TRIES).find_map(|_| bound(random().ok()?).ok()).ok_or(error)
    })
}

/// Whoever holds the socket on this port last ends it abruptly, with a reset and without its bytes: the library when it
/// gives up a handshake, and the kernel when this process dies.
pub fn end_abruptly(port: u16) {
    // An error: it is not there yet, or no longer.
    drop(find(port));
}

/// A duplicate of the descriptor of the process's TCP socket on this local port, which ends abruptly from now on.
fn find(port: u16) -> io::Result<OwnedFd> {
    let number = numbers()?.into_iter().find(|number| is_on(*number, port)).ok_or(io::ErrorKind::NotFound)?;
    let descriptor = duplicate(number)?;
    if local_port(&descriptor) != Some(port) {
        // It was closed meanwhile and the number became another file's.
        return Err(io::ErrorKind::NotFound.into());
    }
    sockopt::set_socket_linger(&descriptor, Some(Duration::ZERO))?;
    Ok(descriptor)
}

fn numbers() -> io::Result<Vec<RawFd>> {
    for list in LISTS {
        let Ok(entries) = std::fs::read_dir(list) else { continue };
        let names = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        // A list of the standard streams alone is none.
        let numbers: Vec<RawFd> = names.collect();
        if numbers.iter().any(|number| *number > 2) {
            return Ok(numbers);
        }
    }
    Ok((0..MOST).collect())
}

fn is_on(number: RawFd, port: u16) -> bool {
    with_descriptor(number, |descriptor| local_port(descriptor) == Some(port))
}

fn duplicate(number: RawFd) -> io::Result<OwnedFd> {
    with_descriptor(number, |descriptor| descriptor.try_clone_to_owned())
}

#[expect(unsafe_code, reason = "the library's descriptor is known by its number only")]
fn with_descriptor<T>(number: RawFd, look: impl FnOnce(&BorrowedFd<'_>) -> T) -> T {
    // SAFETY: the number is not negative. Should another thread close it meanwhile, the calls made with it fail or tell of
    // another file; they only ask and duplicate, and what is found is looked at again once it is ours.
    look(&unsafe { BorrowedFd::borrow_raw(number) })
}

fn local_port(descriptor: impl std::os::fd::AsFd) -> Option<u16> {
    let address = SocketAddr::try_from(net::getsockname(&descriptor).ok()?).ok()?;
    (sockopt::socket_type(&descriptor).ok()? == SocketType::STREAM).then_some(address.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_is_found_by_its_port_and_no_other() {
        for ipv6 in [false, true] {
            let Ok(local) = free_port(ipv6) else { continue };
            assert_eq!(find(local.port()).unwrap_err().kind(), io::ErrorKind::NotFound);
            let domain = socket2::Domain::for_address(local);
            let socket = socket2::Socket::new(domain, socket2::Type::STREAM, None).unwrap();
            // A datagram socket may have the same number.
            let other = socket2::Socket::new(domain, socket2::Type::DGRAM, None).unwrap();
            other.bind(&local.into()).unwrap();
            assert!(find(local.port()).is_err());
            socket.bind(&local.into()).unwrap();
            let found = socket2::Socket::from(find(local.port()).unwrap());
            assert_eq!(found.local_addr().unwrap().as_socket(), Some(local));
            assert_eq!(socket.linger().unwrap(), Some(Duration::ZERO), "it is the same socket");
        }
    }
}
