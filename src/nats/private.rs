//! Files and directories of Carrick's own in a store: opened without following links, of this user, and closed to all
//! others. A group may write to the store's directory, and others may have put something there.

use rustix::fs::OFlags;
use std::fs::{DirBuilder, File, Metadata, OpenOptions, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Mode bits: anybody but the owner may do something.
const NOT_PRIVATE: u32 = 0o077;

/// Why something in the store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PrivateError {
    #[error("{path} is not safe to use: {why}; {cure}")]
    Foreign { path: PathBuf, why: String, cure: String },
    #[error("{path}: {action} failed: {source}")]
    Failed { path: PathBuf, action: &'static str, source: io::Error },
}

impl PrivateError {
    fn failed(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Failed { path: path.to_owned(), action, source }
    }

    /// No cure removes what Carrick made. Files of a store say what it is and how it was left: without them it counts as
    /// a copy, or as one that crashed.
    fn foreign(path: &Path, why: &str, cure: String) -> Self {
        Self::Foreign { path: path.to_owned(), why: format!("{why}, and Carrick did not make it so"), cure }
    }

    fn link(path: &Path) -> Self {
        let shown = path.display();
        let cure = format!(
            "if what it leads to was moved from here, move it back; if not, find out who put the link there, and remove \
             the link alone (rm {shown})"
        );
        Self::foreign(path, "it is a link", cure)
    }

    fn of_another_user(path: &Path, owner: u32) -> Self {
        let (me, shown) = (me(), path.display());
        let cure = format!(
            "if Carrick made it when it ran as that user, give it to this one (chown -R {me} {shown}); if not, find out \
             who put it there, and move it away"
        );
        Self::foreign(path, &format!("it belongs to user {owner}"), cure)
    }

    fn no_file(path: &Path) -> Self {
        let cure = format!("find out who put it there, and move it away ({})", path.display());
        Self::foreign(path, "it is no file", cure)
    }

    /// Through its other name somebody else may reach it, or it is a file that was never meant to be in a store.
    fn named_twice(path: &Path) -> Self {
        let shown = path.display();
        let cure = format!(
            "remove its other name and keep this one, or keep backups by copying and not by links; this finds both: \
             find DIRECTORY -xdev -samefile {shown}, with the directory that the file system is mounted on"
        );
        Self::foreign(path, "it has a second name (a hard link)", cure)
    }

    /// An open that failed: because of what is there, or otherwise.
    fn of_open(path: &Path, error: io::Error) -> Self {
        match std::fs::symlink_metadata(path) {
            Ok(about) if about.is_symlink() => Self::link(path),
            Ok(about) if about.uid() != me() => Self::of_another_user(path, about.uid()),
            Ok(about) if about.is_dir() && error.kind() == io::ErrorKind::IsADirectory => Self::no_file(path),
            _ => Self::failed(path, "opening it")(error),
        }
    }

    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Failed { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

impl From<PrivateError> for io::Error {
    fn from(error: PrivateError) -> Self {
        let kind = match &error {
            PrivateError::Foreign { .. } => io::ErrorKind::PermissionDenied,
            PrivateError::Failed { source, .. } => source.kind(),
        };
        Self::new(kind, error)
    }
}

/// The user that this process runs as.
pub fn me() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// Opens a file as `options` say. It is made, or found to be of this user, no link and nothing but a file; and closed to
/// all others: volumes of Kubernetes open to a group what they find.
pub fn file(options: &mut OpenOptions, path: &Path) -> Result<File, PrivateError> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = options.mode(0o600).custom_flags(flags.bits() as i32).open(path);
    let file = file.map_err(|error| PrivateError::of_open(path, error))?;
    let about = file.metadata().map_err(PrivateError::failed(path, "looking at it"))?;
    if !about.is_file() {
        return Err(PrivateError::no_file(path));
    }
    check_owner(path, &about)?;
    match about.nlink() {
        1 => {}
        0 => return Err(PrivateError::failed(path, "opening it")(io::Error::other("it was removed meanwhile"))),
        _ => return Err(PrivateError::named_twice(path)),
    }
    close_to_others(path, &file, &about)?;
    Ok(file)
}

/// A directory: made, or found to be of this user and no link, and closed to all others. The answer holds it, whatever
/// happens to its name.
pub fn directory(path: &Path) -> Result<File, PrivateError> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(PrivateError::failed(path, "creating it")(error));
        }
        _ => {}
    }
    let flags = OFlags::NOFOLLOW | OFlags::DIRECTORY;
    let open = OpenOptions::new().read(true).custom_flags(flags.bits() as i32).open(path);
    let directory = open.map_err(|error| PrivateError::of_open(path, error))?;
    let about = directory.metadata().map_err(PrivateError::failed(path, "looking at it"))?;
    check_owner(path, &about)?;
    close_to_others(path, &directory, &about)?;
    Ok(directory)
}

/// A name of an open directory that no renaming changes, in this process and in one that inherits the descriptor; its
/// path where the system has no such name.
pub fn through(held: &File, path: &Path) -> PathBuf {
    let named = PathBuf::from(format!("/proc/self/fd/{}", held.as_raw_fd()));
    if cfg!(target_os = "linux") && named.exists() { named } else { path.to_owned() }
}

/// The path leads to the directory that is held: nobody has put another one there.
pub fn leads_to(path: &Path, held: &File) -> io::Result<bool> {
    let (there, held) = (std::fs::metadata(path)?, held.metadata()?);
    Ok((there.dev(), there.ino()) == (held.dev(), held.ino()))
}

fn check_owner(path: &Path, about: &Metadata) -> Result<(), PrivateError> {
    if about.uid() == me() { Ok(()) } else { Err(PrivateError::of_another_user(path, about.uid())) }
}

fn close_to_others(path: &Path, open: &File, about: &Metadata) -> Result<(), PrivateError> {
    if about.mode() & NOT_PRIVATE != 0 {
        let mode = about.mode() & 0o700;
        open.set_permissions(Permissions::from_mode(mode))
            .map_err(PrivateError::failed(path, "closing it to others"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nats::test_files::{self, given_away, mode, set};
    use std::os::unix::fs::symlink;

    fn refusal<T>(result: Result<T, PrivateError>) -> String {
        test_files::refusal(result, |error| matches!(error, PrivateError::Foreign { .. }))
    }

    fn writable(path: &Path) -> Result<File, PrivateError> {
        file(File::options().read(true).write(true).create(true).truncate(false), path)
    }

    fn readable(path: &Path) -> Result<File, PrivateError> {
        file(File::options().read(true), path)
    }

    #[test]
    fn row_22_nothing_is_written_through_a_link() {
        let place = tempfile::tempdir().unwrap();
        let (victim, lock) = (place.path().join("victim"), place.path().join("carrick.lock"));
        std::fs::write(&victim, "precious").unwrap();
        symlink(&victim, &lock).unwrap();
        for open in [writable, readable] {
            let said = refusal(open(&lock));
            let cure = format!("remove the link alone (rm {})", lock.display());
            assert!(said.contains("it is a link") && said.contains(&cure), "{said}");
        }
        std::fs::remove_file(&lock).unwrap();
        std::fs::hard_link(&victim, &lock).unwrap();
        for open in [writable, readable] {
            assert!(refusal(open(&lock)).contains("it has a second name"));
        }
        assert_eq!(std::fs::read_to_string(&victim).unwrap(), "precious");
        let (elsewhere, bin) = (place.path().join("elsewhere"), place.path().join("bin"));
        std::fs::create_dir(&elsewhere).unwrap();
        symlink(&elsewhere, &bin).unwrap();
        assert!(refusal(directory(&bin)).contains("it is a link"));
    }

    #[test]
    fn row_22_what_is_ours_is_closed_to_others_and_what_is_not_is_refused() {
        let place = tempfile::tempdir().unwrap();
        let (lock, bin) = (place.path().join("carrick.lock"), place.path().join("bin"));
        std::fs::write(&lock, "kept").unwrap();
        std::fs::create_dir(&bin).unwrap();
        for open in [writable, readable] {
            set(&lock, 0o666);
            open(&lock).unwrap();
            assert_eq!(mode(&lock), 0o600);
        }
        set(&bin, 0o777);
        directory(&bin).unwrap();
        assert_eq!(mode(&bin), 0o700);
        assert_eq!(std::fs::read_to_string(&lock).unwrap(), "kept", "never truncated by opening it");
        if given_away(&lock) && given_away(&bin) {
            for open in [writable, readable] {
                let said = refusal(open(&lock));
                assert!(said.contains("user 12345") && said.contains("chown -R") && !said.contains("rm "), "{said}");
            }
            assert!(refusal(directory(&bin)).contains("user 12345"));
        }
    }

    /// The lock's birth is what the store is known by, so a backup by links must not end in its removal.
    #[test]
    fn the_cure_for_a_second_name_keeps_the_file() {
        let place = tempfile::tempdir().unwrap();
        let (lock, backup) = (place.path().join("carrick.lock"), place.path().join("backup"));
        drop(writable(&lock).unwrap());
        std::fs::hard_link(&lock, &backup).unwrap();
        for open in [writable, readable] {
            let said = refusal(open(&lock));
            let finds = format!("-samefile {}", lock.display());
            assert!(said.contains("remove its other name") && said.contains(&finds), "{said}");
            assert!(!said.contains("rm "), "{said}");
        }
        std::fs::remove_file(&backup).unwrap();
        writable(&lock).unwrap();
    }

    #[test]
    fn a_directory_in_place_of_a_file_is_moved_away_and_not_removed() {
        let place = tempfile::tempdir().unwrap();
        for open in [writable, readable] {
            let said = refusal(open(place.path()));
            assert!(said.contains("it is no file") && said.contains("move it away"), "{said}");
        }
    }

    #[test]
    fn what_is_held_is_told_from_what_was_put_in_its_place() {
        let place = tempfile::tempdir().unwrap();
        let run = place.path().join("run");
        let held = directory(&run).unwrap();
        assert!(leads_to(&run, &held).unwrap());
        std::fs::rename(&run, place.path().join("away")).unwrap();
        assert!(leads_to(&run, &held).is_err());
        std::fs::create_dir(&run).unwrap();
        assert!(!leads_to(&run, &held).unwrap());
        let by_descriptor = through(&held, &run);
        assert_eq!(leads_to(&by_descriptor, &held).unwrap(), by_descriptor != run);
    }

    #[test]
    fn what_is_missing_is_no_refusal() {
        let place = tempfile::tempdir().unwrap();
        let missing = readable(&place.path().join("witness")).unwrap_err();
        assert!(missing.is_not_found(), "{missing}");
        assert_eq!(io::Error::from(missing).kind(), io::ErrorKind::NotFound);
    }
}
