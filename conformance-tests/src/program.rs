//! The subject's executable, which a case replaces, breaks and takes away.

use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::{PoisonError, RwLock};

use nix::sys::fanotify::{EventFFlags, Fanotify, InitFlags, MarkFlags, MaskFlags};

use crate::{Doing, Failure, Need};

/// Held for reading while a process is started and for writing while an
/// executable is written. A descriptor open for writing would otherwise be
/// inherited, for the moment between fork and exec, by another case's subject,
/// and make ours "text file busy".
pub(crate) static STARTING: RwLock<()> = RwLock::new(());

/// Starts a process that is no subject while cases run.
///
/// # Errors
///
/// If it cannot be started.
pub fn start_beside(command: &mut Command) -> io::Result<Child> {
    let _starting = STARTING.read().unwrap_or_else(PoisonError::into_inner);
    command.spawn()
}

/// Closes what another case's subject could be left with for a moment, see [`STARTING`].
pub(crate) fn close_for_all(owned: impl Sized) {
    let _starting = STARTING.write().unwrap_or_else(PoisonError::into_inner);
    drop(owned);
}

/// Held for reading from the start of a process until it is held by a descriptor, and for writing
/// while dead ones are buried: one that has ended at once would be gone by then, and its number
/// with it.
pub(crate) static BURYING: RwLock<()> = RwLock::new(());

/// An executable file in a case's folder.
///
/// A copy of the test binary and not a link to it, so that a case may do to it
/// what would break the others'. Whatever changes it puts a new file in its
/// place, as an upgrade does: the subject runs from the old one.
#[derive(Clone, Debug)]
pub struct Program {
    path: PathBuf,
}

/// Holds up whoever executes a program, as a file system does that does not answer, until it is
/// dropped.
#[derive(Debug)]
#[must_use = "it goes on when this is dropped"]
pub struct HeldUp {
    // Nobody reads the kernel's questions. When this is closed all of them are answered with yes.
    _questions: Fanotify,
}

impl HeldUp {
    pub(crate) const NEED: Need = Need {
        what: "the right to hold up an exec (root), and a kernel with fanotify permissions",
        is_met: || Self::at(Path::new("/")).is_ok(),
    };

    fn at(path: &Path) -> Result<Self, Failure> {
        let flags = InitFlags::FAN_CLASS_CONTENT | InitFlags::FAN_CLOEXEC;
        let questions = Fanotify::init(flags, EventFFlags::O_CLOEXEC)?;
        let (add, exec) = (MarkFlags::FAN_MARK_ADD, MaskFlags::FAN_OPEN_EXEC_PERM);
        questions.mark(add, exec, rustix::fs::CWD, Some(path))?;
        Ok(Self { _questions: questions })
    }
}

/// Keeps a program from being executed, until it is dropped.
#[derive(Debug)]
#[must_use = "the program can be executed again when this is dropped"]
pub struct Busy {
    file: Option<File>,
}

impl Program {
    /// The running test binary at `path`: a new version that is no different.
    pub(crate) fn install(path: PathBuf) -> Result<Self, Failure> {
        let program = Self { path };
        program.replace()?;
        Ok(program)
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Holds up whoever executes it from now on.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub fn hold_up(&self) -> Result<HeldUp, Failure> {
        HeldUp::at(&self.path)
    }

    /// Renames a new file with the same content over it.
    ///
    /// # Errors
    ///
    /// If the file system refuses.
    pub fn replace(&self) -> Result<(), Failure> {
        let _starting = STARTING.write().unwrap_or_else(PoisonError::into_inner);
        let new = self.beside("new");
        fs::copy("/proc/self/exe", &new).doing("copying the test binary")?;
        fs::rename(&new, &self.path).doing("replacing the program")
    }

    /// Renames a file of that content and mode over it.
    ///
    /// # Errors
    ///
    /// If the file system refuses.
    pub fn replace_with(&self, content: &[u8], mode: u32) -> Result<(), Failure> {
        let _starting = STARTING.write().unwrap_or_else(PoisonError::into_inner);
        let new = self.beside("new");
        let mut file = File::create(&new).doing("creating a program")?;
        file.write_all(content).doing("writing a program")?;
        file.set_permissions(Permissions::from_mode(mode)).doing("setting a program's mode")?;
        drop(file);
        fs::rename(&new, &self.path).doing("replacing the program")
    }

    /// Takes the right to execute from it.
    ///
    /// # Errors
    ///
    /// If the file system refuses.
    pub fn make_not_executable(&self) -> Result<(), Failure> {
        self.replace()?;
        let mode = Permissions::from_mode(0o644);
        fs::set_permissions(&self.path, mode).doing("setting the program's mode")
    }

    /// Keeps a new file in its place open for writing: it cannot be executed
    /// ("text file busy") until the result is dropped.
    ///
    /// # Errors
    ///
    /// If the file system refuses.
    pub fn make_busy(&self) -> Result<Busy, Failure> {
        self.replace()?;
        let file = File::options().append(true).open(&self.path);
        Ok(Busy { file: Some(file.doing("opening the program for writing")?) })
    }

    /// Puts a folder in its place.
    ///
    /// # Errors
    ///
    /// If the file system refuses.
    pub fn make_directory(&self) -> Result<(), Failure> {
        self.remove()?;
        fs::create_dir(&self.path).doing("putting a folder in the program's place")
    }

    /// Removes it.
    ///
    /// # Errors
    ///
    /// If it is not there.
    pub fn remove(&self) -> Result<(), Failure> {
        fs::remove_file(&self.path).doing("removing the program")
    }

    /// Points a symbolic link at it, at once for whoever looks: the `current` of a release folder.
    ///
    /// # Errors
    ///
    /// If the file system refuses.
    pub fn link_at(&self, link: &Path) -> Result<(), Failure> {
        let new = link.with_extension("new");
        symlink(&self.path, &new).doing("linking to the program")?;
        fs::rename(&new, link).doing("replacing the link to the program")
    }

    fn beside(&self, suffix: &str) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(".");
        name.push(suffix);
        name.into()
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        // With no process between fork and exec, none has a copy of the descriptor.
        let _starting = STARTING.write().unwrap_or_else(PoisonError::into_inner);
        drop(self.file.take());
    }
}
