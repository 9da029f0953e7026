//! What a case wants its subject to do.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::fs;
use std::path::Path;
use std::str::FromStr;

use crate::lines::{read_line, write_line};
use crate::{Doing, Failure};

/// Named values that a case writes into a file and each generation reads at its start.
///
/// A file and not arguments or the environment: those are inherited by the
/// successor, and a new version must be able to behave unlike the old one. A case
/// rewrites the scenario before a restart as it would replace the binary.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scenario {
    values: BTreeMap<String, String>,
}

impl Scenario {
    /// A scenario without any values.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The same with `key` set.
    #[must_use]
    pub fn with(mut self, key: &str, value: impl Display) -> Self {
        self.values.insert(key.into(), value.to_string());
        self
    }

    /// The text of `key`, if the case has set it.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&str> {
        self.values.get(key).map(String::as_str)
    }

    /// Whether `key` is set to `true`.
    #[must_use]
    pub fn is_set(&self, key: &str) -> bool {
        self.get(key) == Some("true")
    }

    /// The value of `key`, or `default` where the case has not set it.
    ///
    /// # Errors
    ///
    /// If there is a text that is no such value: a typing mistake in a case must
    /// not look like a default.
    pub fn value<T: FromStr>(&self, key: &str, default: T) -> Result<T, Failure> {
        match self.get(key) {
            None => Ok(default),
            Some(text) => text.parse().map_err(|_| {
                Failure::new(format!("scenario: {key}={text} is no {}", std::any::type_name::<T>()))
            }),
        }
    }

    pub(crate) fn load(path: &Path) -> Result<Self, Failure> {
        let text = fs::read_to_string(path).doing("reading the scenario")?;
        Ok(Self { values: read_line(&text).1 })
    }

    /// Replaces the file as a whole, since a generation may be reading it.
    pub(crate) fn save(&self, path: &Path) -> Result<(), Failure> {
        let fields = self.values.iter().map(|(key, value)| (key.as_str(), value.clone()));
        let new = path.with_extension("new");
        fs::write(&new, write_line("scenario", fields)).doing("writing the scenario")?;
        fs::rename(&new, path).doing("replacing the scenario")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_as_their_type_or_refused() {
        let scenario = Scenario::new().with("ms", 5).with("fast", true);
        assert_eq!(scenario.value("ms", 7).unwrap(), 5);
        assert_eq!(scenario.value("other", 7).unwrap(), 7);
        assert!(scenario.value("fast", 7).is_err());
        assert!(scenario.is_set("fast") && !scenario.is_set("ms"));
    }
}
