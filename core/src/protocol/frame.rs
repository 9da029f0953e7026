//! The frames of the handover protocol, version 1.
//!
//! One frame is one packet of a sequenced-packet socket. The first byte says which frame it is,
//! integers are little-endian, strings and lists are preceded by their length. Golden bytes of
//! every version are kept in the tests: a new binary must be able to take over from an old one.

use std::path::PathBuf;

use crate::descriptor::{Address, Kind};

/// The oldest and the newest version that this build speaks.
pub(crate) const VERSIONS: (u16, u16) = (1, 1);

/// No frame is larger than this; a larger one ends the exchange.
pub(crate) const MAX_FRAME: usize = 64 * 1024;
/// Descriptors that travel with one frame: the kernel takes 253.
pub(crate) const MAX_DESCRIPTORS: usize = 252;
/// The longest name of a listener, in bytes.
pub(crate) const MAX_NAME: usize = 64;
/// A reason is cut after this many bytes.
const MAX_REASON: usize = 1024;
/// Names in READY are for the report only, and are cut after this many bytes.
const MAX_NAMES: usize = 16 * 1024;

const MAGIC: [u8; 4] = *b"HNDO";

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Frame {
    /// Successor: the versions that it speaks, and who it is.
    Hello { oldest: u16, newest: u16, pid: u32 },
    /// Predecessor: what follows. `total` counts the entries of all `Descriptors` frames;
    /// `patience` is how long after READY the COMMIT may take, in milliseconds.
    Offer { version: u16, generation: u32, total: u16, patience: u32 },
    /// Predecessor: as many descriptors as entries, in this order.
    Descriptors(Vec<Entry>),
    /// Successor: which of the offered listeners it claimed, which it does not want any more (by
    /// their place in the offer), and the names that it has bound anew.
    Ready { claimed: Vec<u16>, unwanted: Vec<u16>, bound: Vec<String> },
    /// Predecessor: the listeners are yours. The final state may be attached.
    Commit { state: bool },
    /// Successor: it owns the listeners and accepts.
    Serving,
    /// Successor: it was told to stop.
    Stopping,
    /// Successor: it has a successor of its own.
    Release,
    /// Predecessor: its copies are closed.
    Released,
    /// Predecessor: you are not wanted.
    Abort { reason: String },
    /// Successor: it ends by itself.
    GaveUp { reason: String },
}

/// What one descriptor of an offer is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Entry {
    /// A named socket or file.
    Named {
        name: String,
        index: u16,
        kind: Kind,
        address: Address,
        /// It belongs to the service manager, which keeps a copy.
        activated: bool,
        /// Device and inode of the file that the socket is bound to, and its path.
        file: Option<(u64, u64, PathBuf)>,
    },
    /// The memory file whose lock is the ownership.
    Lock,
    /// The sealed application state.
    State,
    /// A process that may still be draining: the predecessor itself, or an older one.
    Generation { pid: u32, generation: u32 },
    /// The event by which the `Generation` before it is asked to end its linger.
    Hurry,
}

impl Frame {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(64);
        match self {
            Frame::Hello { oldest, newest, pid } => {
                out.push(1);
                out.extend_from_slice(&MAGIC);
                out.extend_from_slice(&oldest.to_le_bytes());
                out.extend_from_slice(&newest.to_le_bytes());
                out.extend_from_slice(&pid.to_le_bytes());
            }
            Frame::Offer { version, generation, total, patience } => {
                out.push(2);
                out.extend_from_slice(&version.to_le_bytes());
                out.extend_from_slice(&generation.to_le_bytes());
                out.extend_from_slice(&total.to_le_bytes());
                out.extend_from_slice(&patience.to_le_bytes());
            }
            Frame::Descriptors(entries) => {
                out.push(3);
                out.push(entries.len() as u8);
                entries.iter().for_each(|entry| entry.encode(&mut out));
            }
            Frame::Ready { claimed, unwanted, bound } => {
                out.push(4);
                put_list(&mut out, claimed);
                put_list(&mut out, unwanted);
                let mut room = MAX_NAMES;
                for name in bound {
                    let Some(left) = room.checked_sub(name.len() + 2) else { break };
                    room = left;
                    put_string(&mut out, name);
                }
            }
            Frame::Commit { state } => out.extend_from_slice(&[5, u8::from(*state)]),
            Frame::Serving => out.push(6),
            Frame::Stopping => out.push(7),
            Frame::Release => out.push(8),
            Frame::Released => out.push(9),
            Frame::Abort { reason } => {
                out.push(10);
                put_string(&mut out, cut(reason));
            }
            Frame::GaveUp { reason } => {
                out.push(11);
                put_string(&mut out, cut(reason));
            }
        }
        out
    }

    /// The frame in these bytes, or `None` if they are anything else.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Frame> {
        let mut rest = bytes;
        let frame = match take(&mut rest, 1)?[0] {
            1 => {
                if take(&mut rest, 4)? != MAGIC {
                    return None;
                }
                Frame::Hello {
                    oldest: take_u16(&mut rest)?,
                    newest: take_u16(&mut rest)?,
                    pid: take_u32(&mut rest)?,
                }
            }
            2 => Frame::Offer {
                version: take_u16(&mut rest)?,
                generation: take_u32(&mut rest)?,
                total: take_u16(&mut rest)?,
                patience: take_u32(&mut rest)?,
            },
            3 => {
                let count = take(&mut rest, 1)?[0];
                if usize::from(count) > MAX_DESCRIPTORS {
                    return None;
                }
                let entries: Option<Vec<_>> =
                    (0..count).map(|_| Entry::decode(&mut rest)).collect();
                Frame::Descriptors(entries?)
            }
            4 => {
                let claimed = take_list(&mut rest)?;
                let unwanted = take_list(&mut rest)?;
                let mut bound = Vec::new();
                while !rest.is_empty() {
                    bound.push(take_string(&mut rest)?);
                }
                Frame::Ready { claimed, unwanted, bound }
            }
            5 => Frame::Commit { state: take_bool(&mut rest)? },
            6 => Frame::Serving,
            7 => Frame::Stopping,
            8 => Frame::Release,
            9 => Frame::Released,
            10 => Frame::Abort { reason: take_string(&mut rest)? },
            11 => Frame::GaveUp { reason: take_string(&mut rest)? },
            _ => return None,
        };
        rest.is_empty().then_some(frame)
    }
}

impl Entry {
    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Entry::Named { name, index, kind, address, activated, file } => {
                out.push(1);
                put_string(out, name);
                out.extend_from_slice(&index.to_le_bytes());
                out.push(kind.code());
                out.push(u8::from(*activated));
                address.encode(out);
                out.push(u8::from(file.is_some()));
                if let Some((device, inode, path)) = file {
                    out.extend_from_slice(&device.to_le_bytes());
                    out.extend_from_slice(&inode.to_le_bytes());
                    Address::Path(path.clone()).encode(out);
                }
            }
            Entry::Lock => out.push(2),
            Entry::State => out.push(3),
            Entry::Generation { pid, generation } => {
                out.push(4);
                out.extend_from_slice(&pid.to_le_bytes());
                out.extend_from_slice(&generation.to_le_bytes());
            }
            Entry::Hurry => out.push(5),
        }
    }

    /// How many bytes it takes in a frame.
    pub(crate) fn size(&self) -> usize {
        let mut out = Vec::new();
        self.encode(&mut out);
        out.len()
    }

    fn decode(rest: &mut &[u8]) -> Option<Entry> {
        Some(match take(rest, 1)?[0] {
            1 => Entry::Named {
                name: take_string(rest).filter(|name| is_name(name))?,
                index: take_u16(rest)?,
                kind: Kind::from_code(take(rest, 1)?[0])?,
                activated: take_bool(rest)?,
                address: Address::decode(rest)?,
                file: if take_bool(rest)? {
                    let (device, inode) = (take_u64(rest)?, take_u64(rest)?);
                    match Address::decode(rest)? {
                        Address::Path(path) => Some((device, inode, path)),
                        _ => return None,
                    }
                } else {
                    None
                },
            },
            2 => Entry::Lock,
            3 => Entry::State,
            4 => Entry::Generation { pid: take_u32(rest)?, generation: take_u32(rest)? },
            5 => Entry::Hurry,
            _ => return None,
        })
    }
}

/// Whether a name can be given to a listener: 1 to 64 bytes, no control characters.
pub(crate) fn is_name(name: &str) -> bool {
    !name.is_empty() && name.len() <= MAX_NAME && !name.chars().any(char::is_control)
}

fn cut(reason: &str) -> &str {
    let mut end = reason.len().min(MAX_REASON);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    &reason[..end]
}

fn put_string(out: &mut Vec<u8>, string: &str) {
    out.extend_from_slice(&(string.len() as u16).to_le_bytes());
    out.extend_from_slice(string.as_bytes());
}

fn put_list(out: &mut Vec<u8>, list: &[u16]) {
    out.extend_from_slice(&(list.len() as u16).to_le_bytes());
    list.iter().for_each(|number| out.extend_from_slice(&number.to_le_bytes()));
}

fn take<'a>(rest: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (head, tail) = rest.split_at_checked(length)?;
    *rest = tail;
    Some(head)
}

fn take_bool(rest: &mut &[u8]) -> Option<bool> {
    match take(rest, 1)? {
        [0] => Some(false),
        [1] => Some(true),
        _ => None,
    }
}

fn take_u16(rest: &mut &[u8]) -> Option<u16> {
    Some(u16::from_le_bytes(take(rest, 2)?.try_into().ok()?))
}

fn take_u32(rest: &mut &[u8]) -> Option<u32> {
    Some(u32::from_le_bytes(take(rest, 4)?.try_into().ok()?))
}

fn take_u64(rest: &mut &[u8]) -> Option<u64> {
    Some(u64::from_le_bytes(take(rest, 8)?.try_into().ok()?))
}

fn take_string(rest: &mut &[u8]) -> Option<String> {
    let length = take_u16(rest)?;
    String::from_utf8(take(rest, usize::from(length))?.to_vec()).ok()
}

fn take_list(rest: &mut &[u8]) -> Option<Vec<u16>> {
    let length = take_u16(rest)?;
    (0..length).map(|_| take_u16(rest)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every frame of version 1 with its bytes. These never change: another version gets another
    /// list.
    fn golden() -> Vec<(Frame, &'static [u8])> {
        vec![
            (
                Frame::Hello { oldest: 1, newest: 1, pid: 0x0102_0304 },
                b"\x01HNDO\x01\x00\x01\x00\x04\x03\x02\x01",
            ),
            (
                Frame::Offer { version: 1, generation: 7, total: 300, patience: 15_000 },
                b"\x02\x01\x00\x07\x00\x00\x00\x2c\x01\x98\x3a\x00\x00",
            ),
            (
                Frame::Descriptors(vec![
                    Entry::Lock,
                    Entry::State,
                    Entry::Generation { pid: 5, generation: 2 },
                    Entry::Hurry,
                ]),
                b"\x03\x04\x02\x03\x04\x05\x00\x00\x00\x02\x00\x00\x00\x05",
            ),
            (
                Frame::Ready { claimed: vec![0, 2], unwanted: vec![1], bound: vec!["web".into()] },
                b"\x04\x02\x00\x00\x00\x02\x00\x01\x00\x01\x00\x03\x00web",
            ),
            (Frame::Commit { state: true }, b"\x05\x01"),
            (Frame::Serving, b"\x06"),
            (Frame::Stopping, b"\x07"),
            (Frame::Release, b"\x08"),
            (Frame::Released, b"\x09"),
            (Frame::Abort { reason: "late".into() }, b"\x0a\x04\x00late"),
            (Frame::GaveUp { reason: "bad".into() }, b"\x0b\x03\x00bad"),
        ]
    }

    #[test]
    fn version_1_keeps_its_bytes() {
        for (frame, bytes) in golden() {
            assert_eq!(frame.encode(), bytes, "{frame:?}");
            assert_eq!(Frame::decode(bytes).as_ref(), Some(&frame));
        }
    }

    #[test]
    fn a_cut_or_longer_frame_is_refused() {
        for (frame, bytes) in golden() {
            for length in 0..bytes.len() {
                let read = Frame::decode(&bytes[..length]);
                // READY ends with a list whose length is the packet's.
                assert!(read.is_none() || matches!(frame, Frame::Ready { .. }), "{frame:?}");
            }
            assert_eq!(Frame::decode(&[bytes, b"\x00"].concat()), None, "{frame:?}");
        }
    }

    #[test]
    fn names_and_addresses_cross() {
        for (address, file) in [
            (Address::Ip("[::1]:80".parse().unwrap()), None),
            (Address::Path("/run/web.sock".into()), Some((1, 2, "/run/web.sock".into()))),
            (Address::Abstract(b"web".to_vec()), None),
            (Address::None, None),
        ] {
            let frame = Frame::Descriptors(vec![Entry::Named {
                name: "web".into(),
                index: 3,
                kind: Kind::TcpListener,
                address,
                activated: true,
                file,
            }]);
            assert_eq!(Frame::decode(&frame.encode()), Some(frame));
        }
    }

    #[test]
    fn a_long_reason_is_cut_between_characters() {
        let frame = Frame::Abort { reason: "ä".repeat(MAX_REASON) };
        assert!(frame.encode().len() <= MAX_REASON + 3);
        assert!(Frame::decode(&frame.encode()).is_some());
    }

    #[test]
    fn garbage_is_refused_without_a_panic() {
        // A fixed linear congruence: reproducible, and no generator is needed.
        let mut state = 1u64;
        for _ in 0..200_000 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let bytes: Vec<u8> = (0..(state >> 59)).map(|at| (state >> (at % 56)) as u8).collect();
            let _ = Frame::decode(&bytes);
        }
    }
}
