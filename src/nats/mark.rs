//! Whether an embedded store can have lost what it had acknowledged: the machine's boot id and a mark of a clean stop,
//! in a small file beside the store.
//!
//! nats-server hands each message to the kernel before it acknowledges it, so a crash of a *process* loses nothing; but
//! it flushes to the disk every two minutes only, so a crash of the *machine* may lose what came since. What is left
//! then looks like any store, and a witness that was kept beside it may have gone back with it. The boot id tells a
//! crash of the machine from one of a process:
//!
//! | Last run | Then |
//! |---|---|
//! | stopped cleanly (everything flushed) | nothing is lost |
//! | `enats_sync=always` | nothing is lost |
//! | ended otherwise, the same boot | the page cache is still there, nothing is lost |
//! | ended otherwise, another boot, or nobody can tell | the store is **suspect** |
//! | however: the store's files are not the ones of then, but copies | the store is **suspect** |
//!
//! A copy may be an old backup that was put back: a copy of a file has another birth than the file, which no program can
//! choose. A store that was copied to another machine looks the same. A block device that was put back does not show.
//!
//! Suspicion stays in the file until somebody has dealt with it ([`StoreMark::clear`]), also across further crashes.
//! Where the kernel names no boot (only Linux does), each end without a clean stop counts as a crash of the machine.

use super::private;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

/// The file's name in the store directory.
pub const FILE: &str = "boot";
/// nats-server's own part of the store directory.
const JETSTREAM: &str = "jetstream";
/// A file that is made once and never replaced: the lock of the store.
const LASTING: &str = "carrick.lock";
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    /// Boot of the machine that the store was last opened in; `None`: the kernel does not say.
    boot: Option<String>,
    /// Everything was flushed after the server had ended.
    clean: bool,
    /// All that was acknowledged has been flushed before.
    always_synced: bool,
    /// Names the folder's files; `None`: the file system does not tell their birth.
    #[serde(default)]
    identity: Option<String>,
    /// Why this store cannot be trusted, until that has been dealt with.
    suspect: Option<String>,
}

/// The mark of one open store.
#[derive(Debug)]
pub struct StoreMark {
    store: PathBuf,
    record: Mutex<Record>,
}

impl StoreMark {
    /// Judges the store by what its last run left, and notes that it is in use from now on. To be called while the store
    /// is locked and before a server opens it. `always`: the server will flush before each acknowledgement.
    pub fn open(store: &Path, always: bool) -> io::Result<Self> {
        Self::open_in(store, always, boot_id(), identity(store)?)
    }

    fn open_in(store: &Path, always: bool, boot: Option<String>, identity: Option<String>) -> io::Result<Self> {
        let former = read(store)?;
        let suspect = match &former {
            Former::Known(record) => judge(record, boot.as_deref(), identity.as_deref()),
            Former::None => {
                let used = store.join(JETSTREAM).exists();
                used.then(|| "nothing says how the store was left".to_owned())
            }
            Former::Unreadable(why) => Some(format!("the note of how the store was left is unreadable ({why})")),
        };
        let flushed = matches!(&former, Former::Known(record) if record.clean || record.always_synced);
        if always && !flushed {
            // From now on it holds of everything that is in the store.
            sync_tree(&store.join(JETSTREAM))?;
        }
        let record = Record { boot, clean: false, always_synced: always, identity, suspect };
        write(store, &record)?;
        Ok(Self { store: store.to_owned(), record: Mutex::new(record) })
    }

    fn lock(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Why acknowledged messages may be missing from the store.
    pub fn suspicion(&self) -> Option<String> {
        self.lock().suspect.clone()
    }

    /// The suspicion has been dealt with: positions of before are void, or somebody proved them good.
    pub fn clear(&self) -> io::Result<()> {
        let mut record = self.lock();
        record.suspect = None;
        write(&self.store, &record)
    }

    /// The server has ended: flushes its files, then says so.
    pub fn close(&self) -> io::Result<()> {
        sync_tree(&self.store.join(JETSTREAM))?;
        let mut record = self.lock();
        record.clean = true;
        write(&self.store, &record)
    }
}

fn judge(former: &Record, boot: Option<&str>, identity: Option<&str>) -> Option<String> {
    if former.suspect.is_some() {
        return former.suspect.clone();
    }
    if let (Some(then), Some(now)) = (former.identity.as_deref(), identity)
        && then != now
    {
        return Some("it is a copy, perhaps an old one".to_owned());
    }
    let same_boot = former.boot.is_some() && former.boot.as_deref() == boot;
    if former.clean || former.always_synced || same_boot {
        return None;
    }
    Some(match boot {
        Some(_) => "the machine was started anew, and the store had not been closed".to_owned(),
        None => "the store had not been closed, and this system does not tell whether the machine crashed".to_owned(),
    })
}

fn boot_id() -> Option<String> {
    let text = std::fs::read_to_string(BOOT_ID).ok()?;
    let id = text.trim();
    (!id.is_empty()).then(|| id.to_owned())
}

/// Birth of a file that lives as long as the store, in Unix nanoseconds.
fn identity(store: &Path) -> io::Result<Option<String>> {
    let file = private::file(File::options().create(true).append(true), &store.join(LASTING))?;
    let about = file.metadata()?;
    let birth = about.created().ok().and_then(|time| time.duration_since(SystemTime::UNIX_EPOCH).ok());
    Ok(birth.map(|birth| birth.as_nanos().to_string()))
}

enum Former {
    /// No file: a new store, or one of a version that wrote none.
    None,
    Known(Record),
    Unreadable(String),
}

fn read(store: &Path) -> io::Result<Former> {
    let mut file = match private::file(File::options().read(true), &store.join(FILE)) {
        Ok(file) => file,
        Err(error) if error.is_not_found() => return Ok(Former::None),
        Err(error) => return Err(error.into()),
    };
    let mut text = Vec::new();
    file.read_to_end(&mut text)?;
    Ok(serde_json::from_slice(&text).map_or_else(|e| Former::Unreadable(e.to_string()), Former::Known))
}

/// Returns when the record is on the disk; a crash leaves the old one or the new one.
fn write(store: &Path, record: &Record) -> io::Result<()> {
    let mut file = tempfile::NamedTempFile::new_in(store)?;
    file.write_all(&serde_json::to_vec(record).expect("a record is plain JSON"))?;
    file.as_file().sync_all()?;
    file.persist(store.join(FILE)).map_err(|e| e.error)?;
    File::open(store)?.sync_all()
}

fn is_mine(entry: &std::fs::DirEntry) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt;
    Ok(entry.metadata()?.uid() == private::me())
}

/// Flushes all files and folders under `path`; nothing if it does not exist.
fn sync_tree(path: &Path) -> io::Result<()> {
    let entries = match std::fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            match sync_tree(&entry.path()) {
                // The `lost+found` of a volume, not the server's.
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied && !is_mine(&entry)? => {}
                synced => synced?,
            }
        } else if kind.is_file() {
            File::open(entry.path())?.sync_all()?;
        }
    }
    File::open(path)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nats::test_files::{mode, set};

    /// A store that was used in boot `a`, and how it was left.
    fn left(always: bool, clean: bool) -> tempfile::TempDir {
        let store = tempfile::tempdir().unwrap();
        let mark = open(&store, always, Some("a"));
        assert_eq!(mark.suspicion(), None, "a new store");
        std::fs::create_dir_all(store.path().join("jetstream/a")).unwrap();
        std::fs::write(store.path().join("jetstream/a/1.blk"), "x").unwrap();
        if clean {
            mark.close().unwrap();
        }
        store
    }

    fn open(store: &tempfile::TempDir, always: bool, boot: Option<&str>) -> StoreMark {
        StoreMark::open_in(store.path(), always, boot.map(str::to_owned), Some("this".into())).unwrap()
    }

    fn suspicion(store: &tempfile::TempDir, boot: Option<&str>) -> Option<String> {
        open(store, false, boot).suspicion()
    }

    #[test]
    fn a_copy_is_suspect() {
        let store = left(true, true);
        let copy = StoreMark::open_in(store.path(), false, Some("a".into()), Some("that".into())).unwrap();
        assert!(copy.suspicion().is_some_and(|why| why.contains("copy")));
        // Where births are not told nothing is concluded.
        let store = left(true, true);
        assert_eq!(StoreMark::open_in(store.path(), false, Some("a".into()), None).unwrap().suspicion(), None);
        let store = tempfile::tempdir().unwrap();
        assert_eq!(identity(store.path()).unwrap(), identity(store.path()).unwrap());
    }

    #[test]
    fn only_another_boot_without_a_clean_stop_is_suspect() {
        assert!(suspicion(&left(false, false), Some("b")).is_some_and(|why| why.contains("started anew")));
        assert_eq!(suspicion(&left(false, false), Some("a")), None, "the page cache is still there");
        assert_eq!(suspicion(&left(false, true), Some("b")), None, "everything was flushed");
        assert_eq!(suspicion(&left(true, false), Some("b")), None, "everything was flushed before");
    }

    #[test]
    fn where_no_boot_is_named_only_a_clean_stop_proves_anything() {
        assert!(suspicion(&left(false, false), None).is_some());
        assert_eq!(suspicion(&left(false, true), None), None);
        let store = left(false, true);
        drop(open(&store, false, None));
        assert!(suspicion(&store, None).is_some(), "no boot is not the same boot");
    }

    #[test]
    fn suspicion_outlives_crashes_until_it_is_dealt_with() {
        let store = left(false, false);
        assert!(suspicion(&store, Some("b")).is_some());
        assert!(suspicion(&store, Some("b")).is_some(), "the same boot proves nothing now");
        let mark = open(&store, true, Some("b"));
        mark.close().unwrap();
        let mark = open(&store, false, Some("c"));
        assert!(mark.suspicion().is_some(), "nor does a clean stop");
        mark.clear().unwrap();
        assert_eq!(mark.suspicion(), None);
        assert_eq!(suspicion(&store, Some("c")), None);
    }

    #[test]
    fn a_used_store_without_a_readable_note_is_suspect() {
        let store = left(false, true);
        std::fs::write(store.path().join(FILE), "{").unwrap();
        assert!(suspicion(&store, Some("a")).is_some_and(|why| why.contains("unreadable")));
        let store = left(false, true);
        std::fs::remove_file(store.path().join(FILE)).unwrap();
        assert!(suspicion(&store, Some("a")).is_some());
    }

    /// Volumes of Kubernetes open to a group what they find at each start of a pod.
    #[test]
    fn row_22_what_a_volume_opens_to_a_group_is_closed_again() {
        let store = left(false, false);
        let files = [FILE, LASTING].map(|name| store.path().join(name));
        identity(store.path()).unwrap();
        for file in &files {
            set(file, 0o660);
        }
        assert!(matches!(read(store.path()).unwrap(), Former::Known(_)));
        identity(store.path()).unwrap();
        for file in &files {
            assert_eq!(mode(file), 0o600, "{}", file.display());
        }
    }

    #[test]
    fn row_22_a_link_in_place_of_the_note_is_told_with_the_cure() {
        let store = left(false, true);
        let note = store.path().join(FILE);
        std::fs::rename(&note, store.path().join("elsewhere")).unwrap();
        std::os::unix::fs::symlink("elsewhere", &note).unwrap();
        let error = StoreMark::open_in(store.path(), false, Some("a".into()), Some("this".into())).unwrap_err();
        assert!(error.to_string().contains("it is a link") && error.to_string().contains("move it back"), "{error}");
    }

    #[test]
    fn a_wiped_store_is_a_new_one() {
        let store = left(false, false);
        std::fs::remove_dir_all(store.path().join("jetstream")).unwrap();
        std::fs::remove_file(store.path().join(FILE)).unwrap();
        assert_eq!(suspicion(&store, Some("b")), None);
    }
}
