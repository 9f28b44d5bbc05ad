//! A path between two processes that can be cut.

use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

pub struct Path {
    address: SocketAddr,
    state: Arc<State>,
}

struct State {
    to: String,
    cut: AtomicBool,
    over: AtomicBool,
    /// Both ends of each connection.
    ends: Mutex<Vec<TcpStream>>,
}

impl Path {
    /// A path to this `HOST:PORT`.
    pub fn to(address: &str) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let state = Arc::new(State {
            to: address.to_owned(),
            cut: AtomicBool::new(false),
            over: AtomicBool::new(false),
            ends: Mutex::default(),
        });
        let address = listener.local_addr()?;
        let accepting = Arc::clone(&state);
        std::thread::spawn(move || {
            for near in listener.incoming().map_while(Result::ok) {
                if accepting.over.load(Ordering::Acquire) {
                    return;
                }
                if !accepting.cut.load(Ordering::Acquire) {
                    // A refused connection closes the near one, too.
                    let _ = accepting.join(near);
                }
            }
        });
        Ok(Self { address, state })
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Cuts all connections; new ones are closed at once.
    pub fn cut(&self) {
        self.state.cut.store(true, Ordering::Release);
        for end in self.state.ends.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            // It may be gone already.
            let _ = end.shutdown(Shutdown::Both);
        }
    }

    pub fn heal(&self) {
        self.state.cut.store(false, Ordering::Release);
    }
}

impl Drop for Path {
    fn drop(&mut self) {
        self.state.over.store(true, Ordering::Release);
        self.cut();
        // Wakes the accepting thread.
        let _ = TcpStream::connect(self.address);
    }
}

impl State {
    fn join(&self, near: TcpStream) -> io::Result<()> {
        let far = TcpStream::connect(&self.to)?;
        for end in [&near, &far] {
            end.set_nodelay(true)?;
        }
        let copies = [(near.try_clone()?, far.try_clone()?), (far.try_clone()?, near.try_clone()?)];
        self.ends.lock().unwrap_or_else(PoisonError::into_inner).extend([near, far]);
        for (mut from, mut to) in copies {
            std::thread::spawn(move || {
                let _ = io::copy(&mut from, &mut to);
                let _ = to.shutdown(Shutdown::Both);
            });
        }
        Ok(())
    }
}
