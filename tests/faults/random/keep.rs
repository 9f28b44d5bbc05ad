//! What is left of a seed that failed: its plan, the verdict, and the ends of all logs.

use crate::deployment::Deployment;
use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// Folders kept of one run, and bytes of each log.
const FOLDERS: usize = 40;
const LOG: u64 = 4 << 20;

pub struct Shelf(PathBuf);

impl Shelf {
    /// The folder that `CARRICK_FAULTS_KEPT` names, else one beside the tests' other files.
    pub fn open() -> Self {
        let named = std::env::var_os("CARRICK_FAULTS_KEPT").map(PathBuf::from);
        Self(named.unwrap_or_else(|| Path::new(env!("CARGO_TARGET_TMPDIR")).join("random")))
    }

    /// Keeps everything under this name, and answers with where it lies; nothing once there are too many.
    pub fn keep(&self, name: &str, texts: &[(&str, &str)], deployment: Option<&Deployment>) -> Option<PathBuf> {
        let folders = fs::read_dir(&self.0).map_or(0, Iterator::count);
        if folders >= FOLDERS {
            eprintln!("{} holds {folders} failed seeds: no more are kept, empty it", self.0.display());
            return None;
        }
        let folder = self.0.join(name);
        let kept = (|| {
            fs::create_dir_all(&folder)?;
            for (name, text) in texts {
                fs::write(folder.join(name), text)?;
            }
            for (name, path) in deployment.map(Deployment::logs).unwrap_or_default() {
                fs::write(folder.join(name), end_of(&path)?)?;
            }
            Ok::<_, std::io::Error>(())
        })();
        if let Err(error) = kept {
            eprintln!("{}: not everything is kept: {error}", folder.display());
        }
        Some(folder)
    }
}

fn end_of(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut file = fs::File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LOG)))?;
    let mut end = Vec::new();
    file.take(LOG).read_to_end(&mut end)?;
    Ok(end)
}
