//! Room for the store: the bytes that JetStream may take.
//!
//! It may take what it takes now, and what is free on its disk but for a rest, so that the server refuses messages before
//! writing fails. The rest is never less than what the server's files take beyond its own count of them: it counts messages,
//! and an expired one keeps its place until all others of its block have expired. Other users of the disk keep what they have. What is free is not what was free at the start: others
//! delete their files, too. nats-server takes a higher limit while it runs, and never a lower one.
//!
//! Streams may have reserved a part: the sessions' bucket has its share. With a limit below all reservations JetStream
//! creates no stream and changes none, not even to reserve less. So the limit is never below them, also where the disk
//! could not hold that much: it may be full before the limit is reached, and nothing is stored until there is room.

use serde::Deserialize;
use std::io;
use std::path::Path;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// How often a running server's disk is looked at.
const LOOK_PERIOD: Duration = Duration::from_secs(10);
/// What may be taken of each hundred free bytes.
const USABLE: u64 = 95;
/// Left of the store's disk in any case, for the files of the server that are more than the messages that it counts: up to
/// a block (4 MiB) of each log is expired messages, and one is being written.
const BEYOND_COUNT: u64 = 16 << 20;
/// And this part of it, for the blocks of many logs and of sessions that were written over.
const BEYOND_COUNT_PART: u64 = 64;
/// But on the smallest disks no more than this part.
const BEYOND_COUNT_MOST: u64 = 4;
/// A limit is raised for a gain of this part of it. What the store itself writes moves it by less.
const WORTH: u64 = 16;
/// Free bytes with which a server that ran out of space can go on: some blocks of the log.
pub(super) const ENOUGH: u64 = 32 << 20;
/// Above what is reserved: JetStream wants some of it for a stream without a reservation.
const ABOVE_RESERVED: u64 = 1 << 20;
/// Settings of a stream, as nats-server keeps them beside its messages.
const SETTINGS: &str = "meta.inf";

/// What a look at the store has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Room {
    /// Bytes that JetStream may take in all.
    pub limit: u64,
    /// Bytes that it takes now.
    pub taken: u64,
}

/// The room of a store directory as it and its disk are now. Slow for a large store: for a thread that may block. It ends
/// soon after nobody waits for it any more.
pub(super) fn look(store: &Path, given_up: &CancellationToken) -> io::Result<Room> {
    let free = free(store)?;
    let mut taken = Taken::default();
    taken.add(&store.join("jetstream"), given_up)?;
    Ok(Room { limit: taken.limit(free), taken: taken.bytes })
}

/// There is so much more room than there was that the server should know: as a part of the whole, or next to what is left
/// of it. A full store is given the least that helps.
pub(super) fn is_worth_raising(limit: u64, now: Room) -> bool {
    let gain = now.limit.saturating_sub(limit);
    let left = limit.saturating_sub(now.taken);
    gain > limit / WORTH || gain >= left.max(ENOUGH)
}

/// How long until the next look after one that took this long: the largest store takes a hundredth of a thread.
pub(super) fn pause_after(look: Duration) -> Duration {
    LOOK_PERIOD.max(look * 100)
}

/// Bytes that may still be written by this user.
pub(super) fn free(store: &Path) -> io::Result<u64> {
    let disk = rustix::fs::statvfs(store)?;
    Ok(disk.f_bavail.saturating_mul(disk.f_frsize))
}

/// What nats-server's own directory holds.
#[derive(Debug, Default, PartialEq, Eq)]
struct Taken {
    bytes: u64,
    /// By all streams together.
    reserved: u64,
}

impl Taken {
    fn limit(&self, free: u64) -> u64 {
        let reserved = if self.reserved == 0 { 0 } else { self.reserved.saturating_add(ABOVE_RESERVED) };
        let disk = self.bytes.saturating_add(free);
        let beyond = BEYOND_COUNT.max(disk / BEYOND_COUNT_PART).min(disk / BEYOND_COUNT_MOST);
        self.bytes.saturating_add(free / 100 * USABLE).min(disk - beyond).max(reserved)
    }

    /// Files come and go meanwhile. What this user may not read, such as the `lost+found` of a volume, is not the server's.
    fn add(&mut self, directory: &Path, given_up: &CancellationToken) -> io::Result<()> {
        let Some(entries) = there(std::fs::read_dir(directory))? else { return Ok(()) };
        for entry in entries {
            let entry = entry?;
            if given_up.is_cancelled() {
                return Err(io::Error::new(io::ErrorKind::Interrupted, "nobody waits for it any more"));
            }
            let Some(about) = there(entry.metadata())? else { continue };
            if about.is_dir() {
                self.add(&entry.path(), given_up)?;
            } else {
                self.bytes = self.bytes.saturating_add(about.len());
                if entry.file_name() == SETTINGS {
                    self.reserved = self.reserved.saturating_add(reserved(&entry.path())?);
                }
            }
        }
        Ok(())
    }
}

fn there<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    use io::ErrorKind::{NotADirectory, NotFound, PermissionDenied};
    match result {
        Ok(found) => Ok(Some(found)),
        Err(error) if matches!(error.kind(), NotFound | PermissionDenied | NotADirectory) => Ok(None),
        Err(error) => Err(error),
    }
}

/// What one stream has reserved. Settings that cannot be read are nats-server's to complain about.
fn reserved(settings: &Path) -> io::Result<u64> {
    #[derive(Deserialize)]
    struct Settings {
        #[serde(default)]
        max_bytes: i64,
    }
    let text = there(std::fs::read(settings))?.unwrap_or_default();
    Ok(serde_json::from_slice(&text).map_or(0, |Settings { max_bytes }| u64::try_from(max_bytes).unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};
    use std::sync::atomic::{AtomicBool, Ordering};

    const MIB: u64 = 1 << 20;
    /// Names a store for [`measured_by_a_user_who_is_not_root`], which otherwise does nothing.
    const STORE: &str = "CARRICK_TEST_ROOM_STORE";

    fn taken(bytes: u64, reserved: u64) -> Taken {
        Taken { bytes, reserved }
    }

    #[test]
    fn row_12_the_limit_follows_what_is_free_and_is_never_below_what_is_reserved() {
        let first = taken(0, 0).limit(1_000 * MIB);
        assert_eq!(first, 950 * MIB, "a rest is left to others");
        // Others have taken nearly all of it since.
        let later = taken(10 * MIB, 118 * MIB).limit(50 * MIB);
        assert_eq!(later, 119 * MIB, "or JetStream would change no stream any more");
        assert_eq!(taken(10 * MIB, 20 * MIB).limit(100 * MIB), 94 * MIB, "the server's files take more than it counts");
        assert_eq!(taken(0, 0).limit(20 * MIB), 15 * MIB, "of a small disk most is used");
        assert_eq!(taken(94 * MIB, 20 * MIB).limit(16 * MIB), 94 * MIB, "also once the store is full");
        // What was written to the store is not free any more, but may be taken as before.
        let written = taken(900 * MIB, 118 * MIB).limit(100 * MIB);
        assert!(written > first && !is_worth_raising(first, room(written, 900 * MIB)), "{written}");
        assert!(is_worth_raising(later, room(first, 0)) && !is_worth_raising(first, room(later, 0)));
    }

    fn room(limit: u64, taken: u64) -> Room {
        Room { limit, taken }
    }

    #[test]
    fn a_full_store_of_any_size_is_given_what_others_give_back() {
        let full = 1_000_000 * MIB;
        assert!(is_worth_raising(full, room(full + 50_000 * MIB, full)), "a twentieth");
        assert!(is_worth_raising(full, room(full + ENOUGH, full - MIB)), "the least that helps");
        assert!(!is_worth_raising(full, room(full + ENOUGH - 1, full)), "it would be full again at once");
        // It has more left than it would gain: it is told when that is nearly used.
        assert!(!is_worth_raising(full, room(full + 50_000 * MIB, full - 51_000 * MIB)));
        assert!(is_worth_raising(full, room(full + 50_000 * MIB, full - 49_000 * MIB)));
        assert!(is_worth_raising(full, room(full + full / WORTH + 1, 0)), "nor does an empty one miss much");
        assert!(!is_worth_raising(full, room(full - 1, full)), "never lower");
        // It may have taken more than its limit, where that was lowered at a start.
        assert!(is_worth_raising(MIB, room(40 * MIB, 2 * MIB)));
    }

    #[test]
    fn a_look_that_nobody_waits_for_ends() {
        let store = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(store.path().join("jetstream/a")).unwrap();
        let given_up = CancellationToken::new();
        look(store.path(), &given_up).unwrap();
        given_up.cancel();
        assert_eq!(look(store.path(), &given_up).unwrap_err().kind(), io::ErrorKind::Interrupted);
    }

    #[test]
    fn only_the_servers_own_files_are_measured() {
        let store = tempfile::tempdir().unwrap();
        let stream = store.path().join("jetstream/$G/streams/s");
        assert_eq!(measured(store.path()), taken(0, 0), "a new store");
        std::fs::create_dir_all(stream.join("msgs")).unwrap();
        std::fs::write(stream.join("msgs/1.blk"), vec![0; 5_000]).unwrap();
        std::fs::write(stream.join(SETTINGS), r#"{"name":"s","max_bytes":12582912}"#).unwrap();
        std::fs::create_dir_all(store.path().join("lost+found")).unwrap();
        std::fs::write(store.path().join("ballast"), vec![0; 9_000]).unwrap();
        assert_eq!(measured(store.path()), taken(5_033, 12 * MIB));
        for none in [r#"{"name":"s","max_bytes":-1}"#, r#"{"name":"c"}"#, "encrypted"] {
            std::fs::write(stream.join(SETTINGS), none).unwrap();
            assert_eq!(measured(store.path()).reserved, 0, "{none}");
        }
    }

    fn measured(store: &Path) -> Taken {
        let mut taken = Taken::default();
        taken.add(&store.join("jetstream"), &CancellationToken::new()).unwrap();
        taken
    }

    #[test]
    fn a_store_is_measured_while_its_files_come_and_go() {
        let store = tempfile::tempdir().unwrap();
        let blocks = store.path().join("jetstream/msgs");
        std::fs::create_dir_all(&blocks).unwrap();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    for number in 0..50 {
                        std::fs::write(blocks.join(number.to_string()), "x").unwrap();
                    }
                    for number in 0..50 {
                        std::fs::remove_file(blocks.join(number.to_string())).unwrap();
                    }
                }
            });
            let looks =
                (0..2_000).map(|_| look(store.path(), &CancellationToken::new())).collect::<io::Result<Vec<_>>>();
            done.store(true, Ordering::Relaxed);
            assert_eq!(looks.expect("what has gone takes nothing").len(), 2_000);
        });
    }

    /// What [`a_volume_with_a_folder_of_root_is_measured`] runs as another user.
    #[test]
    fn measured_by_a_user_who_is_not_root() {
        let Some(store) = std::env::var_os(STORE) else { return };
        let store = Path::new(&store);
        for folder in ["lost+found", "jetstream/lost+found"] {
            let refused = std::fs::read_dir(store.join(folder)).unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied);
        }
        look(store, &CancellationToken::new()).unwrap();
        println!("\nmeasured");
    }

    /// A volume has a `lost+found` that only root may look into. Root may look everywhere, so this runs as somebody else.
    #[cfg(target_os = "linux")]
    #[test]
    fn a_volume_with_a_folder_of_root_is_measured() {
        use crate::nats::test_files::set;
        let store = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(store.path().join("jetstream/lost+found")).unwrap();
        std::fs::create_dir(store.path().join("lost+found")).unwrap();
        let closed = ["jetstream/lost+found", "lost+found"].map(|folder| store.path().join(folder));
        closed.iter().for_each(|folder| set(folder, 0o000));
        set(store.path(), 0o755);
        let root = rustix::process::geteuid().is_root();
        let mut command = Command::new(if root { "setpriv" } else { "env" });
        if root {
            command.args(["--reuid=12345", "--regid=12345", "--clear-groups"]);
        }
        // By its descriptor: the path of this program may be closed to others.
        let program = std::fs::File::open(std::env::current_exe().unwrap()).unwrap();
        command.arg("/proc/self/fd/0").stdin(Stdio::from(program)).env(STORE, store.path());
        command.args(["--exact", "nats::embedded::room::tests::measured_by_a_user_who_is_not_root", "--nocapture"]);
        let ended = command.output().expect("setpriv of util-linux, or env, can be run");
        closed.iter().for_each(|folder| set(folder, 0o700));
        let said = String::from_utf8_lossy(&ended.stdout);
        assert!(
            ended.status.success() && said.contains("\nmeasured"),
            "{said}{}",
            String::from_utf8_lossy(&ended.stderr)
        );
    }
}
