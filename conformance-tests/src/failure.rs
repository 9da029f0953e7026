//! Why a case failed.

use std::error::Error;
use std::{fmt, io};

/// What a case found wrong, in words for whoever reads the run's output.
#[derive(Debug)]
pub struct Failure {
    message: String,
}

impl Failure {
    /// A failure that says `message`.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into() }
    }

    /// The same failure, with what was being done in front of it.
    #[must_use]
    pub fn while_doing(self, what: impl fmt::Display) -> Self {
        Self { message: format!("{what}: {}", self.message) }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

// Every error turns into a failure, so that a case can use `?` on anything. This
// is why `Failure` itself must not implement `Error`.
impl<E: Error> From<E> for Failure {
    fn from(error: E) -> Self {
        let mut message = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            message.push_str(": ");
            message.push_str(&cause.to_string());
            source = cause.source();
        }
        Self { message }
    }
}

/// Says what was being done when an operation failed.
pub trait Doing<T> {
    /// Puts `what` in front of the error's own message.
    ///
    /// # Errors
    ///
    /// The error that this was called on.
    fn doing(self, what: impl fmt::Display) -> Result<T, Failure>;
}

impl<T> Doing<T> for io::Result<T> {
    fn doing(self, what: impl fmt::Display) -> Result<T, Failure> {
        self.map_err(|error| Failure::from(error).while_doing(what))
    }
}

impl<T> Doing<T> for rustix::io::Result<T> {
    fn doing(self, what: impl fmt::Display) -> Result<T, Failure> {
        self.map_err(|error| Failure::from(error).while_doing(what))
    }
}

/// Ends the case with a [`Failure`] unless the condition holds.
///
/// A case is not made of `assert!`, because a panic is printed at once, in the
/// middle of other cases' output, and without the case's timeline.
#[macro_export]
macro_rules! ensure {
    ($condition:expr, $($message:tt)+) => {
        if !$condition {
            return Err($crate::Failure::new(format!($($message)+)));
        }
    };
}
