//! The server's executable.
//!
//! The built-in one is unpacked into the store directory: the one place that must be writable anyway, so a read-only root
//! does no harm, and the process shows under its own name in `ps`. Where the store is mounted `noexec`, Linux runs it from
//! memory (`memfd`) instead. That is not the first choice, because its 19 MB then count as memory that cannot be
//! reclaimed, and because programs without a file are what security monitors look for.

use super::EmbeddedError;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

/// An executable that is known to run here.
#[derive(Debug)]
pub(super) struct Binary {
    pub(super) path: PathBuf,
    /// What it answers to `--version`.
    pub(super) version: String,
    /// Keeps an executable in memory alive: `path` refers to its descriptor.
    _memory: Option<File>,
}

/// The operator's server, or the built-in one unpacked. `store` is an absolute path.
pub(super) async fn obtain(named: Option<&Path>, store: &Path) -> Result<Binary, EmbeddedError> {
    if let Some(path) = named {
        // Absolute, because the server is started by this very path again after a crash.
        let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        let failed = |reason| EmbeddedError::Binary { path: path.clone(), reason };
        let version = try_run(&path).await.map_err(|e| failed(format!("{e}; check --enats_bin")))?;
        return Ok(Binary { path, version, _memory: None });
    }
    built_in(store).await
}

#[cfg(not(feature = "embedded-nats"))]
async fn built_in(_store: &Path) -> Result<Binary, EmbeddedError> {
    Err(EmbeddedError::NotBuiltIn)
}

#[cfg(feature = "embedded-nats")]
async fn built_in(store: &Path) -> Result<Binary, EmbeddedError> {
    let directory = store.join("bin");
    let path = tokio::task::spawn_blocking(move || unpacked::into_directory(&directory))
        .await
        .expect("unpacking does not panic")?;
    let refusal = match try_run(&path).await {
        Ok(version) => return Ok(Binary { path, version, _memory: None }),
        Err(e) => e,
    };
    #[cfg(target_os = "linux")]
    if refusal.kind() == std::io::ErrorKind::PermissionDenied {
        tracing::warn!(
            context = "enats",
            path = %path.display(),
            "files of the store directory may not be run (noexec), nats-server is run from memory"
        );
        match run_from_memory().await {
            Ok(binary) => return Ok(binary),
            Err(error) => tracing::warn!(context = "enats", %error, "running nats-server from memory failed as well"),
        }
    }
    Err(EmbeddedError::Binary {
        path,
        reason: format!(
            "{refusal}; if the store directory is mounted noexec, put nats-server {} where it may be run and name it with \
             --enats_bin, or mount the store without noexec",
            unpacked::VERSION
        ),
    })
}

#[cfg(all(feature = "embedded-nats", target_os = "linux"))]
pub(super) async fn run_from_memory() -> std::io::Result<Binary> {
    let (memory, path) = tokio::task::spawn_blocking(unpacked::into_memory).await.expect("unpacking does not panic")?;
    let version = try_run(&path).await?;
    Ok(Binary { path, version, _memory: Some(memory) })
}

/// Runs `--version`: proof that the file may be executed here and is a nats-server.
async fn try_run(path: &Path) -> std::io::Result<String> {
    let mut tries = 0;
    let output = loop {
        let mut command = tokio::process::Command::new(path);
        command.arg("--version").env_clear().stdin(Stdio::null()).kill_on_drop(true);
        match command.output().await {
            // Another thread forked while the file was open for writing, and its child has not reached its exec yet.
            Err(e) if e.kind() == std::io::ErrorKind::ExecutableFileBusy && tries < 50 => {
                tries += 1;
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            result => break result?,
        }
    };
    let text = String::from_utf8_lossy(&output.stdout);
    match text.trim().strip_prefix("nats-server: v") {
        Some(version) if output.status.success() => Ok(version.to_owned()),
        _ => Err(std::io::Error::other("it is not a nats-server")),
    }
}

/// Lower-case hexadecimal SHA-256 of all that can be read.
#[cfg(feature = "embedded-nats")]
fn sha256(mut source: impl std::io::Read) -> std::io::Result<String> {
    use sha2::{Digest, Sha256};
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match source.read(&mut buffer)? {
            0 => break,
            n => hash.update(&buffer[..n]),
        }
    }
    Ok(hash.finalize().iter().map(|b| format!("{b:02x}")).collect())
}

#[cfg(feature = "embedded-nats")]
mod unpacked {
    use super::{EmbeddedError, sha256};
    use crate::nats::embedded::lock::create_private_dir;
    use flate2::read::DeflateDecoder;
    use std::fs::{File, OpenOptions, Permissions};
    use std::io::{self, Write};
    use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
    use std::path::{Path, PathBuf};

    pub(super) const VERSION: &str = env!("CARRICK_NATS_VERSION");
    const SHA256: &str = env!("CARRICK_NATS_SHA256");
    static DEFLATED: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/nats-server.deflate"));

    fn unpack(target: &mut File) -> io::Result<()> {
        io::copy(&mut DeflateDecoder::new(DEFLATED), target)?;
        target.flush()
    }

    /// A file named after version and checksum, reused if it is ours and intact. The caller holds the store's lock, so
    /// nobody else is at work here and other versions can go.
    pub(super) fn into_directory(directory: &Path) -> Result<PathBuf, EmbeddedError> {
        create_private_dir(directory).map_err(EmbeddedError::store(directory, "creating it"))?;
        let path = directory.join(format!("nats-server-{VERSION}-{}", &SHA256[..12]));
        if !is_intact(&path) {
            for old in std::fs::read_dir(directory).into_iter().flatten().flatten() {
                if old.file_name().to_string_lossy().starts_with("nats-server-") {
                    std::fs::remove_file(old.path()).map_err(EmbeddedError::store(old.path(), "removing it"))?;
                }
            }
            // Under another name until it is whole. A file still open for writing cannot be run, so it is closed first.
            let partial = directory.join("nats-server-unpacking");
            let mut options = OpenOptions::new();
            options.write(true).create_new(true).mode(0o700);
            let mut file = options.open(&partial).map_err(EmbeddedError::store(&partial, "creating it"))?;
            unpack(&mut file).map_err(EmbeddedError::store(&partial, "unpacking nats-server"))?;
            drop(file);
            std::fs::rename(&partial, &path).map_err(EmbeddedError::store(&path, "creating it"))?;
        }
        Ok(path)
    }

    /// Ours alone, executable, and with the right content.
    fn is_intact(path: &Path) -> bool {
        let Ok(metadata) = std::fs::symlink_metadata(path) else { return false };
        metadata.is_file()
            && metadata.uid() == rustix::process::geteuid().as_raw()
            && metadata.mode() & 0o022 == 0
            && std::fs::set_permissions(path, Permissions::from_mode(0o700)).is_ok()
            && File::open(path).and_then(sha256).is_ok_and(|found| found == SHA256)
    }

    /// An executable without a file. The path names our descriptor in the child, where it has the same number until the
    /// program is loaded.
    #[cfg(target_os = "linux")]
    pub(super) fn into_memory() -> io::Result<(File, PathBuf)> {
        use rustix::fs::{MemfdFlags, memfd_create};
        use std::os::fd::AsRawFd;
        // Kernels before 6.3 do not know the flag, later ones may demand it.
        let descriptor = memfd_create("nats-server", MemfdFlags::CLOEXEC | MemfdFlags::EXEC)
            .or_else(|_| memfd_create("nats-server", MemfdFlags::CLOEXEC))?;
        let mut file = File::from(descriptor);
        unpack(&mut file)?;
        // Through this process and not `self`, which the child would be; a read-only one, because a program that
        // someone may write to cannot be run.
        let path = format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
        let readable = File::open(&path)?;
        let path = PathBuf::from(format!("/proc/self/fd/{}", readable.as_raw_fd()));
        Ok((readable, path))
    }
}
