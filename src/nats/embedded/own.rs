//! What is safe to use of a store directory: what others cannot have put there.
//!
//! The directory itself may belong to root and to a group, as volumes do. What Carrick makes in it is [`private`]. Whoever
//! may write to the directory through its group is trusted with the data, but runs nothing here: see [`super::binary`].

use super::{EmbeddedError, ancestors};
use crate::nats::private::{self, PrivateError, me};
use std::fs::{DirBuilder, File, Metadata};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Mode bits: others may write.
const OTHERS_WRITE: u32 = 0o002;

/// Creates the store directory if needed, open to this user alone. One that exists must be safe.
pub(super) fn prepare_store(store: &Path) -> Result<(), EmbeddedError> {
    DirBuilder::new().recursive(true).mode(0o700).create(store).map_err(EmbeddedError::store(store, "creating it"))?;
    check_store(store)?;
    for why in ancestors::check(store)? {
        tracing::warn!(context = "enats", store = %store.display(), why, "others can put another store in the place of this one");
    }
    let jetstream = store.join("jetstream");
    match std::fs::metadata(&jetstream) {
        Ok(about) => check(&jetstream, &about, |owner| owner == me()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(EmbeddedError::store(&jetstream, "looking at it")(error)),
    }
}

/// The directory belongs to this user or to root, and not everybody may write to it.
pub(super) fn check_store(store: &Path) -> Result<(), EmbeddedError> {
    let about = std::fs::metadata(store).map_err(EmbeddedError::store(store, "looking at it"))?;
    check(store, &about, |owner| owner == me() || owner == 0)
}

fn check(path: &Path, about: &Metadata, may_own: impl Fn(u32) -> bool) -> Result<(), EmbeddedError> {
    let refuse = |why: String, cure: String| EmbeddedError::Unsafe { path: path.to_owned(), why, cure };
    let (owner, me, shown) = (about.uid(), me(), path.display());
    if !may_own(owner) {
        return Err(refuse(
            format!("it belongs to user {owner}, and this process runs as user {me}"),
            format!(
                "run Carrick as user {owner}, give the directory to this one (chown -R {me} {shown}), or choose another"
            ),
        ));
    }
    // Also with the sticky bit: others could put there what is not there yet.
    if about.mode() & OTHERS_WRITE != 0 {
        return Err(refuse(
            "everybody may write to it".to_owned(),
            format!("take that away (chmod o-w {shown}), or choose a directory of its own within it"),
        ));
    }
    Ok(())
}

impl From<PrivateError> for EmbeddedError {
    fn from(error: PrivateError) -> Self {
        match error {
            PrivateError::Foreign { path, why, cure } => Self::Unsafe { path, why, cure },
            PrivateError::Failed { path, action, source } => Self::Store { path, action, source },
        }
    }
}

/// The private directory under the store for what is generated: the configuration, which names a program's rights and
/// passwords, and the ports that the server has written down. Whoever may rename in the store can put another directory
/// in its place, so it is held, and named through its descriptor, which the server inherits.
#[derive(Debug)]
pub(super) struct RunDir {
    held: File,
    named: PathBuf,
}

impl RunDir {
    /// An empty one.
    pub(super) fn fresh(store: &Path) -> Result<Self, EmbeddedError> {
        check_store(store)?;
        let run = store.join("run");
        // Of a link this removes the link.
        match std::fs::remove_dir_all(&run) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(EmbeddedError::store(run, "emptying it")(e)),
            _ => {}
        }
        let held = private::directory(&run)?;
        let named = private::through(&held, &run);
        Ok(Self { held, named })
    }

    /// How this process and the server name it.
    pub(super) fn path(&self) -> &Path {
        &self.named
    }

    /// The descriptor that nats-server must inherit.
    pub(super) fn descriptor(&self) -> RawFd {
        self.held.as_raw_fd()
    }

    /// The name still leads to this directory. Always where it is one through the descriptor; to be called before the
    /// server is told to read something here.
    pub(super) fn check(&self) -> io::Result<()> {
        if private::leads_to(&self.named, &self.held)? {
            return Ok(());
        }
        let why = format!("somebody has put another directory in the place of {}", self.named.display());
        Err(io::Error::new(io::ErrorKind::PermissionDenied, why))
    }
}

/// Who else than root and this user may change what a program does: its file, or the directory that it is in.
pub(super) fn others_may_change(program: &Path) -> Option<String> {
    let directory = program.parent().filter(|parent| !parent.as_os_str().is_empty());
    let paths = [Some(program), directory];
    paths.into_iter().flatten().find_map(|path| {
        let about = std::fs::metadata(path).ok()?;
        let sticky = about.is_dir() && about.mode() & 0o1000 != 0;
        let who = match () {
            () if about.uid() != me() && about.uid() != 0 => format!("user {}", about.uid()),
            () if about.mode() & OTHERS_WRITE != 0 && !sticky => "everybody".to_owned(),
            () if about.mode() & 0o020 != 0 && !sticky && about.gid() != 0 => format!("group {}", about.gid()),
            () => return None,
        };
        Some(format!("{who} may write to {}", path.display()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nats::test_files::{self, STRANGER, given_away, mode, set};
    use std::os::unix::fs::{chown, symlink};

    fn refusal<T>(result: Result<T, EmbeddedError>) -> String {
        test_files::refusal(result, |error| matches!(error, EmbeddedError::Unsafe { .. }))
    }

    #[test]
    fn row_22_a_store_that_everybody_may_write_to_is_refused_with_the_cure() {
        let place = tempfile::tempdir().unwrap();
        for open in [0o777, 0o1777, 0o702] {
            set(place.path(), open);
            let said = refusal(prepare_store(place.path()));
            let cure = format!("chmod o-w {}", place.path().display());
            assert!(said.contains("everybody may write") && said.contains(&cure), "{said}");
        }
        for volume in [0o2775, 0o775, 0o755, 0o700] {
            set(place.path(), volume);
            prepare_store(place.path()).unwrap();
            assert_eq!(mode(place.path()), volume, "the directory itself stays as it is");
        }
    }

    #[test]
    fn row_22_a_store_of_another_user_is_refused_with_the_cure() {
        let place = tempfile::tempdir().unwrap();
        let store = place.path().join("store");
        prepare_store(&store).unwrap();
        assert_eq!(mode(&store), 0o700);
        if given_away(&store) {
            let said = refusal(prepare_store(&store));
            assert!(said.contains("belongs to user 12345") && said.contains("chown -R"), "{said}");
            chown(&store, Some(me()), Some(STRANGER)).unwrap();
            prepare_store(&store).expect("its group may be any");
            let jetstream = store.join("jetstream");
            std::fs::create_dir(&jetstream).unwrap();
            prepare_store(&store).unwrap();
            assert!(given_away(&jetstream));
            assert!(refusal(prepare_store(&store)).contains("jetstream"));
        }
    }

    #[test]
    fn row_22_the_directory_for_generated_files_is_never_behind_a_link() {
        let place = tempfile::tempdir().unwrap();
        let elsewhere = place.path().join("elsewhere");
        std::fs::create_dir(&elsewhere).unwrap();
        symlink(&elsewhere, place.path().join("run")).unwrap();
        set(place.path(), 0o700);
        let held = RunDir::fresh(place.path()).unwrap();
        let run = place.path().join("run");
        assert!(!std::fs::symlink_metadata(&run).unwrap().is_symlink() && elsewhere.exists());
        held.check().unwrap();
    }

    #[test]
    fn row_22_generated_files_never_go_to_a_directory_that_somebody_put_in_place_of_theirs() {
        let place = tempfile::tempdir().unwrap();
        set(place.path(), 0o700);
        let held = RunDir::fresh(place.path()).unwrap();
        let (run, away) = (place.path().join("run"), place.path().join("away"));
        std::fs::rename(&run, &away).unwrap();
        std::fs::create_dir(&run).unwrap();
        if held.check().is_ok() {
            std::fs::write(held.path().join("nats-server.conf"), "ours").unwrap();
            assert_eq!(std::fs::read_to_string(away.join("nats-server.conf")).unwrap(), "ours");
        }
        assert_eq!(std::fs::read_dir(&run).unwrap().count(), 0);
        if cfg!(target_os = "linux") {
            held.check().expect("no renaming changes a name through the descriptor");
        }
        // Where there is no such name it is noticed.
        let by_path = RunDir { named: run, held: held.held };
        assert!(by_path.check().unwrap_err().to_string().contains("another directory"));
    }

    #[test]
    fn row_22_a_named_program_that_others_may_change_is_told_of() {
        let place = tempfile::tempdir().unwrap();
        let program = place.path().join("nats-server");
        std::fs::write(&program, "").unwrap();
        set(&program, 0o755);
        assert_eq!(others_may_change(&program), None);
        set(&program, 0o757);
        assert!(others_may_change(&program).unwrap().starts_with("everybody may write to"));
        set(&program, 0o755);
        set(place.path(), 0o777);
        assert!(others_may_change(&program).is_some());
    }
}
