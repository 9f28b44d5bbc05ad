//! The directories above a store: whoever may rename what is in one of them can put another store in the place of ours.
//!
//! In a directory with the sticky bit, as `/tmp`, only the owners of an entry and of the directory may. A group that may
//! write is trusted with the data, as in the store itself. What everybody may write to is refused, unless it is where a
//! file system is mounted: volumes of containers are made so, and nobody else is there.

use super::EmbeddedError;
use crate::nats::private::me;
use std::collections::BTreeMap;
use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Mode bits: others may write; entries belong to their owners alone.
const OTHERS_WRITE: u32 = 0o002;
const STICKY: u32 = 0o1000;

/// What a directory is to those below it.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Safe,
    /// Another user can swap what is in it. He may be somebody who is trusted.
    BelongsTo(u32),
    /// Everybody can, who is there.
    OpenVolume,
    Open,
}

fn verdict(owner: u32, mode: u32, is_mounted: bool, me: u32) -> Verdict {
    let is_open = mode & OTHERS_WRITE != 0 && mode & STICKY == 0;
    match () {
        () if is_open && is_mounted => Verdict::OpenVolume,
        () if is_open => Verdict::Open,
        () if owner != me && owner != 0 => Verdict::BelongsTo(owner),
        () => Verdict::Safe,
    }
}

/// Looks at everything above the store, which exists. Refused is what cannot be meant; the answer is what should be told of.
pub(super) fn check(store: &Path) -> Result<Vec<String>, EmbeddedError> {
    let failed = EmbeddedError::store(store, "looking at what is above it");
    let mut warnings = Vec::new();
    for (path, about) in above(store).map_err(failed)? {
        let shown = path.display();
        if about.is_symlink() {
            if about.uid() != me() && about.uid() != 0 {
                warnings.push(format!("user {} can turn the link {shown} elsewhere", about.uid()));
            }
            continue;
        }
        match verdict(about.uid(), about.mode(), is_mounted(&path, &about), me()) {
            Verdict::Safe => {}
            Verdict::BelongsTo(owner) => warnings.push(format!("{shown} belongs to user {owner}")),
            Verdict::OpenVolume => warnings.push(format!("everybody may write to {shown} (chmod o-w {shown})")),
            Verdict::Open => {
                return Err(EmbeddedError::Unsafe {
                    path: store.to_owned(),
                    why: format!("everybody may write to {shown} above it, and put another store in its place"),
                    cure: format!(
                        "take that away (chmod o-w {shown}), let entries belong to their owners alone (chmod +t {shown}), \
                         or choose a directory elsewhere"
                    ),
                });
            }
        }
    }
    Ok(warnings)
}

/// Links on the way to one place; the kernel follows no more either.
const MOST_LINKS: usize = 40;

/// All that decides where the store's name leads: each directory on the way, link by link, and the links themselves.
fn above(store: &Path) -> io::Result<Vec<(PathBuf, Metadata)>> {
    // What is still to be gone, last step first. `absolute` leaves `..` as it is.
    let steps = |path: &Path| path.components().rev().map(|step| step.as_os_str().to_owned()).collect::<Vec<_>>();
    let mut ahead = steps(&std::path::absolute(store)?);
    let (mut here, mut links) = (PathBuf::new(), 0);
    let mut found = BTreeMap::new();
    while let Some(step) = ahead.pop() {
        if step == ".." {
            here.pop();
            continue;
        }
        // The root replaces where we are.
        let next = here.join(step);
        let about = std::fs::symlink_metadata(&next)?;
        if about.is_symlink() {
            links += 1;
            if links > MOST_LINKS {
                return Err(rustix::io::Errno::LOOP.into());
            }
            ahead.extend(steps(&std::fs::read_link(&next)?));
        } else {
            here.clone_from(&next);
        }
        found.insert(next, about);
    }
    // The store itself is looked at elsewhere.
    found.remove(&here);
    Ok(found.into_iter().collect())
}

fn is_mounted(path: &Path, about: &Metadata) -> bool {
    let above = path.parent().and_then(|parent| std::fs::metadata(parent).ok());
    above.is_some_and(|above| above.dev() != about.dev())
}

#[cfg(test)]
mod tests {
    use super::super::own::prepare_store;
    use super::*;
    use crate::nats::test_files::{given_away, set};
    use std::os::unix::fs::symlink;

    #[test]
    fn row_22_a_volume_of_a_container_is_told_of_and_a_shared_directory_is_refused() {
        const ME: u32 = 1_000;
        for (owner, mode, is_mounted, expected) in [
            (0, 0o755, false, Verdict::Safe),
            (ME, 0o700, false, Verdict::Safe),
            (0, 0o1777, false, Verdict::Safe),
            (0, 0o2775, true, Verdict::Safe),
            (0, 0o777, true, Verdict::OpenVolume),
            (0, 0o777, false, Verdict::Open),
            (ME, 0o757, false, Verdict::Open),
            (1_001, 0o755, false, Verdict::BelongsTo(1_001)),
            (1_001, 0o1777, false, Verdict::BelongsTo(1_001)),
        ] {
            assert_eq!(verdict(owner, mode, is_mounted, ME), expected, "{owner} {mode:o} {is_mounted}");
        }
    }

    #[test]
    fn links_that_lead_nowhere_end() {
        let place = tempfile::tempdir().unwrap();
        symlink("b", place.path().join("a")).unwrap();
        symlink("a", place.path().join("b")).unwrap();
        let error = above(&place.path().join("a/store")).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::LOOP.raw_os_error()), "{error}");
    }

    #[test]
    fn row_22_a_store_that_others_can_swap_is_refused_with_the_cure() {
        let place = tempfile::tempdir().unwrap();
        let shared = place.path().join("common");
        let store = shared.join("deep/store");
        prepare_store(&store).unwrap();
        for open in [0o777, 0o757] {
            set(&shared, open);
            let said = prepare_store(&store).unwrap_err().to_string();
            let cure = format!("chmod o-w {}", shared.display());
            assert!(said.contains("everybody may write to") && said.contains(&cure), "{said}");
        }
        // As it is named, too, wherever a link leads.
        let (elsewhere, link) = (place.path().join("elsewhere"), shared.join("link"));
        std::fs::create_dir(&elsewhere).unwrap();
        set(&elsewhere, 0o700);
        symlink(&elsewhere, &link).unwrap();
        assert!(prepare_store(&link).is_err(), "everybody can turn the link");
        for safe in [0o1777, 0o775, 0o755] {
            set(&shared, safe);
            prepare_store(&store).unwrap();
            prepare_store(&link).unwrap();
        }
        assert_eq!(check(&store).unwrap(), [] as [String; 0]);
        // And what lies between: a link that leads to a link in a directory of everybody.
        let (named, between) = (place.path().join("named"), place.path().join("between"));
        std::fs::create_dir(&between).unwrap();
        set(&between, 0o777);
        symlink("../common/deep/../deep/store", between.join("link")).unwrap();
        symlink("between/./link", &named).unwrap();
        let said = prepare_store(&named).unwrap_err().to_string();
        assert!(said.contains(&format!("chmod o-w {}", between.display())), "{said}");
        set(&between, 0o755);
        prepare_store(&named).unwrap();
        let inside = above(&named).unwrap().into_iter().map(|(path, _)| path).collect::<Vec<_>>();
        for on_the_way in [&named, &between, &between.join("link"), &shared, &shared.join("deep")] {
            assert!(inside.contains(on_the_way), "{} in {inside:?}", on_the_way.display());
        }
        assert!(!inside.contains(&store), "the store itself is looked at elsewhere");
        if given_away(&shared) {
            assert_eq!(check(&store).unwrap(), [format!("{} belongs to user 12345", shared.display())]);
        }
    }
}
