//! Files and directories that only their owner may read.

use std::{
    fs::{self, DirBuilder, File, Permissions},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::Path,
};

/// Makes the directory, 0700, and closes one that is open to others.
pub(crate) fn create_private_dir(path: &Path) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    match DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => restrict(path, 0o700),
        Err(error) => Err(error),
    }
}

/// Whether others than the owner may do anything with it.
pub(crate) fn is_open_to_others(path: &Path) -> io::Result<bool> {
    Ok(fs::metadata(path)?.permissions().mode() & 0o077 != 0)
}

/// Whether others than root and this user may change the file, or put another in its place.
pub(crate) fn is_others_to_write(file: &File, path: &Path) -> io::Result<bool> {
    let target = fs::canonicalize(path)?;
    let mut is_open = is_others(&file.metadata()?);
    for path in [path, &target] {
        let directory = path.parent().filter(|directory| !directory.as_os_str().is_empty());
        let found = fs::metadata(directory.unwrap_or(Path::new(".")))?;
        // With the sticky bit, only the owner of a file can put another in its place.
        is_open |= is_others(&found) && found.permissions().mode() & 0o1000 == 0;
    }
    Ok(is_open)
}

fn is_others(found: &fs::Metadata) -> bool {
    let is_ours = [0, nix::unistd::geteuid().as_raw()].contains(&found.uid());
    !is_ours || found.permissions().mode() & 0o022 != 0
}

/// Whether there is such a file, and this user made it.
pub(crate) fn is_own_file(path: &Path) -> io::Result<bool> {
    match fs::symlink_metadata(path) {
        Ok(found) => Ok(found.is_file() && found.uid() == nix::unistd::geteuid().as_raw()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Opens a file for writing, empty, 0600.
pub(crate) fn create_private_file(path: &Path) -> io::Result<File> {
    let file = File::options().create(true).truncate(true).write(true).mode(0o600).open(path)?;
    file.set_permissions(Permissions::from_mode(0o600))?;
    Ok(file)
}

/// Makes a file for writing, 0600, where there is nothing, not even a link.
pub(crate) fn create_new_private_file(path: &Path) -> io::Result<File> {
    File::options().create_new(true).write(true).mode(0o600).open(path)
}

/// Takes a file's permissions from everybody but the owner.
pub(crate) fn make_private(path: &Path) -> io::Result<()> {
    restrict(path, 0o600)
}

fn restrict(path: &Path, mode: u32) -> io::Result<()> {
    match fs::metadata(path)?.permissions().mode() & 0o777 {
        found if found & !mode != 0 => fs::set_permissions(path, Permissions::from_mode(mode)),
        _ => Ok(()),
    }
}
