use std::fmt;
use std::io;

/// What went wrong, for programs. The message of the [`Error`] is for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A socket could not be bound, or a descriptor not made.
    Bind,
    /// A name was asked for twice, or with another kind or address than it has.
    Claim,
    /// What the environment or the predecessor left is not usable.
    Inherit,
    /// The handover socket carried something that the protocol does not allow.
    Protocol,
    /// This process was to take over and must not: its predecessor told it so, is gone with
    /// somebody else as the owner, or did not answer in time. It has accepted nothing.
    GaveUp,
    /// A policy that contradicts itself.
    Policy,
    /// The runtime refused a timer, a signal or a registration.
    Runtime,
    /// A hook returned an error.
    Hook,
    /// The user's server ended with an error.
    Server,
    /// A system call failed that has no better place here.
    Os,
}

/// An error of Handover: a kind, a message that names the operation and its subject, and the
/// operating system's error as [`source`](std::error::Error::source) where there is one.
///
/// It converts into [`io::Error`], so that `?` works in a `main` that returns one.
pub struct Error {
    kind: ErrorKind,
    message: String,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// An error with a message of the form ``operation `subject`: what is wrong``.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), source: None }
    }

    /// The same, with the error that caused it.
    pub fn with_source(
        kind: ErrorKind,
        message: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self { kind, message: message.into(), source: Some(source.into()) }
    }

    /// The class of the error.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The operating system's error code at the root of this error, if there is one.
    pub fn raw_os_error(&self) -> Option<i32> {
        let mut source = std::error::Error::source(self);
        while let Some(error) = source {
            if let Some(io) = error.downcast_ref::<io::Error>() {
                return io.raw_os_error();
            }
            source = error.source();
        }
        None
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // `main` returning an error prints it with `Debug`: let that be readable.
        write!(f, "{self}")
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.source {
            Some(source) => write!(f, "{}: {source}", self.message),
            None => f.write_str(&self.message),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        match error.raw_os_error() {
            Some(code) => io::Error::new(io::Error::from_raw_os_error(code).kind(), error),
            None => io::Error::other(error),
        }
    }
}

/// A result with Handover's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;
