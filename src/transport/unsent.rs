//! How much a socket takes that it cannot send yet.

use std::os::fd::{AsRawFd, BorrowedFd};

/// Unsent bytes beyond which a socket takes no more. Without a bound the kernel takes megabytes for a client that does not
/// read, and asks for more only when a third of them has gone: minutes on a slow line, in which nobody can tell a client
/// that reads slowly from one that does not read. Large enough that a fast line never runs dry.
const UNSENT: libc::c_int = 64 << 10;

/// Bounds what waits in the kernel for a client. What does not fit waits in its outbox, where it is counted.
pub fn bound(socket: BorrowedFd<'_>) {
    #[cfg(any(target_os = "linux", target_os = "android", target_os = "macos", target_os = "ios"))]
    {
        let value = UNSENT;
        let size = libc::socklen_t::try_from(size_of_val(&value)).expect("the size of a number");
        #[expect(unsafe_code, reason = "no crate sets this option; the value lives and has the size that is named")]
        // SAFETY: the descriptor is borrowed, so it is open; the pointer is to a live value of `size` bytes.
        let set = unsafe {
            let value = std::ptr::from_ref(&value).cast();
            libc::setsockopt(socket.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT, value, size)
        };
        if set != 0 {
            let error = std::io::Error::last_os_error();
            tracing::debug!(context = "ws", %error, "unsent bytes of a connection are not bounded");
        }
    }
}
