//! What is safe to use of a store directory: what others cannot have put there.
//!
//! The directory itself may belong to root and to a group, as volumes do. What Carrick makes in it is its own: opened
//! without following links, of this user, and closed to all others. Whoever may write to the directory through its group is
//! trusted with the data, but runs nothing here: see [`super::binary`].

use super::{EmbeddedError, ancestors};
use rustix::fs::OFlags;
use std::fs::{DirBuilder, File, Metadata, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Mode bits: others may write.
const OTHERS_WRITE: u32 = 0o002;
/// Mode bits: anybody but the owner may do something.
const NOT_PRIVATE: u32 = 0o077;

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

pub(super) fn me() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// A directory of Carrick's own in the store: made, or found to be of this user and no link, and closed to all others. The
/// answer holds it, whatever happens to its name.
pub(super) fn private_dir(path: &Path) -> Result<File, EmbeddedError> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(EmbeddedError::store(path, "creating it")(error));
        }
        _ => {}
    }
    let flags = OFlags::NOFOLLOW | OFlags::DIRECTORY;
    let open = OpenOptions::new().read(true).custom_flags(flags.bits() as i32).open(path);
    let directory = open.map_err(|error| link_or(path, "opening it", error))?;
    close_to_others(path, &directory)?;
    Ok(directory)
}

/// A file of Carrick's own in the store, made or found to be of this user, no link and nothing but a file. Its content stays.
pub(super) fn private_file(path: &Path) -> Result<File, EmbeddedError> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600).custom_flags(flags.bits() as i32);
    let file = options.open(path).map_err(|error| link_or(path, "opening it", error))?;
    let about = file.metadata().map_err(EmbeddedError::store(path, "looking at it"))?;
    if !about.is_file() || about.nlink() != 1 {
        return Err(foreign(path, "it is no file of its own"));
    }
    close_to_others(path, &file)?;
    Ok(file)
}

fn close_to_others(path: &Path, open: &File) -> Result<(), EmbeddedError> {
    let about = open.metadata().map_err(EmbeddedError::store(path, "looking at it"))?;
    if about.uid() != me() {
        return Err(foreign(path, &format!("it belongs to user {}", about.uid())));
    }
    if about.mode() & NOT_PRIVATE != 0 {
        let mode = about.mode() & 0o700;
        open.set_permissions(Permissions::from_mode(mode))
            .map_err(EmbeddedError::store(path, "closing it to others"))?;
    }
    Ok(())
}

fn link_or(path: &Path, action: &'static str, error: io::Error) -> EmbeddedError {
    match std::fs::symlink_metadata(path) {
        Ok(about) if about.is_symlink() => foreign(path, "it is a link"),
        Ok(about) if about.uid() != me() => foreign(path, &format!("it belongs to user {}", about.uid())),
        _ => EmbeddedError::store(path, action)(error),
    }
}

fn foreign(path: &Path, why: &str) -> EmbeddedError {
    let cure = format!("find out who put it there, and remove it (rm -r {})", path.display());
    EmbeddedError::Unsafe { path: path.to_owned(), why: format!("{why}, and Carrick did not make it so"), cure }
}

/// An empty private directory under the store for generated files.
pub(super) fn fresh_run_dir(store: &Path) -> Result<PathBuf, EmbeddedError> {
    check_store(store)?;
    let run = store.join("run");
    // Of a link this removes the link.
    match std::fs::remove_dir_all(&run) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(EmbeddedError::store(run, "emptying it")(e)),
        _ => {}
    }
    private_dir(&run)?;
    Ok(run)
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
    use std::os::unix::fs::{chown, symlink};

    const STRANGER: u32 = 12_345;

    fn mode(path: &Path) -> u32 {
        std::fs::symlink_metadata(path).unwrap().mode() & 0o7777
    }

    fn set(path: &Path, mode: u32) {
        std::fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    /// Giving files away takes root, as in CI; elsewhere a test has nothing to try.
    fn given_away(path: &Path) -> bool {
        chown(path, Some(STRANGER), None).is_ok()
    }

    fn refusal<T>(result: Result<T, EmbeddedError>) -> String {
        match result {
            Err(error @ EmbeddedError::Unsafe { .. }) => error.to_string(),
            Err(other) => panic!("{other}"),
            Ok(_) => panic!("not refused"),
        }
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
    fn row_22_nothing_is_written_through_a_link() {
        let place = tempfile::tempdir().unwrap();
        let (victim, lock) = (place.path().join("victim"), place.path().join("carrick.lock"));
        std::fs::write(&victim, "precious").unwrap();
        symlink(&victim, &lock).unwrap();
        assert!(refusal(private_file(&lock)).contains("it is a link"));
        std::fs::remove_file(&lock).unwrap();
        std::fs::hard_link(&victim, &lock).unwrap();
        assert!(refusal(private_file(&lock)).contains("no file of its own"));
        assert_eq!(std::fs::read_to_string(&victim).unwrap(), "precious");
        let (elsewhere, bin) = (place.path().join("elsewhere"), place.path().join("bin"));
        std::fs::create_dir(&elsewhere).unwrap();
        symlink(&elsewhere, &bin).unwrap();
        assert!(refusal(private_dir(&bin)).contains("it is a link"));
        symlink(&elsewhere, place.path().join("run")).unwrap();
        set(place.path(), 0o700);
        let run = fresh_run_dir(place.path()).unwrap();
        assert!(!std::fs::symlink_metadata(&run).unwrap().is_symlink() && elsewhere.exists());
    }

    #[test]
    fn row_22_what_is_ours_is_closed_to_others_and_what_is_not_is_refused() {
        let place = tempfile::tempdir().unwrap();
        let (file, directory) = (place.path().join("carrick.lock"), place.path().join("bin"));
        std::fs::write(&file, "kept").unwrap();
        std::fs::create_dir(&directory).unwrap();
        set(&file, 0o666);
        set(&directory, 0o777);
        private_file(&file).unwrap();
        private_dir(&directory).unwrap();
        assert_eq!((mode(&file), mode(&directory)), (0o600, 0o700));
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "kept", "never truncated by opening it");
        if given_away(&file) && given_away(&directory) {
            assert!(refusal(private_file(&file)).contains("user 12345"));
            assert!(refusal(private_dir(&directory)).contains("user 12345"));
        }
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
