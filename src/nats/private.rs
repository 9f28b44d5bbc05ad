//! Files and directories of Carrick's own in a store: opened without following links, of this user, and closed to all
//! others. A group may write to the store's directory, and others may have put something there.

use rustix::fs::OFlags;
use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io;
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

    fn foreign(path: &Path, why: &str) -> Self {
        let cure = format!("find out who put it there, and remove it (rm -r {})", path.display());
        Self::Foreign { path: path.to_owned(), why: format!("{why}, and Carrick did not make it so"), cure }
    }

    /// An open that failed: because of what is there, or otherwise.
    fn of_open(path: &Path, error: io::Error) -> Self {
        match std::fs::symlink_metadata(path) {
            Ok(about) if about.is_symlink() => Self::foreign(path, "it is a link"),
            Ok(about) if about.uid() != me() => Self::foreign(path, &format!("it belongs to user {}", about.uid())),
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
    if !about.is_file() || about.nlink() != 1 {
        return Err(PrivateError::foreign(path, "it is no file of its own"));
    }
    close_to_others(path, &file)?;
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
    close_to_others(path, &directory)?;
    Ok(directory)
}

fn close_to_others(path: &Path, open: &File) -> Result<(), PrivateError> {
    let about = open.metadata().map_err(PrivateError::failed(path, "looking at it"))?;
    if about.uid() != me() {
        return Err(PrivateError::foreign(path, &format!("it belongs to user {}", about.uid())));
    }
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
            assert!(said.contains("it is a link") && said.contains("rm -r"), "{said}");
        }
        std::fs::remove_file(&lock).unwrap();
        std::fs::hard_link(&victim, &lock).unwrap();
        for open in [writable, readable] {
            assert!(refusal(open(&lock)).contains("no file of its own"));
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
                assert!(refusal(open(&lock)).contains("user 12345"));
            }
            assert!(refusal(directory(&bin)).contains("user 12345"));
        }
    }

    #[test]
    fn what_is_missing_is_no_refusal() {
        let place = tempfile::tempdir().unwrap();
        let missing = readable(&place.path().join("witness")).unwrap_err();
        assert!(missing.is_not_found(), "{missing}");
        assert_eq!(io::Error::from(missing).kind(), io::ErrorKind::NotFound);
    }
}
