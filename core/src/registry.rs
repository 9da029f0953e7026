//! Everything that a successor may inherit, by name.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::bind::SocketFile;
use crate::descriptor::{Address, Kind, describe};
use crate::drain::Drain;
use crate::error::{Error, ErrorKind, Result};
use crate::gate::{Gate, Gated, Source};
use crate::in_flight::InFlight;
use crate::protocol::frame::{self, is_name};

/// A named socket on its way into a runtime's type. See [`Sockets`](crate::Sockets).
///
/// Turn it into a [`Gated`], which keeps the socket for a successor.
#[must_use = "the socket is not served until it has become a `Gated`"]
pub struct Claim {
    registry: Arc<Registry>,
    id: u64,
    socket: OwnedFd,
}

impl<S: Source> From<Claim> for Gated<S> {
    fn from(claim: Claim) -> Self {
        let Claim { registry, id, socket } = claim;
        let mut inner = registry.lock();
        let open = inner.open;
        let kind = inner.entry(id).map_or(Kind::Other, |entry| entry.kind);
        let gated =
            Gated::new(socket, kind, Arc::clone(&registry.in_flight), registry.drain.clone(), open);
        if let Some(entry) = inner.entry(id) {
            entry.holder = Holder::Gate(Arc::new(gated.clone()));
        }
        gated
    }
}

/// Where a descriptor came from, as the program may want to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Origin {
    /// From the predecessor.
    Inherited,
    /// From the service manager.
    Activated,
    /// Made by this process.
    Bound,
}

pub(crate) struct Registry {
    inner: Mutex<Inner>,
    pub(crate) in_flight: Arc<InFlight>,
    drain: Drain,
}

#[derive(Default)]
struct Inner {
    /// Whether this process owns the listeners, so that new ones accept at once.
    open: bool,
    next: u64,
    entries: Vec<Entry>,
    /// What was left for this process, in the order in which it came.
    inherited: Vec<Inherited>,
    /// The last error of a claim: the reason, if the program gives up because of it.
    refusal: Option<String>,
}

struct Entry {
    id: u64,
    name: String,
    index: u16,
    kind: Kind,
    address: Address,
    origin: Origin,
    activated: bool,
    file: Option<SocketFile>,
    holder: Holder,
    /// Whether the present successor claimed it.
    claimed: bool,
}

enum Holder {
    Gate(Arc<dyn Gate>),
    Shared(Arc<OwnedFd>),
    /// Being wrapped.
    Claim,
}

/// A descriptor that somebody left for this process.
pub(crate) struct Inherited {
    pub(crate) name: String,
    pub(crate) index: u16,
    pub(crate) kind: Kind,
    pub(crate) address: Address,
    pub(crate) activated: bool,
    pub(crate) file: Option<SocketFile>,
    pub(crate) descriptor: Option<OwnedFd>,
    pub(crate) fate: Fate,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// Not asked for.
    Unasked,
    Claimed,
    /// Asked for with another address.
    Unwanted,
}

/// What is wanted under a name.
pub(crate) struct Wanted<'a> {
    pub(crate) name: &'a str,
    pub(crate) count: usize,
    pub(crate) kind: Kind,
    /// Any of these will do; none at all means that the address does not matter.
    pub(crate) addresses: &'a [Address],
}

/// One entry of an offer.
pub(crate) type Offered = (frame::Entry, Arc<OwnedFd>);

/// A descriptor just made, with the file that it is bound to.
pub(crate) type Made = (OwnedFd, Option<SocketFile>);

impl Registry {
    pub(crate) fn new(inherited: Vec<Inherited>, drain: Drain) -> Self {
        let inner = Inner { inherited, ..Inner::default() };
        Self { inner: Mutex::new(inner), in_flight: Arc::default(), drain }
    }

    /// Sockets for a listener type: those that were left for this process, or new ones.
    pub(crate) fn claim(
        self: &Arc<Self>,
        wanted: &Wanted<'_>,
        make: impl FnMut() -> Result<Made>,
    ) -> Result<Vec<Claim>> {
        let sockets = self.acquire(wanted, make)?;
        Ok(sockets
            .into_iter()
            .map(|(id, socket)| Claim { registry: Arc::clone(self), id, socket })
            .collect())
    }

    /// The same for descriptors that no gate guards: the registry keeps one, the caller gets a
    /// copy.
    pub(crate) fn share(
        self: &Arc<Self>,
        wanted: &Wanted<'_>,
        make: impl FnMut() -> Result<Made>,
    ) -> Result<OwnedFd> {
        let name = wanted.name;
        let lost = || Error::new(ErrorKind::Claim, format!("claim `{name}`: nothing was made"));
        let (id, kept) = self.acquire(wanted, make)?.pop().ok_or_else(lost)?;
        let copy = kept.try_clone().map_err(|error| {
            self.lock().entries.retain(|entry| entry.id != id);
            Error::with_source(ErrorKind::Os, format!("copy `{name}`"), error)
        })?;
        if let Some(entry) = self.lock().entry(id) {
            entry.holder = Holder::Shared(Arc::new(kept));
        }
        Ok(copy)
    }

    fn acquire(
        &self,
        wanted: &Wanted<'_>,
        make: impl FnMut() -> Result<Made>,
    ) -> Result<Vec<(u64, OwnedFd)>> {
        let acquired = self.try_acquire(wanted, make);
        if let Err(error) = &acquired {
            self.lock().refusal = Some(error.to_string());
        }
        acquired
    }

    fn try_acquire(
        &self,
        wanted: &Wanted<'_>,
        mut make: impl FnMut() -> Result<Made>,
    ) -> Result<Vec<(u64, OwnedFd)>> {
        let Wanted { name, count, kind, .. } = *wanted;
        let refused =
            |why: String| Err(Error::new(ErrorKind::Claim, format!("claim `{name}`: {why}")));
        if !is_name(name) {
            return refused("a name has 1 to 64 bytes and no control characters".into());
        }
        let mut inner = self.lock();
        inner.prune();
        if inner.entries.iter().any(|entry| entry.name == name && entry.is_kept()) {
            return refused("the name is in use already".into());
        }
        let offered = inner.offered(wanted);
        if let Some(&first) = offered.first() {
            let have = inner.inherited[first].kind;
            if have != kind {
                return refused(format!("what was inherited is {have}, not {kind}"));
            }
            if offered.len() != count {
                let have = offered.len();
                return refused(format!(
                    "{have} sockets were inherited and {count} are asked for: a group cannot \
                     change its size in a restart without losing what is queued"
                ));
            }
            return Ok(offered.into_iter().filter_map(|at| inner.take(at, name)).collect());
        }
        // An inherited socket of this name at another address is not wanted any more.
        for inherited in &mut inner.inherited {
            if inherited.name == name && inherited.fate == Fate::Unasked {
                inherited.fate = Fate::Unwanted;
                inherited.descriptor = None;
            }
        }
        drop(inner);
        let mut made = Vec::with_capacity(count);
        for _ in 0..count {
            made.push(make()?);
        }
        let mut inner = self.lock();
        if inner.entries.iter().any(|entry| entry.name == name && entry.is_kept()) {
            return refused("the name is in use already".into());
        }
        let mut sockets = Vec::with_capacity(count);
        for (index, (socket, file)) in made.into_iter().enumerate() {
            let (_, address) = describe(socket.as_fd()).map_err(|error| {
                Error::with_source(ErrorKind::Os, format!("look at `{name}`"), error)
            })?;
            let entry = Entry {
                id: 0,
                name: name.to_owned(),
                index: index as u16,
                kind,
                address,
                origin: Origin::Bound,
                activated: false,
                file,
                holder: Holder::Claim,
                claimed: false,
            };
            sockets.push((inner.add(entry), socket));
        }
        Ok(sockets)
    }

    // For the successor's side of the protocol.

    /// The places of what was claimed and of what is unwanted, and the names bound anew. Closes
    /// this process's copies of everything else.
    pub(crate) fn claims(&self) -> (Vec<u16>, Vec<u16>, Vec<String>) {
        let mut inner = self.lock();
        let places = |inner: &Inner, fate| {
            let with = |(at, inherited): (usize, &Inherited)| {
                (inherited.fate == fate).then_some(at as u16)
            };
            inner.inherited.iter().enumerate().filter_map(with).collect()
        };
        let claimed = places(&inner, Fate::Claimed);
        let unwanted = places(&inner, Fate::Unwanted);
        let bound = inner.entries.iter().filter(|entry| entry.origin == Origin::Bound);
        let mut bound: Vec<_> = bound.map(|entry| entry.name.clone()).collect();
        bound.dedup();
        inner.inherited.clear();
        (claimed, unwanted, bound)
    }

    pub(crate) fn origin(&self, name: &str) -> Option<Origin> {
        self.lock().entries.iter().find(|entry| entry.name == name).map(|entry| entry.origin)
    }

    pub(crate) fn address(&self, name: &str) -> Option<Address> {
        let inner = self.lock();
        inner.entries.iter().find(|entry| entry.name == name).map(|entry| entry.address.clone())
    }

    /// Names that were left for this process and that it has not asked for.
    pub(crate) fn unclaimed(&self) -> Vec<String> {
        let inner = self.lock();
        let unasked = inner.inherited.iter().filter(|inherited| inherited.fate == Fate::Unasked);
        let mut names: Vec<_> = unasked.map(|inherited| inherited.name.clone()).collect();
        names.dedup();
        names
    }

    // For the predecessor's side.

    /// Everything there is to offer, and the numbers by which [`claimed`](Self::claimed) will know
    /// it.
    pub(crate) fn offer(&self) -> io::Result<(Vec<u64>, Vec<Offered>)> {
        let mut inner = self.lock();
        inner.prune();
        let mut ids = Vec::new();
        let mut offer = Vec::new();
        for entry in inner.entries.iter().filter(|entry| entry.is_kept()) {
            let descriptor = match &entry.holder {
                Holder::Gate(gate) => Arc::new(gate.duplicate()?),
                Holder::Shared(descriptor) => Arc::clone(descriptor),
                Holder::Claim => continue,
            };
            ids.push(entry.id);
            let file = entry.file.as_ref();
            offer.push((
                frame::Entry::Named {
                    name: entry.name.clone(),
                    index: entry.index,
                    kind: entry.kind,
                    address: entry.address.clone(),
                    activated: entry.activated,
                    file: file.map(|file| (file.dev, file.ino, file.path.clone())),
                },
                descriptor,
            ));
        }
        Ok((ids, offer))
    }

    /// Notes what the successor claimed: the names of that, and of what it did not claim.
    pub(crate) fn claimed(&self, ids: &[u64]) -> (Vec<String>, Vec<String>) {
        let mut inner = self.lock();
        let (mut claimed, mut dropped) = (Vec::new(), Vec::new());
        for entry in &mut inner.entries {
            entry.claimed = ids.contains(&entry.id);
            if entry.claimed { &mut claimed } else { &mut dropped }.push(entry.name.clone());
        }
        claimed.dedup();
        dropped.dedup();
        (claimed, dropped)
    }

    pub(crate) fn close_claimed(&self) {
        let mut inner = self.lock();
        inner.open = false;
        for entry in inner.entries.iter().filter(|entry| entry.claimed) {
            if let Holder::Gate(gate) = &entry.holder {
                gate.close();
            }
        }
    }

    pub(crate) fn open(&self) {
        let mut inner = self.lock();
        inner.open = true;
        for entry in &mut inner.entries {
            entry.claimed = false;
            if let Holder::Gate(gate) = &entry.holder {
                gate.open();
            }
        }
    }

    /// Closes what the successor claimed, and lets the rest serve what is queued.
    pub(crate) fn let_go(&self) {
        let mut inner = self.lock();
        inner.open = false;
        inner.entries.retain(|entry| !(entry.claimed && matches!(entry.holder, Holder::Shared(_))));
        for entry in &mut inner.entries {
            if entry.claimed {
                if let Holder::Gate(gate) = &entry.holder {
                    gate.let_go();
                }
            } else {
                entry.close_for_good();
            }
        }
    }

    /// The final stop: everything is closed, after what is queued has been served.
    pub(crate) fn close(&self) {
        let mut inner = self.lock();
        inner.open = false;
        inner.entries.iter_mut().for_each(Entry::close_for_good);
    }

    /// Gives one name up while serving; whether there was one.
    pub(crate) fn close_one(&self, name: &str) -> bool {
        let mut inner = self.lock();
        let mut found = false;
        for entry in inner.entries.iter_mut().filter(|entry| entry.name == name) {
            entry.close_for_good();
            found = true;
        }
        inner.prune();
        found
    }

    /// Whether nothing is about to be closed.
    pub(crate) fn is_settled(&self) -> bool {
        let inner = self.lock();
        inner.entries.iter().all(|entry| match &entry.holder {
            Holder::Gate(gate) => gate.is_kept() || gate.has_ended(),
            _ => true,
        })
    }

    /// Closes what has served its last connection; whether nothing is about to be closed any more.
    pub(crate) fn settle(&self) -> bool {
        let inner = self.lock();
        let gates = inner.entries.iter().filter_map(|entry| match &entry.holder {
            Holder::Gate(gate) => Some(gate),
            _ => None,
        });
        // Each is asked, also after one that is not done.
        gates.filter(|gate| !gate.settle()).count() == 0
    }

    pub(crate) fn last_refusal(&self) -> Option<String> {
        self.lock().refusal.take()
    }

    /// Closes every descriptor at once.
    pub(crate) fn end(&self) {
        let mut inner = self.lock();
        inner.open = false;
        inner.inherited.clear();
        for entry in inner.entries.drain(..) {
            if let Holder::Gate(gate) = &entry.holder {
                gate.end();
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn add(&mut self, mut entry: Entry) -> u64 {
        self.next += 1;
        entry.id = self.next;
        self.entries.push(entry);
        self.next
    }

    fn entry(&mut self, id: u64) -> Option<&mut Entry> {
        self.entries.iter_mut().find(|entry| entry.id == id)
    }

    /// The places of the inherited descriptors that are meant by a name, in the order of their
    /// index.
    fn offered(&self, wanted: &Wanted<'_>) -> Vec<usize> {
        let free = |inherited: &&(usize, &Inherited)| inherited.1.fate == Fate::Unasked;
        let all: Vec<(usize, &Inherited)> = self.inherited.iter().enumerate().collect();
        let mut named: Vec<_> = all
            .iter()
            .filter(free)
            .filter(|(_, inherited)| inherited.name == wanted.name)
            .collect();
        let activated = named.iter().all(|(_, inherited)| inherited.activated);
        if !named.is_empty() {
            named.sort_by_key(|(_, inherited)| inherited.index);
            // Whoever wrote the socket unit chose the address; another kind is a mistake to report.
            let fits = activated
                || named.iter().any(|(_, inherited)| inherited.kind != wanted.kind)
                || named.iter().all(|(_, inherited)| matches(&inherited.address, wanted.addresses));
            return if fits { named.iter().map(|(at, _)| *at).collect() } else { Vec::new() };
        }
        // A socket unit without names: the address tells which is meant.
        let by_address = all.iter().filter(free).filter(|(_, inherited)| {
            inherited.activated
                && inherited.kind == wanted.kind
                && !wanted.addresses.is_empty()
                && matches(&inherited.address, wanted.addresses)
        });
        by_address.map(|(at, _)| *at).take(wanted.count).collect()
    }

    fn take(&mut self, at: usize, name: &str) -> Option<(u64, OwnedFd)> {
        let inherited = &mut self.inherited[at];
        let socket = inherited.descriptor.take()?;
        inherited.fate = Fate::Claimed;
        let entry = Entry {
            id: 0,
            name: name.to_owned(),
            index: inherited.index,
            kind: inherited.kind,
            address: inherited.address.clone(),
            origin: if inherited.activated { Origin::Activated } else { Origin::Inherited },
            activated: inherited.activated,
            file: inherited.file.clone(),
            holder: Holder::Claim,
            claimed: false,
        };
        Some((self.add(entry), socket))
    }

    /// Forgets what has been closed.
    fn prune(&mut self) {
        self.entries.retain(|entry| match &entry.holder {
            Holder::Gate(gate) => !gate.has_ended(),
            _ => true,
        });
    }
}

impl Entry {
    fn is_kept(&self) -> bool {
        match &self.holder {
            Holder::Gate(gate) => gate.is_kept(),
            Holder::Shared(_) | Holder::Claim => true,
        }
    }

    fn close_for_good(&mut self) {
        // Before the close, so that no client finds a name that nobody answers.
        if let Some(file) = self.file.take()
            && let Err(error) = file.remove()
        {
            tracing::warn!(name = self.name, path = %file.path.display(), %error,
                "the socket's file could not be removed");
        }
        if let Holder::Gate(gate) = &self.holder {
            if self.activated {
                // The service manager holds the socket and serves its queue with the next process.
                gate.end();
            } else {
                gate.let_go();
                // A handshake may be under way; nothing else has one.
                if self.kind != Kind::TcpListener {
                    gate.settle();
                }
            }
        }
    }
}

/// Whether a socket at `have` is one of those wanted. Port 0 means any port.
fn matches(have: &Address, wanted: &[Address]) -> bool {
    wanted.is_empty()
        || wanted.iter().any(|wanted| match (wanted, have) {
            (Address::Ip(wanted), Address::Ip(have)) => {
                wanted.ip() == have.ip() && (wanted.port() == 0 || same_port(wanted, have))
            }
            (Address::Path(wanted), Address::Path(have)) => absolute(wanted) == absolute(have),
            (wanted, have) => wanted == have,
        })
}

fn same_port(wanted: &SocketAddr, have: &SocketAddr) -> bool {
    wanted.port() == have.port()
}

fn absolute(path: &Path) -> Option<std::path::PathBuf> {
    std::path::absolute(path).ok()
}
