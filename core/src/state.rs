//! Application state that is handed over: typed, versioned, limited.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError, TryLockError};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};

/// State that a process hands to its successor: session-ticket keys, counters, a cache.
///
/// It is a copy. What must exist only once (a lock on a database) moves in the hooks around
/// [`Event::Commit`](crate::Event::Commit).
///
/// ```
/// struct Hits(u64);
///
/// impl handover_core::HandedOver for Hits {
///     const NAME: &'static str = "hits";
///     const VERSION: u32 = 1;
///     fn encode(&self) -> Vec<u8> {
///         self.0.to_le_bytes().to_vec()
///     }
///     fn decode(version: u32, bytes: &[u8]) -> Option<Self> {
///         (version == 1).then_some(Hits(u64::from_le_bytes(bytes.try_into().ok()?)))
///     }
/// }
/// ```
pub trait HandedOver: Sized {
    /// What it is called, on both sides.
    const NAME: &'static str;
    /// The version that [`encode`](Self::encode) writes.
    const VERSION: u32;
    /// Its bytes.
    fn encode(&self) -> Vec<u8>;
    /// The state in these bytes of this version, or `None` if it does not know the version or they
    /// make no sense: the new process then starts cold.
    fn decode(version: u32, bytes: &[u8]) -> Option<Self>;
}

/// A name, the version that is written, and who writes it.
type Provider = (&'static str, u32, Box<dyn FnMut() -> Vec<u8> + Send>);

/// Who provides which state. Called on a thread of its own, never while the gate is closed.
#[derive(Clone, Default)]
pub(crate) struct Providers(Arc<Mutex<Vec<Provider>>>);

impl Providers {
    pub(crate) fn add<T: HandedOver>(&self, mut provide: impl FnMut() -> T + Send + 'static) {
        let mut providers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        providers.retain(|(name, ..)| *name != T::NAME);
        providers.push((T::NAME, T::VERSION, Box::new(move || provide().encode())));
    }

    /// Never waits: the driver asks.
    pub(crate) fn is_empty(&self) -> bool {
        match self.0.try_lock() {
            Ok(providers) => providers.is_empty(),
            Err(TryLockError::Poisoned(error)) => error.into_inner().is_empty(),
            Err(TryLockError::WouldBlock) => false,
        }
    }

    /// The state as it is now, in a sealed memory file; `None` if there are no providers.
    ///
    /// # Errors
    /// More than `limit` bytes, a provider that was asked for an earlier restart and has not
    /// answered, or the system calls'.
    pub(crate) fn seal(&self, limit: usize) -> io::Result<Option<OwnedFd>> {
        let mut providers = match self.0.try_lock() {
            Ok(providers) => providers,
            Err(TryLockError::Poisoned(error)) => error.into_inner(),
            Err(TryLockError::WouldBlock) => {
                let message = "a provider has not come back yet from an earlier restart";
                return Err(io::Error::new(io::ErrorKind::ResourceBusy, message));
            }
        };
        if providers.is_empty() {
            return Ok(None);
        }
        let mut bytes = Vec::new();
        for (name, version, provide) in providers.iter_mut() {
            let state = provide();
            if bytes.len() + state.len() > limit {
                return Err(io::Error::other(format!(
                    "application state `{name}`: together more than the limit of {limit} bytes"
                )));
            }
            bytes.extend_from_slice(&(name.len() as u32).to_le_bytes());
            bytes.extend_from_slice(&version.to_le_bytes());
            bytes.extend_from_slice(&(state.len() as u64).to_le_bytes());
            bytes.extend_from_slice(name.as_bytes());
            bytes.extend_from_slice(&state);
        }
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let mut file = File::from(memfd_create("handover-state", flags)?);
        file.write_all(&bytes)?;
        let seals = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
        fcntl_add_seals(&file, seals)?;
        Ok(Some(file.into()))
    }
}

/// State that was handed to this process.
#[derive(Debug, Default)]
pub(crate) struct Inherited(HashMap<String, (u32, Vec<u8>)>);

impl Inherited {
    /// # Errors
    /// The file's, or a content that is not what [`Providers::seal`] writes.
    pub(crate) fn read(file: OwnedFd) -> io::Result<Self> {
        let mut file = File::from(file);
        let mut bytes = Vec::new();
        // The offset is the sender's too.
        file.rewind()?;
        file.read_to_end(&mut bytes)?;
        let states = parse(&bytes).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))?;
        Ok(Self(
            states.into_iter().map(|(name, version, state)| (name, (version, state))).collect(),
        ))
    }

    pub(crate) fn get<T: HandedOver>(&self) -> Option<T> {
        let (version, bytes) = self.0.get(T::NAME)?;
        let state = T::decode(*version, bytes);
        if state.is_none() {
            tracing::info!(name = T::NAME, version, "application state not understood: cold start");
        }
        state
    }
}

/// A name, a version, and the bytes.
type State = (String, u32, Vec<u8>);

/// The states in the bytes that [`Providers::seal`] writes, or `None` if they are anything else.
pub(crate) fn parse(bytes: &[u8]) -> Option<Vec<State>> {
    let mut rest = bytes;
    let mut states = Vec::new();
    while !rest.is_empty() {
        states.push(take(&mut rest)?);
    }
    Some(states)
}

fn take(rest: &mut &[u8]) -> Option<State> {
    let (head, tail) = rest.split_at_checked(16)?;
    let name = usize::try_from(u32::from_le_bytes(head[0..4].try_into().ok()?)).ok()?;
    let version = u32::from_le_bytes(head[4..8].try_into().ok()?);
    let length = usize::try_from(u64::from_le_bytes(head[8..16].try_into().ok()?)).ok()?;
    let (name, tail) = tail.split_at_checked(name)?;
    let (state, tail) = tail.split_at_checked(length)?;
    *rest = tail;
    Some((String::from_utf8(name.to_vec()).ok()?, version, state.to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Blob(Vec<u8>);

    impl HandedOver for Blob {
        const NAME: &'static str = "blob";
        const VERSION: u32 = 3;
        fn encode(&self) -> Vec<u8> {
            self.0.clone()
        }
        fn decode(version: u32, bytes: &[u8]) -> Option<Self> {
            (version == 3).then(|| Blob(bytes.to_vec()))
        }
    }

    #[test]
    fn state_crosses_and_the_limit_holds() {
        let providers = Providers::default();
        assert!(providers.seal(0).unwrap().is_none());
        for size in [0, 1 << 20] {
            providers.add(move || Blob(vec![7; size]));
            let file = providers.seal(1 << 20).unwrap().unwrap();
            let read = Inherited::read(file).unwrap().get::<Blob>().unwrap();
            assert_eq!(read.0, vec![7; size]);
        }
        let error = providers.seal((1 << 20) - 1).unwrap_err().to_string();
        assert!(error.contains("`blob`"), "{error}");
    }
}
