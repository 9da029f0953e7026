//! What the fuzz targets in `core/fuzz` check. Not part of the API: it exists in tests and under
//! `cfg(fuzzing)` only.

#![allow(
    missing_docs,
    clippy::missing_panics_doc,
    clippy::panic,
    reason = "a finding is a panic, and nobody else calls this"
)]

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use crate::activation;
use crate::attempt::Log;
use crate::inherit::{self, Offer};
use crate::machine::{Action, Failure, Heard, Input, Machine, State, Timing};
use crate::policy::Policy;
use crate::protocol::channel::{Received, Sender};
use crate::protocol::frame::Frame;
use crate::state;

/// Bytes are a frame or not, and a frame has one form. Only what is for people is cut.
pub fn frame(bytes: &[u8]) {
    let Some(frame) = Frame::decode(bytes) else { return };
    let encoded = frame.encode();
    let cut = match &frame {
        Frame::Ready { .. } | Frame::Abort { .. } | Frame::GaveUp { .. } => encoded.len(),
        _ => bytes.len(),
    };
    assert!(cut <= bytes.len());
    if cut == bytes.len() {
        assert_eq!(encoded, bytes, "{frame:?}");
    }
    let again = Frame::decode(&encoded);
    assert_eq!(again.map(|frame| frame.encode()), Some(encoded), "{frame:?}");
}

/// A file of application state is understood whole or not at all.
pub fn state(bytes: &[u8]) {
    let Some(states) = state::parse(bytes) else { return };
    let mut written = Vec::with_capacity(bytes.len());
    for (name, version, state) in &states {
        written.extend_from_slice(&(name.len() as u32).to_le_bytes());
        written.extend_from_slice(&version.to_le_bytes());
        written.extend_from_slice(&(state.len() as u64).to_le_bytes());
        written.extend_from_slice(name.as_bytes());
        written.extend_from_slice(state);
    }
    assert_eq!(written, bytes);
}

/// The variables that tell a process what it was left: `instance`, `HANDOVER`, and those of the
/// service manager, a line each.
pub fn environment(bytes: &[u8]) {
    use std::os::unix::ffi::OsStrExt;
    const OWN_PID: u32 = 77;

    let mut lines = bytes.split(|&byte| byte == b'\n');
    let mut line = || lines.next().unwrap_or_default();
    let (instance, value) = (line(), line());
    if let (Ok(instance), Ok(value)) = (std::str::from_utf8(instance), std::str::from_utf8(value))
        && let Some((number, cookie)) = inherit::marker(value, instance)
    {
        let plain = value.replace('+', "").replace(":0", ":").replace(":-0", ":");
        assert!(value.starts_with(&format!("{instance}:")));
        assert!(plain.len() <= value.len());
        let again = format!("{instance}:{number}:{cookie}");
        assert_eq!(inherit::marker(&again, instance), Some((number, cookie)));
    }

    let (pid, count, names) = (line(), line(), line());
    let var = |name: &str| match name {
        "LISTEN_PID" => Some(std::ffi::OsStr::from_bytes(pid).to_owned()),
        "LISTEN_FDS" => Some(std::ffi::OsStr::from_bytes(count).to_owned()),
        "LISTEN_FDNAMES" if !names.is_empty() => {
            Some(std::ffi::OsStr::from_bytes(names).to_owned())
        }
        _ => None,
    };
    match activation::announced(var, OWN_PID) {
        Ok(announced) => {
            for (at, (_, number)) in announced.iter().enumerate() {
                assert_eq!(*number, 3 + at as i32, "in their order, without a gap");
            }
        }
        Err(error) => assert!(!error.to_string().contains('\n'), "one line: {error}"),
    }
}

/// A successor that says anything, in any order, to a predecessor that is real but for its system
/// calls: the log that understands the frames, and the machine.
pub fn successor(bytes: &[u8]) {
    const OFFERED: usize = 3;
    let second = Duration::from_secs(1);
    #[allow(clippy::disallowed_methods, reason = "some point in time, from which it is counted")]
    let mut now = Instant::now();
    let mut machine = Machine::new(timing(second), false);
    let mut run = Run::default();
    for input in [Input::Begin, Input::Restart] {
        machine.handle(input, now);
        run.act(&mut machine, now, true);
    }
    let mut log = Log::offering((0..OFFERED as u64).collect());
    let mut speaker = None;
    let mut rest = bytes;
    while let Some((&verb, tail)) = rest.split_first() {
        rest = tail;
        match verb {
            0 => {
                now += second / 4;
                machine.handle_timeout(now);
            }
            1 => machine.handle(Input::SuccessorDied(machine.attempt()), now),
            2 => machine.handle(Input::Restart, now),
            3 => machine.handle(Input::Sealed(machine.attempt(), Err(Failure::State)), now),
            4 => machine.handle(Input::Successor(machine.attempt(), Heard::Lost), now),
            5 => run.deaf = !run.deaf,
            verb => {
                // The next byte is the frame's length, and the sender is one of three.
                let length = rest.first().map_or(0, |&length| usize::from(length));
                let frame = rest.get(1..).unwrap_or_default();
                let (frame, tail) = frame.split_at(length.min(frame.len()));
                rest = tail;
                let pid = u32::from(verb % 3);
                let uid = rustix::process::geteuid().as_raw() + u32::from(verb >= 250);
                let sender = (verb < 254).then_some(Sender { pid, uid });
                let received = match Frame::decode(frame) {
                    Some(frame) => Received::Frame(frame, sender),
                    None => Received::Garbage("no frame".into()),
                };
                let heard = log.understand(received);
                if heard != Heard::Garbage && heard != Heard::Lost {
                    let speaks = *speaker.get_or_insert(pid);
                    assert_eq!(speaks, pid, "two processes are one successor");
                    // Whoever said hello may drop privileges; nobody else may begin as another user.
                    assert!(verb < 254, "a nobody was heard");
                    assert!(verb < 250 || heard != Heard::Hello, "a stranger was heard");
                }
                if heard == Heard::Hello {
                    run.hellos += 1;
                }
                assert!(log.claims().iter().all(|id| *id < OFFERED as u64));
                machine.handle(Input::Successor(machine.attempt(), heard), now);
                run.readies += u32::from(heard == Heard::Ready);
            }
        }
        run.act(&mut machine, now, false);
        assert!(run.hellos <= 1, "one HELLO");
        assert!(run.commits <= run.attempts && (run.commits == 0 || run.readies > 0));
    }
    // Left alone, it comes to a rest: serving, or gone.
    for _ in 0..20 {
        now += second * 10;
        machine.handle_timeout(now);
        run.act(&mut machine, now, false);
    }
    assert!(matches!(machine.state(), Some(State::Serving | State::Exited)), "{machine:?}");
    assert!(run.open || machine.state() == Some(State::Exited));
}

fn timing(second: Duration) -> Timing {
    Timing {
        hooks: second,
        hello: second,
        ready: second,
        abort: second,
        confirm: second,
        probation: second,
        linger: second,
        drain: second * 2,
        ..Policy::new().timing
    }
}

/// What an ideal driver does, and what must be true of it.
#[derive(Default)]
struct Run {
    locked: bool,
    open: bool,
    deaf: bool,
    attempts: u32,
    commits: u32,
    hellos: u32,
    readies: u32,
}

impl Run {
    fn act(&mut self, machine: &mut Machine, now: Instant, starting: bool) {
        let mut most = 64;
        while let Some(action) = machine.poll_action() {
            most -= 1;
            assert!(most > 0, "it never comes to an end: {action:?}");
            match action {
                Action::Vet(attempt) => {
                    self.attempts += 1;
                    // Only the first has a log here.
                    let verdict = if starting { Ok(()) } else { Err(Failure::Vetoed) };
                    machine.handle(Input::Vetted(attempt, verdict), now);
                }
                Action::Spawn(attempt) => machine.handle(Input::Spawned(attempt), now),
                Action::Seal(attempt) => machine.handle(Input::Sealed(attempt, Ok(())), now),
                Action::CloseGates(_) => self.open = false,
                Action::Unlock => {
                    assert!(!self.open, "unlocked with an open gate");
                    self.locked = false;
                }
                Action::Commit(_) => {
                    assert!(!self.open && !self.locked);
                    self.commits += u32::from(!self.deaf);
                    machine.handle(Input::Committed(!self.deaf), now);
                }
                Action::Lock => {
                    self.locked = true;
                    machine.handle(Input::Locked(true), now);
                }
                Action::OpenGates => {
                    assert!(self.locked, "an open gate without the lock");
                    self.open = true;
                }
                Action::Kill(attempt) => {
                    assert!(!starting);
                    machine.handle(Input::SuccessorDied(attempt), now);
                }
                Action::LetGo | Action::CloseListeners => self.open = false,
                _ => {}
            }
        }
    }
}

/// A predecessor that says anything, in any order, with as many descriptors as it says or not.
pub fn offer(bytes: &[u8]) {
    thread_local! {
        static SOME: OwnedFd = std::io::pipe().map(|(read, _)| read.into()).unwrap_or_else(
            |error| panic!("make a pipe: {error}"),
        );
    }
    let mut offer = Offer::default();
    let mut rest = bytes;
    let mut broken = false;
    for _ in 0..16 {
        let [surplus, low, high, tail @ ..] = rest else { break };
        let length = usize::from(u16::from_le_bytes([*low, *high])).min(tail.len());
        let (frame, tail) = tail.split_at(length);
        rest = tail;
        let Some(frame) = Frame::decode(frame) else { continue };
        let announced = match &frame {
            Frame::Descriptors(entries) => entries.len(),
            _ => 0,
        };
        // Nearly always the right number.
        let count = match surplus {
            0 => announced + 1,
            1 => announced.saturating_sub(1),
            _ => announced,
        };
        let copies = SOME.with(|some| (0..count.min(8)).map(|_| some.try_clone()).collect());
        let Ok::<Vec<OwnedFd>, std::io::Error>(descriptors) = copies else { return };
        let was_complete = offer.is_complete();
        let right = descriptors.len() == announced;
        let taken = offer.frame(frame, descriptors);
        assert!(taken.is_err() || right || announced == 0, "descriptors are missing");
        if was_complete && announced > 0 {
            assert!(taken.is_err(), "more than was announced");
        }
        broken |= taken.is_err();
        if broken {
            break;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    /// Runs a target on its corpus, and on what a generator with a fixed seed makes of that.
    fn run(name: &str, target: fn(&[u8]), rounds: u32) {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
        let mut files: Vec<_> = std::fs::read_dir(&folder)
            .expect("the corpus is committed")
            .map(|file| file.unwrap().path())
            .collect();
        files.sort();
        let corpus: Vec<Vec<u8>> = files.iter().map(|file| std::fs::read(file).unwrap()).collect();
        assert!(!corpus.is_empty());
        corpus.iter().for_each(|bytes| target(bytes));
        // xorshift64*: reproducible, and no generator is needed.
        let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
        let mut next = |below: usize| {
            seed ^= seed >> 12;
            seed ^= seed << 25;
            seed ^= seed >> 27;
            (seed.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % below.max(1)
        };
        for _ in 0..rounds {
            let mut bytes = corpus[next(corpus.len())].clone();
            for _ in 0..=next(4) {
                let at = next(bytes.len() + 1);
                match next(6) {
                    0 => bytes.truncate(at),
                    1 => bytes.insert(at, next(256) as u8),
                    2 => {
                        let other = &corpus[next(corpus.len())];
                        let from = next(other.len() + 1);
                        bytes.truncate(at);
                        bytes.extend_from_slice(&other[from..]);
                    }
                    3 if at < bytes.len() => drop(bytes.remove(at)),
                    4 if at < bytes.len() => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][next(5)],
                    _ if at < bytes.len() => bytes[at] ^= 1 << next(8),
                    _ => {}
                }
            }
            bytes.truncate(4096);
            target(&bytes);
        }
    }

    #[test]
    fn frames() {
        run("frame", frame, 60_000);
    }

    #[test]
    fn states() {
        run("state", state, 60_000);
    }

    #[test]
    fn environments() {
        run("environment", environment, 20_000);
    }

    #[test]
    fn successors() {
        run("successor", successor, 20_000);
    }

    #[test]
    fn offers() {
        run("offer", offer, 10_000);
    }
}
