//! Room for the store: the bytes that JetStream may take.
//!
//! It may take what it takes now, and what is free on its disk but for a rest, so that the server refuses messages before
//! writing fails. The rest is never less than what the server's files take beyond its own count of them: it counts messages,
//! and an expired one keeps its place until all others of its block have expired. Other users of the disk keep what they
//! have. What is free is not what was free at the start: others delete their files, too. nats-server takes a higher limit
//! while it runs, and never a lower one.
//!
//! The limit is raised by what others give back, and by nothing else. What the store writes is not free any more, so that a
//! limit made anew would grow by the rest that was left of it, until nothing is left. What is free or taken by the store is
//! the same whatever the store does: a limit remembers that sum, and is compared by it.
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
/// A limit is raised for a gain of more than this part of it.
const WORTH: u64 = 16;
/// Free bytes with which a server that ran out of space can go on: some blocks of the log.
pub(super) const ENOUGH: u64 = 32 << 20;
/// Free bytes with which one that was restarted without room can store something: a block of the log.
pub(super) const A_LITTLE: u64 = 4 << 20;
/// Above what is reserved: JetStream wants some of it for a stream without a reservation.
const ABOVE_RESERVED: u64 = 1 << 20;
/// Settings of a stream, as nats-server keeps them beside its messages.
const SETTINGS: &str = "meta.inf";

/// What a look at the store has found, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Room {
    /// What the server's own directory holds.
    pub taken: u64,
    /// What all streams together have reserved.
    pub reserved: u64,
    /// What is free on the disk.
    pub free: u64,
}

/// The room of a store directory as it and its disk are now. Slow for a large store: for a thread that may block. It ends
/// soon after nobody waits for it any more.
pub(super) fn look(store: &Path, given_up: &CancellationToken) -> io::Result<Room> {
    let before = free(store)?;
    let mut room = Room::default();
    room.add(&store.join("jetstream"), given_up)?;
    // What the server writes or removes meanwhile must not look like something that others have given back.
    room.free = before.min(free(store)?);
    Ok(room)
}

/// Bytes that JetStream may take in all, and what that was made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Limit {
    pub bytes: u64,
    /// [`Room::share`] when it was set. Only what others give back makes it more.
    share: u64,
    /// The newest look at the store.
    seen: Room,
    /// It was made of a look, and not kept or guessed for want of one.
    looked: bool,
}

impl Limit {
    pub fn of(seen: Room) -> Self {
        Self { bytes: seen.limit(), share: seen.share(), seen, looked: true }
    }

    /// For a server that nobody has looked at the store for.
    pub fn without_a_look(self) -> Self {
        Self { looked: false, ..self }
    }

    pub fn is_of_a_look(&self) -> bool {
        self.looked
    }

    /// A look that changes nothing is remembered all the same.
    pub fn note(&mut self, seen: Room) {
        self.seen = seen;
    }

    /// A higher limit, where others have given back so much room that the server should know: as a part of the whole, or
    /// next to what is left of it. A full store is given the least that helps.
    pub fn raised(&self, now: Room) -> Option<Self> {
        let given_back = now.share().saturating_sub(self.share);
        // There may be less room than what was given back: the limit was more than the disk could hold.
        let bytes = now.limit().min(self.bytes.saturating_add(usable(given_back))).max(now.least());
        let gain = bytes.saturating_sub(self.bytes);
        let left = self.bytes.saturating_sub(now.taken);
        let is_worth_it = gain > self.bytes / WORTH || gain >= left.max(ENOUGH) || self.bytes < now.least();
        is_worth_it.then(|| Self { bytes, ..Self::of(now) })
    }

    /// This limit, or a lower one that fits a disk with so much free. What the store has written since the newest look is
    /// missed by it, until the next one.
    pub fn within(self, free: u64) -> Self {
        let fitting = Self { looked: self.looked, ..Self::of(Room { free, ..self.seen }) };
        if fitting.bytes < self.bytes { fitting } else { self }
    }
}

/// What of so many free bytes may be taken.
fn usable(free: u64) -> u64 {
    free / 100 * USABLE
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

impl Room {
    /// Bytes that JetStream may take in all.
    fn limit(&self) -> u64 {
        let disk = self.share();
        let beyond = BEYOND_COUNT.max(disk / BEYOND_COUNT_PART).min(disk / BEYOND_COUNT_MOST);
        self.taken.saturating_add(usable(self.free)).min(disk - beyond).max(self.least())
    }

    /// What the disk has for the store: what it takes, and what is free. It is the same whatever the store writes and
    /// removes, and changes with what others do.
    fn share(&self) -> u64 {
        self.taken.saturating_add(self.free)
    }

    /// With less JetStream creates and changes no stream.
    fn least(&self) -> u64 {
        if self.reserved == 0 { 0 } else { self.reserved.saturating_add(ABOVE_RESERVED) }
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
                self.taken = self.taken.saturating_add(about.len());
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

    fn room(taken: u64, reserved: u64, free: u64) -> Room {
        Room { taken: taken * MIB, reserved: reserved * MIB, free: free * MIB }
    }

    #[test]
    fn row_12_the_limit_follows_what_is_free_and_is_never_below_what_is_reserved() {
        let first = Limit::of(room(0, 0, 1_000));
        assert_eq!(first.bytes, 950 * MIB, "a rest is left to others");
        // Others have taken nearly all of it since.
        let later = Limit::of(room(10, 118, 50));
        assert_eq!(later.bytes, 119 * MIB, "or JetStream would change no stream any more");
        assert_eq!(room(10, 20, 100).limit(), 94 * MIB, "the server's files take more than it counts");
        assert_eq!(room(0, 0, 20).limit(), 15 * MIB, "of a small disk most is used");
        assert_eq!(room(94, 20, 16).limit(), 94 * MIB, "also once the store is full");
        assert_eq!(later.raised(room(0, 118, 1_000)).map(|raised| raised.bytes), Some(950 * MIB));
        assert_eq!(first.raised(room(10, 118, 50)), None, "never lower");
        // Others give back less than what was missing for the limit.
        assert_eq!(later.raised(room(10, 118, 90)), None, "the disk has not even room for it");
    }

    /// What it writes is not free any more, but a twentieth of it was not to be taken.
    #[test]
    fn a_store_that_fills_itself_does_not_raise_its_limit() {
        let start = Limit::of(room(0, 0, 10_000));
        assert_eq!(start.bytes, 9_500 * MIB);
        for taken in (0..=9_500).step_by(50) {
            assert_eq!(start.raised(room(taken, 1_180, 10_000 - taken)), None, "{taken} of {start:?}");
        }
        // Nor when what others had taken in between is there again.
        assert_eq!(start.raised(room(9_000, 0, 10)), None);
        assert_eq!(start.raised(room(9_200, 0, 800)), None);
        // Others give back a gigabyte: a twentieth of that is left to them, too.
        let raised = start.raised(room(9_200, 0, 1_800)).expect("others gave back");
        assert_eq!(raised.bytes, 10_450 * MIB);
        for taken in (9_200..=10_450).step_by(50) {
            assert_eq!(raised.raised(room(taken, 1_180, 11_000 - taken)), None, "{taken} of {raised:?}");
        }
    }

    #[test]
    fn a_full_store_of_any_size_is_given_what_others_give_back() {
        let limit = Limit::of(room(0, 0, 1_000_000));
        let full = limit.bytes / MIB;
        // So much is free or taken, and so much of it is taken.
        let gives = |share: u64, taken: u64| limit.raised(room(taken, 0, share - taken));
        assert!(gives(1_050_000, full).is_some(), "a twentieth");
        assert!(gives(1_000_034, full - 1).is_some(), "the least that helps");
        assert_eq!(gives(1_000_033, full), None, "it would be full again at once");
        // It has more left than it would gain: it is told when that is nearly used.
        assert_eq!(gives(1_050_000, full - 48_000), None);
        assert!(gives(1_050_000, full - 47_000).is_some());
        assert!(gives(1_063_000, 0).is_some(), "nor does an empty one miss much");
        assert_eq!(gives(999_999, full), None, "never lower");
        // It may have taken more than its limit, where that was lowered at a start.
        assert!(Limit::of(room(0, 0, 2)).raised(room(2, 0, 60)).is_some());
    }

    #[test]
    fn a_limit_without_a_look_fits_what_is_free() {
        let mut limit = Limit::of(room(0, 0, 1_000));
        limit.note(room(300, 20, 700));
        assert_eq!(limit.within(700 * MIB), limit, "nothing has changed");
        assert_eq!(limit.within(5_000 * MIB), limit, "it is raised by a look");
        // Others have taken all but a little.
        let lower = limit.within(40 * MIB);
        assert_eq!(lower.bytes, 324 * MIB);
        assert_eq!(lower.raised(room(320, 20, 20)), None);
        assert!(lower.raised(room(320, 20, 120)).is_some(), "they give back some");
        limit.note(room(300, 800, 700));
        assert_eq!(limit.within(0).bytes, 801 * MIB, "what is reserved is known of the look, too");
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
        assert_eq!(measured(store.path()), Room::default(), "a new store");
        std::fs::create_dir_all(stream.join("msgs")).unwrap();
        std::fs::write(stream.join("msgs/1.blk"), vec![0; 5_000]).unwrap();
        std::fs::write(stream.join(SETTINGS), r#"{"name":"s","max_bytes":12582912}"#).unwrap();
        std::fs::create_dir_all(store.path().join("lost+found")).unwrap();
        std::fs::write(store.path().join("ballast"), vec![0; 9_000]).unwrap();
        assert_eq!(measured(store.path()), Room { taken: 5_033, reserved: 12 * MIB, free: 0 });
        for none in [r#"{"name":"s","max_bytes":-1}"#, r#"{"name":"c"}"#, "encrypted"] {
            std::fs::write(stream.join(SETTINGS), none).unwrap();
            assert_eq!(measured(store.path()).reserved, 0, "{none}");
        }
    }

    fn measured(store: &Path) -> Room {
        let mut room = Room::default();
        room.add(&store.join("jetstream"), &CancellationToken::new()).unwrap();
        room
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
