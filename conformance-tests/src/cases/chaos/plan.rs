//! What happens, in which order: drawn from a seed, and from nothing else.

use std::fmt;
use std::time::Duration;

/// The events of one seed, without an end.
#[derive(Debug)]
pub(super) struct Plan {
    random: Random,
}

/// An event and what comes after it.
#[derive(Clone, Debug)]
pub(super) struct Step {
    pub(super) event: Event,
    /// Whether the older generations are to be gone before the next.
    pub(super) settle: bool,
    /// How long nothing happens then.
    pub(super) pause: Duration,
}

#[derive(Clone, Debug)]
pub(super) enum Event {
    Restart(Asking),
    Broken { how: Broken, by: Asking },
    Kill { whom: Whom, at: Place },
    Freeze { whom: Whom, at: Place, time: Duration },
    Shortage { spare: u64, time: Duration, restart: bool },
    Clients(Clients),
    StopAndStart,
}

/// Who asks for a restart, and how often at once.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asking {
    pub(super) signals: u32,
    pub(super) handles: u32,
}

/// What is wrong with the new version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Broken {
    Missing,
    NotExecutable,
    Garbage,
    ExitsAtOnce,
    HangsBeforeHello,
    SaysGarbage,
    Panics,
    GivesUp,
    HangsBeforeReady,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Whom {
    Old,
    New,
}

/// A point of the protocol.
#[derive(Clone, Copy, Debug)]
pub(super) enum Place {
    /// No restart is under way.
    Steady,
    /// So long after the restart was asked for.
    Asked(Duration),
    /// The new one runs and has not said hello.
    Born,
    /// It has the descriptors and is not ready.
    Claimed,
    /// So long after it began to say that it is ready: around the commit.
    Switch(Duration),
    /// So long after it has told that it serves: in the probation.
    Serving(Duration),
}

/// What happens to the second load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Clients {
    Start,
    Stop,
    /// All its connections are closed, whatever is on its way.
    Vanish,
}

/// SplitMix64: small, and the same on every machine and in every version.
#[derive(Debug)]
struct Random(u64);

impl Plan {
    pub(super) fn new(seed: u64) -> Self {
        Self { random: Random(seed) }
    }

    /// The next one. What has come of those before it has no say.
    pub(super) fn step(&mut self) -> Step {
        let random = &mut self.random;
        let event = match random.below(100) {
            0..20 => Event::Restart(Asking::any(random)),
            20..38 => {
                let how = *random.one_of(&Broken::ALL);
                Event::Broken { how, by: Asking::once(random) }
            }
            38..66 => {
                let whom = *random.one_of(&[Whom::Old, Whom::New]);
                Event::Kill { whom, at: Place::any(random, whom, false) }
            }
            66..78 => {
                let whom = *random.one_of(&[Whom::Old, Whom::New]);
                // Most are shorter than every deadline, some are not.
                let limit = if random.below(4) == 0 { 2_500 } else { 400 };
                Event::Freeze {
                    whom,
                    at: Place::any(random, whom, true),
                    time: random.millis(1, limit),
                }
            }
            78..88 => Event::Shortage {
                spare: random.below(12),
                time: random.millis(20, 500),
                restart: random.below(3) > 0,
            },
            88..97 => {
                Event::Clients(*random.one_of(&[Clients::Start, Clients::Stop, Clients::Vanish]))
            }
            _ => Event::StopAndStart,
        };
        let settle = random.below(4) == 0;
        Step { event, settle, pause: random.millis(0, 120) }
    }
}

impl Asking {
    fn once(random: &mut Random) -> Self {
        let signals = random.below(2) as u32;
        Self { signals, handles: 1 - signals }
    }

    fn any(random: &mut Random) -> Self {
        if random.below(2) == 0 {
            return Self::once(random);
        }
        Self { signals: random.below(5) as u32, handles: 1 + random.below(3) as u32 }
    }
}

impl Broken {
    const ALL: [Self; 9] = [
        Self::Missing,
        Self::NotExecutable,
        Self::Garbage,
        Self::ExitsAtOnce,
        Self::HangsBeforeHello,
        Self::SaysGarbage,
        Self::Panics,
        Self::GivesUp,
        Self::HangsBeforeReady,
    ];
}

impl Place {
    fn any(random: &mut Random, whom: Whom, steady: bool) -> Self {
        let (first, switch, serving) =
            (random.micros(0, 60_000), random.micros(0, 4_000), random.millis(0, 250));
        match random.below(6) {
            0 if steady && whom == Whom::Old => Self::Steady,
            0 | 1 if whom == Whom::Old => Self::Asked(first),
            0 | 1 => Self::Born,
            2 => Self::Claimed,
            3 | 4 => Self::Switch(switch),
            _ => Self::Serving(serving),
        }
    }

    /// Where the new one waits for its cue.
    pub(super) fn hold(self) -> Option<&'static str> {
        match self {
            Self::Born => Some("born"),
            Self::Claimed | Self::Switch(_) => Some("claimed"),
            Self::Steady | Self::Asked(_) | Self::Serving(_) => None,
        }
    }
}

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    fn one_of<'a, T>(&mut self, choices: &'a [T]) -> &'a T {
        &choices[self.below(choices.len() as u64) as usize]
    }

    fn micros(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_micros(from + self.below(to - from))
    }

    fn millis(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(from + self.below(to - from))
    }
}

impl Event {
    /// Its kind, for the account.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Restart(_) => "restarts",
            Self::Broken { .. } => "broken versions",
            Self::Kill { .. } => "kills",
            Self::Freeze { .. } => "freezes",
            Self::Shortage { .. } => "shortages",
            Self::Clients(_) => "changes of clients",
            Self::StopAndStart => "stops",
        }
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Restart(by) => write!(f, "restart by {by}"),
            Self::Broken { how, by } => {
                write!(f, "restart with a version that is {how:?}, by {by}")
            }
            Self::Kill { whom, at } => write!(f, "kill the {whom} one {at}"),
            Self::Freeze { whom, at, time } => write!(f, "freeze the {whom} one {at} for {time:?}"),
            Self::Shortage { spare, time, restart } => {
                let and = if *restart { ", and a restart" } else { "" };
                write!(f, "only {spare} more descriptors for {time:?}{and}")
            }
            Self::Clients(what) => write!(f, "the second load is to {what:?}"),
            Self::StopAndStart => f.write_str("stop the service and start it again"),
        }
    }
}

impl fmt::Display for Asking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} signals and {} calls", self.signals, self.handles)
    }
}

impl fmt::Display for Whom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if *self == Self::Old { "old" } else { "new" })
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Steady => f.write_str("without a restart"),
            Self::Asked(after) => write!(f, "{after:?} after a restart was asked for"),
            Self::Born => f.write_str("before the hello"),
            Self::Claimed => f.write_str("before the new one is ready"),
            Self::Switch(after) => write!(f, "{after:?} into the switch"),
            Self::Serving(after) => write!(f, "{after:?} into the probation"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(seed: u64) -> Vec<String> {
        let mut plan = Plan::new(seed);
        (0..200).map(|_| format!("{:?}", plan.step())).collect()
    }

    #[test]
    fn a_seed_is_an_order() {
        assert_eq!(order(7), order(7));
        assert_ne!(order(7), order(8));
    }

    #[test]
    fn every_kind_comes_up_soon() {
        let mut plan = Plan::new(1);
        let kinds: std::collections::BTreeSet<_> =
            (0..200).map(|_| plan.step().event.kind()).collect();
        assert_eq!(kinds.len(), 7);
    }
}
