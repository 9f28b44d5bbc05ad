//! Starting a process that cannot outlive this one.

use crate::critical::critical_thread;
use std::io;
use std::os::fd::RawFd;
use std::os::unix::process::CommandExt;
use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use tokio::process::{Child, Command};
use tokio::runtime::Handle;
use tokio::sync::oneshot;

struct Job {
    command: Command,
    runtime: Handle,
    answer: oneshot::Sender<io::Result<Child>>,
}

/// Starts `command` as a child that is killed when this process ends, however it ends, and that inherits `inherited`: the
/// descriptors are open until this returns.
///
/// Linux sends the signal when the *thread* that started the child ends, so all children are started by one thread that
/// lives as long as the process. Elsewhere there is no such signal: after a `kill -9` of Carrick the server goes on, and
/// the store's lock keeps a second one from starting until it is stopped.
pub(super) async fn spawn<const N: usize>(mut command: Command, inherited: [RawFd; N]) -> io::Result<Child> {
    // A group of its own: the terminal's Ctrl-C is for Carrick, which stops the server when it no longer needs it.
    command.process_group(0).kill_on_drop(true);
    let parent = rustix::process::getpid();
    let prepare = move || {
        #[cfg(target_os = "linux")]
        {
            rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
            // The parent may have died before the signal was set.
            if rustix::process::getppid() != Some(parent) {
                return Err(io::Error::from(rustix::io::Errno::SRCH));
            }
        }
        #[cfg(not(target_os = "linux"))]
        let _ = parent;
        inherited.iter().try_for_each(|descriptor| keep_open_on_exec(*descriptor))
    };
    #[expect(unsafe_code, reason = "the parent-death signal and the inherited lock must be set between fork and exec")]
    // SAFETY: the closure only makes async-signal-safe system calls and does not allocate.
    unsafe {
        command.as_std_mut().pre_exec(prepare);
    }
    let (answer, answered) = oneshot::channel();
    let gone = || io::Error::other("the thread that starts processes is gone");
    starter()?.send(Job { command, runtime: Handle::current(), answer }).map_err(|_| gone())?;
    answered.await.map_err(|_| gone())?
}

/// Clears close-on-exec of a descriptor that is open in this process.
fn keep_open_on_exec(descriptor: RawFd) -> io::Result<()> {
    #[expect(unsafe_code, reason = "the descriptor is only borrowed, from a caller that keeps it until then")]
    // SAFETY: the caller holds the file open; in the child the descriptor is a copy that nobody closes before exec.
    let descriptor = unsafe { std::os::fd::BorrowedFd::borrow_raw(descriptor) };
    Ok(rustix::io::fcntl_setfd(descriptor, rustix::io::FdFlags::empty())?)
}

/// The thread's inbox. A full one blocks the caller for as long as a fork takes.
fn starter() -> io::Result<SyncSender<Job>> {
    static STARTER: OnceLock<SyncSender<Job>> = OnceLock::new();
    if let Some(sender) = STARTER.get() {
        return Ok(sender.clone());
    }
    let (sender, jobs) = sync_channel(4);
    std::thread::Builder::new()
        .name("enats-start".to_owned())
        .spawn(move || critical_thread("enats.start", || run(jobs)))?;
    // Of two first callers one wins; the other's thread ends unused, before it started anything.
    Ok(STARTER.get_or_init(|| sender).clone())
}

fn run(jobs: Receiver<Job>) {
    for Job { mut command, runtime, answer } in jobs {
        let child = {
            // The runtime watches the child's end and its pipe; the fork is this thread's.
            let _entered = runtime.enter();
            command.spawn()
        };
        // A caller that gave up drops the child, which kills it.
        let _ = answer.send(child);
    }
}
