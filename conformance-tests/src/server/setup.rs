//! What a scenario says, in types.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use handover_core::{Event, Policy, Verb};

use super::actions::Act;
use super::{event_named, signal_named};
use crate::generation::Generation;
use crate::{Failure, Scenario};

/// A line of `listen`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Listen {
    pub(crate) name: String,
    pub(crate) kind: Kind,
    pub(crate) address: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Tcp,
    #[cfg(feature = "tls")]
    Tls,
    Group(usize),
    Unix,
    Seqpacket,
    Udp,
    UnixDatagram,
    File,
    Pipe,
}

/// A line of `hooks`.
#[derive(Clone, Debug)]
pub(crate) struct Hook {
    pub(crate) when: When,
    pub(crate) event: Event,
    pub(crate) name: String,
    pub(crate) action: Act,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum When {
    Before,
    After,
}

/// The entries of a list, which is empty if the scenario has none.
pub(crate) fn list<T>(
    scenario: &Scenario,
    key: &str,
    parse: impl Fn(&str) -> Result<T, Failure>,
) -> Result<Vec<T>, Failure> {
    let lines = scenario.get(key).unwrap_or_default().lines();
    lines.map(|line| parse(line).map_err(|failure| failure.while_doing(key))).collect()
}

impl Listen {
    pub(crate) fn parse(line: &str) -> Result<Self, Failure> {
        let mut words = line.splitn(3, ' ');
        let mut word = || words.next().ok_or_else(|| Failure::new(format!("`{line}` is short")));
        let (name, kind, address) = (word()?, word()?, word()?);
        let kind = match kind {
            "tcp" => Kind::Tcp,
            #[cfg(feature = "tls")]
            "tls" => Kind::Tls,
            "unix" => Kind::Unix,
            "seqpacket" => Kind::Seqpacket,
            "udp" => Kind::Udp,
            "unix-datagram" => Kind::UnixDatagram,
            "file" => Kind::File,
            "pipe" => Kind::Pipe,
            group => match group.strip_prefix("tcp*").and_then(|count| count.parse().ok()) {
                Some(count) => Kind::Group(count),
                None => return Err(Failure::new(format!("`{group}` is no kind of listener"))),
            },
        };
        Ok(Self { name: name.to_owned(), kind, address: address.to_owned() })
    }
}

impl Hook {
    pub(crate) fn parse(line: &str) -> Result<Self, Failure> {
        let mut words = line.splitn(3, ' ');
        let when = match words.next() {
            Some("before") => When::Before,
            Some("after") => When::After,
            _ => return Err(Failure::new(format!("`{line}` is neither before nor after"))),
        };
        let name = words.next().unwrap_or_default();
        let action = Act::parse(words.next().unwrap_or("ok"))?;
        Ok(Self { when, event: event_named(name)?, name: name.to_owned(), action })
    }
}

impl fmt::Display for When {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Before => "before",
            Self::After => "after",
        })
    }
}

/// The library's defaults are for servers with clients far away; a suite has none. What nothing
/// waits out unless it hangs is long, for a machine that is busy. So are the lingers: a client may
/// have connected, and not be run for a while before it sends its request.
pub(crate) fn policy(scenario: &Scenario) -> Result<Policy, Failure> {
    let value = |key: &str, default: u64| -> Result<u64, Failure> {
        scenario.value(&format!("policy.{key}"), default)
    };
    let time = |key: &str, default: u64| -> Result<Duration, Failure> {
        value(key, default).map(Duration::from_millis)
    };
    let mut policy = Policy::new()
        .ready(time("ready", 60_000)?)
        .spawn(time("spawn", 60_000)?)
        .hooks(time("hooks", 60_000)?)
        .abort(time("abort", 1_000)?)
        .confirm(time("confirm", 30_000)?)
        .probation(time("probation", 200)?)
        .linger(time("linger", 5_000)?)
        .drain(time("drain", 120_000)?)
        .stop_linger(time("stop_linger", 5_000)?)
        .stop_drain(time("stop_drain", 120_000)?);
    if scenario.get("policy.generations").is_some() {
        policy = policy.generations(number(scenario, "policy.generations")?);
    }
    if scenario.get("policy.state_limit").is_some() {
        policy = policy.state_limit(number(scenario, "policy.state_limit")?);
    }
    if let Some(instance) = scenario.get("policy.instance") {
        policy = policy.instance(instance);
    }
    if let Some(path) = scenario.get("policy.executable") {
        policy = policy.executable(path);
    }
    if scenario.is_set("policy.unfollowed") {
        policy = policy.restart_even_if_unfollowed();
    }
    if scenario.get("signals") == Some("off") {
        return Ok(policy.without_signals());
    }
    for line in scenario.get("signals").unwrap_or_default().lines() {
        let (signal, verb) = line.split_once(' ').unwrap_or((line, ""));
        let verb = match verb {
            "restart" => Some(Verb::Restart),
            "stop" => Some(Verb::Stop),
            "quit" => Some(Verb::Quit),
            "hooks" => Some(Verb::Hooks),
            "none" => None,
            _ => return Err(Failure::new(format!("signals: `{line}` has no verb"))),
        };
        policy = policy.signal(signal_named(signal)?, verb);
    }
    Ok(policy)
}

fn number<T: FromStr + Default>(scenario: &Scenario, key: &str) -> Result<T, Failure> {
    scenario.value(key, T::default())
}

/// What this process is like before anything of it has run.
pub(crate) fn tell_birth(generation: &Generation) {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let field = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key));
        line.unwrap_or_default().trim().to_owned()
    };
    let link = |name: &str| {
        let target = std::fs::read_link(format!("/proc/self/{name}"));
        target.map(|path| path.display().to_string()).unwrap_or_default()
    };
    let words: Vec<String> =
        std::env::args_os().map(|word| word.to_string_lossy().into_owned()).collect();
    // The environment as a whole, but for what belongs to this process alone.
    let mut env: Vec<String> = std::env::vars_os()
        .filter(|(name, _)| name != "HANDOVER")
        .map(|(name, value)| format!("{}={}", name.display(), value.display()))
        .collect();
    env.sort();
    let stdio: Vec<String> = (0..3).map(|number| link(&format!("fd/{number}"))).collect();
    let nice = rustix::process::getpriority_process(None).unwrap_or(0);
    generation.tell(
        "born",
        &[
            ("argv", &words.join(" ")),
            ("cwd", &link("cwd")),
            ("exe", &link("exe")),
            ("env", &env.join("\n")),
            ("umask", &field("Umask:")),
            ("stdio", &stdio.join(" ")),
            ("cpus", &field("Cpus_allowed_list:")),
            ("nice", &nice),
            ("blocked", &field("SigBlk:")),
            ("ignored", &field("SigIgn:")),
            ("parent", &field("PPid:")),
            ("handover", &std::env::var("HANDOVER").unwrap_or_default()),
        ],
    );
}
