//! The server's executable.
//!
//! The built-in one is unpacked into the store directory: the one place that must be writable anyway, so a read-only root
//! does no harm, and the process shows under its own name in `ps`. Where the store is mounted `noexec`, Linux runs it from
//! memory (`memfd`) instead. That is not the first choice, because its 19 MB then count as memory that cannot be
//! reclaimed, and because programs without a file are what security monitors look for.
//!
//! What is executed is what was verified: the file is named through the descriptor of its directory, which belongs to this
//! user alone, so that nobody who may rename in the store directory puts another program in its place. Before each start it
//! must be the file whose content was compared with the checksum, unchanged since then.

use super::{EmbeddedError, own};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

/// An executable that is known to run here.
#[derive(Debug)]
pub(super) struct Binary {
    /// How it is called, for `ps` and messages.
    pub(super) path: PathBuf,
    /// What is executed: `path`, or a name through a descriptor of `held`.
    pub(super) program: PathBuf,
    /// What it answers to `--version`.
    pub(super) version: String,
    held: Held,
}

/// What keeps the name of an executable true.
#[derive(Debug)]
enum Held {
    /// The operator's program: whatever stands at its path.
    Nothing,
    /// The directory that it is in, and what the file was when it was verified.
    #[cfg_attr(not(feature = "embedded-nats"), expect(dead_code, reason = "nothing is unpacked"))]
    File { _directory: File, verified: Identity },
    /// A program in memory, which nobody can write to.
    #[cfg_attr(not(feature = "embedded-nats"), expect(dead_code, reason = "nothing is unpacked"))]
    Memory { _memory: File },
}

/// What changes with a file's content: nobody but root can set the time of a change.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Identity {
    device: u64,
    inode: u64,
    size: u64,
    changed: (i64, i64),
}

impl Identity {
    fn of(about: &std::fs::Metadata) -> Self {
        use std::os::unix::fs::MetadataExt;
        let changed = (about.ctime(), about.ctime_nsec());
        Self { device: about.dev(), inode: about.ino(), size: about.size(), changed }
    }
}

impl Binary {
    /// Before each start: the program is still the one that was verified. If not, it is unpacked anew.
    pub(super) async fn check(&mut self) -> Result<(), EmbeddedError> {
        let Held::File { verified, .. } = &self.held else { return Ok(()) };
        let now = std::fs::symlink_metadata(&self.program);
        if now.is_ok_and(|about| Identity::of(&about) == *verified) {
            return Ok(());
        }
        tracing::warn!(context = "enats", path = %self.path.display(), "the unpacked nats-server was changed, it is unpacked anew");
        let store = self.path.parent().and_then(Path::parent).map(Path::to_owned).unwrap_or_default();
        *self = built_in(&store).await?;
        Ok(())
    }
}

/// The operator's server, or the built-in one unpacked. `store` is an absolute path.
pub(super) async fn obtain(named: Option<&Path>, store: &Path) -> Result<Binary, EmbeddedError> {
    if let Some(path) = named {
        // Absolute, because the server is started by this very path again after a crash.
        let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        let failed = |reason| EmbeddedError::Binary { path: path.clone(), reason };
        if let Some(who) = own::others_may_change(&path) {
            tracing::warn!(context = "enats", path = %path.display(), who, "others can change the program of --enats_bin");
        }
        let version = try_run(&path).await.map_err(|e| failed(format!("{e}; check --enats_bin")))?;
        return Ok(Binary { program: path.clone(), path, version, held: Held::Nothing });
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
    let unpacked::Unpacked { path, program, directory, verified } =
        tokio::task::spawn_blocking(move || unpacked::into_directory(&directory))
            .await
            .expect("unpacking does not panic")?;
    let refusal = match try_run(&program).await {
        Ok(version) => {
            return Ok(Binary { path, program, version, held: Held::File { _directory: directory, verified } });
        }
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
    Ok(Binary { path: "nats-server".into(), program: path, version, held: Held::Memory { _memory: memory } })
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
    use super::{EmbeddedError, Identity, sha256};
    use crate::nats::private;
    use flate2::read::DeflateDecoder;
    use rustix::fs::OFlags;
    use std::fs::{File, OpenOptions, Permissions};
    use std::io::{self, Write};
    use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
    use std::path::{Path, PathBuf};

    pub(super) const VERSION: &str = env!("CARRICK_NATS_VERSION");
    const SHA256: &str = env!("CARRICK_NATS_SHA256");
    static DEFLATED: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/nats-server.deflate"));

    /// The executable in its directory.
    pub(super) struct Unpacked {
        pub(super) path: PathBuf,
        /// Its name through `directory`.
        pub(super) program: PathBuf,
        pub(super) directory: File,
        pub(super) verified: Identity,
    }

    fn unpack(target: &mut File) -> io::Result<()> {
        io::copy(&mut DeflateDecoder::new(DEFLATED), target)?;
        target.flush()
    }

    /// A file named after version and checksum, reused if it is ours and intact. The caller holds the store's lock, so
    /// nobody else is at work here and other versions can go.
    pub(super) fn into_directory(directory: &Path) -> Result<Unpacked, EmbeddedError> {
        let held = private::directory(directory)?;
        let within = private::through(&held, directory);
        let name = format!("nats-server-{VERSION}-{}", &SHA256[..12]);
        let (path, program) = (directory.join(&name), within.join(&name));
        let unpacked = |verified| Unpacked { path: path.clone(), program: program.clone(), directory: held, verified };
        if let Some(verified) = verified(&program) {
            return Ok(unpacked(verified));
        }
        {
            for old in std::fs::read_dir(&within).into_iter().flatten().flatten() {
                if old.file_name().to_string_lossy().starts_with("nats-server-") {
                    std::fs::remove_file(old.path()).map_err(EmbeddedError::store(old.path(), "removing it"))?;
                }
            }
            // Under another name until it is whole. A file still open for writing cannot be run, so it is closed first.
            let partial = within.join("nats-server-unpacking");
            let mut options = OpenOptions::new();
            options.write(true).create_new(true).mode(0o700);
            let mut file = options.open(&partial).map_err(EmbeddedError::store(&partial, "creating it"))?;
            unpack(&mut file).map_err(EmbeddedError::store(&partial, "unpacking nats-server"))?;
            drop(file);
            std::fs::rename(&partial, &program).map_err(EmbeddedError::store(&path, "creating it"))?;
        }
        match verified(&program) {
            Some(verified) => Ok(unpacked(verified)),
            None => {
                let error = io::Error::other("what was written is not what is read");
                Err(EmbeddedError::store(&path, "verifying it")(error))
            }
        }
    }

    /// What the file is, if it is ours alone, executable, and has the right content.
    fn verified(path: &Path) -> Option<Identity> {
        let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let file = OpenOptions::new().read(true).custom_flags(flags.bits() as i32).open(path).ok()?;
        let about = file.metadata().ok()?;
        let ours = about.is_file()
            && about.nlink() == 1
            && about.uid() == rustix::process::geteuid().as_raw()
            && about.mode() & 0o022 == 0;
        if !ours {
            return None;
        }
        if about.mode() & 0o7777 != 0o700 {
            file.set_permissions(Permissions::from_mode(0o700)).ok()?;
        }
        let before = Identity::of(&file.metadata().ok()?);
        (sha256(&file).ok()? == SHA256 && Identity::of(&file.metadata().ok()?) == before).then_some(before)
    }

    /// An executable without a file. The path names our descriptor in the child, where it has the same number until the
    /// program is loaded.
    #[cfg(target_os = "linux")]
    pub(super) fn into_memory() -> io::Result<(File, PathBuf)> {
        use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
        use std::os::fd::AsRawFd;
        // Kernels before 6.3 do not know the flag, later ones may demand it.
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let descriptor =
            memfd_create("nats-server", flags | MemfdFlags::EXEC).or_else(|_| memfd_create("nats-server", flags))?;
        let mut file = File::from(descriptor);
        unpack(&mut file)?;
        fcntl_add_seals(&file, SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        // Through this process and not `self`, which the child would be; a read-only one, because a program that
        // someone may write to cannot be run.
        let path = format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
        let readable = File::open(&path)?;
        let path = PathBuf::from(format!("/proc/self/fd/{}", readable.as_raw_fd()));
        Ok((readable, path))
    }
}
