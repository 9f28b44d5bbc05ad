//! How much of what was written to a socket its peer has not acknowledged.
//!
//! A write does not tell whether the peer takes anything. The kernel asks for more only when a third of its send buffer is
//! free, and may refuse to take more until then: on a line of 16 kbit/s that was half a minute, in which the peer
//! acknowledged something every five seconds at the latest.
//!
//! The number is that of `SIOCOUTQ`, asked by way of `NETLINK_SOCK_DIAG` (sock_diag(7)): no crate offers the former without
//! `unsafe`. One question is one look-up in the kernel's table of connections, however many there are.

use tokio::net::TcpStream;

/// Bytes that are written and not acknowledged. `None`: this system does not tell.
#[cfg(target_os = "linux")]
pub fn unacknowledged(tcp: &TcpStream) -> Option<u32> {
    static TOLD: std::sync::Once = std::sync::Once::new();
    let tell = |error: &std::io::Error| {
        TOLD.call_once(|| tracing::debug!(context = "ws", %error, "the kernel does not tell what a peer has taken"));
    };
    linux::ask(tcp).inspect_err(tell).ok()
}

/// Bytes that are written and not acknowledged. `None`: this system does not tell.
#[cfg(not(target_os = "linux"))]
pub fn unacknowledged(_: &TcpStream) -> Option<u32> {
    None
}

#[cfg(target_os = "linux")]
mod linux {
    use super::TcpStream;
    use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with};
    use std::io;
    use std::net::{IpAddr, SocketAddr};

    /// `SOCK_DIAG_BY_FAMILY`, the type of questions and answers.
    const BY_FAMILY: u16 = 20;
    /// `NLMSG_ERROR`: a negative errno follows the header.
    const ERROR: u16 = 2;
    /// `NLM_F_REQUEST`, without `NLM_F_DUMP`: one connection is asked for.
    const REQUEST: u16 = 1;
    const TCP: u8 = 6;
    /// Bytes of a `struct nlmsghdr`.
    const HEADER: usize = 16;
    /// The question: a header and a `struct inet_diag_req_v2`.
    const QUESTION: usize = HEADER + 56;
    /// Where the number is in the answer: a header and a `struct inet_diag_msg`, in which it is `idiag_wqueue`.
    const NUMBER: usize = HEADER + 60;

    pub fn ask(tcp: &TcpStream) -> io::Result<u32> {
        let question = question(tcp.local_addr()?, tcp.peer_addr()?);
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let kernel = socket_with(AddressFamily::NETLINK, SocketType::DGRAM, flags, Some(netlink::SOCK_DIAG))?;
        send(&kernel, &question, SendFlags::empty())?;
        let mut answer = [0; 512];
        // It is there when the question has been sent.
        let (length, _) = recv(&kernel, &mut answer[..], RecvFlags::empty())?;
        number(&answer[..length])
    }

    fn question(local: SocketAddr, peer: SocketAddr) -> Vec<u8> {
        let family = if local.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let address = |address: IpAddr| match address {
            IpAddr::V4(address) => {
                let mut bytes = [0; 16];
                bytes[..4].copy_from_slice(&address.octets());
                bytes
            }
            IpAddr::V6(address) => address.octets(),
        };
        let interface = match local {
            SocketAddr::V6(local) => local.scope_id(),
            SocketAddr::V4(_) => 0,
        };
        let mut question = Vec::with_capacity(QUESTION);
        question.extend((QUESTION as u32).to_ne_bytes());
        question.extend(BY_FAMILY.to_ne_bytes());
        question.extend(REQUEST.to_ne_bytes());
        // Number of the question, and who asks: the kernel fills it in.
        question.extend([0; 8]);
        // No extensions; a padding byte; connections in all states.
        question.extend([family.as_raw() as u8, TCP, 0, 0]);
        question.extend(u32::MAX.to_ne_bytes());
        question.extend(local.port().to_be_bytes());
        question.extend(peer.port().to_be_bytes());
        question.extend(address(local.ip()));
        question.extend(address(peer.ip()));
        question.extend(interface.to_ne_bytes());
        // `INET_DIAG_NOCOOKIE`: its addresses name the connection.
        question.extend([0xff; 8]);
        question
    }

    fn number(answer: &[u8]) -> io::Result<u32> {
        let word =
            |at: usize| answer.get(at..at + 4).and_then(|bytes| Some(u32::from_ne_bytes(bytes.try_into().ok()?)));
        let kind = answer.get(4..6).and_then(|bytes| Some(u16::from_ne_bytes(bytes.try_into().ok()?)));
        match (kind, word(NUMBER)) {
            (Some(BY_FAMILY), Some(number)) => Ok(number),
            (Some(ERROR), _) => {
                let error = word(HEADER).map_or(0, |error| (error as i32).saturating_neg());
                Err(io::Error::from_raw_os_error(error))
            }
            _ => Err(io::Error::new(io::ErrorKind::InvalidData, "sock_diag gave an answer of another form")),
        }
    }
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::io::AsyncReadExt;
    use tokio::net::TcpListener;

    /// Connects by this address, fills the connection, and reads it empty.
    async fn counts(listen: &str, connect: &str) {
        let listener = TcpListener::bind((listen, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut peer = TcpStream::connect((connect, port)).await.unwrap();
        let (tcp, _) = listener.accept().await.unwrap();
        assert_eq!(unacknowledged(&tcp), Some(0), "{listen}");
        let mut written = 0;
        // Until both kernels are full: more fits in while one still hands over to the other.
        while tokio::time::timeout(Duration::from_millis(200), tcp.writable()).await.is_ok() {
            written += tcp.try_write(&[b'x'; 64 << 10]).unwrap_or(0);
        }
        let full = unacknowledged(&tcp).unwrap() as usize;
        assert!(full > 0 && full < written, "{full} of {written}");
        tokio::io::copy(&mut (&mut peer).take(written as u64), &mut tokio::io::sink()).await.unwrap();
        let taken = async {
            while unacknowledged(&tcp) != Some(0) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), taken).await.expect("all of it was taken");
    }

    #[tokio::test]
    async fn what_a_peer_has_taken_is_known() {
        counts("127.0.0.1", "127.0.0.1").await;
        if TcpListener::bind("[::1]:0").await.is_ok() {
            counts("::1", "::1").await;
            counts("::", "127.0.0.1").await;
        }
    }
}
