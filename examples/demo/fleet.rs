//! The server's processes and their executable, as the operator handles them.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use handover_conformance::signal::{Process, Signal};
use handover_conformance::{Doing, Failure, hygiene};
use rustix::process::{Pid, WaitOptions};

/// Written behind the end of an executable, where the loader does not look.
const MARK: &[u8; 13] = b"handover-demo";

/// The server of all generations. Dropping it ends them and removes their folder.
pub(crate) struct Fleet {
    folder: PathBuf,
    /// The process group of all generations: the first one's number.
    group: Pid,
    /// Ends all generations when it is closed.
    _lifeline: std::process::ChildStdin,
    said: mpsc::Receiver<String>,
    /// What was said and not asked for yet.
    heard: Vec<Told>,
}

/// A line that a generation has printed: `what key=value key=value`.
pub(crate) struct Told {
    pub(crate) what: String,
    pub(crate) line: String,
    values: HashMap<String, u64>,
}

impl Told {
    fn parse(line: String) -> Self {
        let mut words = line.split_whitespace();
        let what = words.next().unwrap_or_default().to_owned();
        let pairs = words.filter_map(|word| word.split_once('='));
        let values = pairs.filter_map(|(key, value)| Some((key.into(), value.parse().ok()?)));
        Self { what, values: values.collect(), line }
    }

    pub(crate) fn number(&self, key: &str) -> u64 {
        self.values.get(key).copied().unwrap_or(0)
    }

    pub(crate) fn millis(&self, key: &str) -> f64 {
        self.number(key) as f64 / 1e3
    }
}

impl Fleet {
    /// Installs build 1 and starts it.
    pub(crate) fn start() -> Result<Self, Failure> {
        // Generations whose parents have left become this process's children, not init's: it can
        // see that they are gone for good.
        rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
            .doing("becoming a subreaper")?;
        let folder = std::env::temp_dir().join(format!("handover-demo-{}", std::process::id()));
        fs::create_dir(&folder).doing("making a folder")?;
        Self::start_in(&folder).inspect_err(|_| drop(fs::remove_dir_all(&folder)))
    }

    fn start_in(folder: &Path) -> Result<Self, Failure> {
        let program = install(folder, 1)?;
        let mut child = Command::new(&program)
            .arg("serve")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // Ctrl-C is for the operator.
            .process_group(0)
            .spawn()
            .doing("starting the server")?;
        let pipes = child.stdin.take().zip(child.stdout.take());
        let (lifeline, output) = pipes.ok_or_else(|| Failure::new("no pipes"))?;
        let (sender, said) = mpsc::channel();
        std::thread::Builder::new().name("lines".into()).spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        })?;
        let group = Pid::from_child(&child);
        let folder = folder.to_owned();
        Ok(Self { folder, group, _lifeline: lifeline, said, heard: Vec::new() })
    }

    /// Renames another build over the running one's file.
    pub(crate) fn install(&self, build: u32) -> Result<(), Failure> {
        install(&self.folder, build).map(drop)
    }

    /// The first thing that was said and is like this; at once if nothing was.
    pub(crate) fn heard(&mut self, like: impl Fn(&Told) -> bool) -> Option<Told> {
        self.heard.extend(self.said.try_iter().map(Told::parse));
        let index = self.heard.iter().position(like)?;
        Some(self.heard.remove(index))
    }

    /// The same, waiting for it.
    pub(crate) fn hear(
        &mut self,
        what: &str,
        within: Duration,
        like: impl Fn(&Told) -> bool,
    ) -> Result<Told, Failure> {
        let deadline = Instant::now() + within;
        loop {
            if let Some(told) = self.heard(&like) {
                return Ok(told);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            match self.said.recv_timeout(left) {
                Ok(line) => self.heard.push(Told::parse(line)),
                Err(error) => {
                    return Err(Failure::new(format!("waiting for `{what}`: {error}")));
                }
            }
        }
    }

    /// Sends SIGTERM to the last generation, and waits for it to leave.
    pub(crate) fn stop(&mut self, pid: u32) -> Result<Told, Failure> {
        let process = Process::open(pid)?;
        process.signal(Signal::TERM)?;
        process.wait_gone(Duration::from_secs(10))?;
        self.hear("left", Duration::from_secs(1), |told| {
            told.what == "left" && told.number("pid") == u64::from(pid)
        })
    }

    /// Takes the ends of those generations that are this process's children by now.
    pub(crate) fn reap(&self) {
        while let Ok(Some(_)) = rustix::process::wait(WaitOptions::NOHANG) {}
    }

    /// What there is of processes, but for the one that serves.
    pub(crate) fn left_over(&self, serving: Option<u32>) -> Vec<hygiene::Listed> {
        self.reap();
        let mut found = hygiene::children(std::process::id());
        found.extend(serving.into_iter().flat_map(hygiene::children));
        found.retain(|process| Some(process.pid) != serving);
        found
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        // All of the group have this program for a child's child, and none has left the group.
        if rustix::process::kill_process_group(self.group, Signal::KILL).is_ok() {
            let deadline = Instant::now() + Duration::from_secs(2);
            while rustix::process::test_kill_process_group(self.group).is_ok()
                && Instant::now() < deadline
            {
                self.reap();
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        self.reap();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// The running executable with a number behind its end, renamed into its place as an upgrade
/// does: another file with another content.
fn install(folder: &Path, build: u32) -> Result<PathBuf, Failure> {
    let (new, program) = (folder.join("server.new"), folder.join("server"));
    fs::copy("/proc/self/exe", &new).doing("copying the program")?;
    let mut file = File::options().append(true).open(&new).doing("opening the new program")?;
    file.write_all(&[MARK.as_slice(), &build.to_le_bytes()].concat()).doing("marking it")?;
    drop(file);
    fs::rename(&new, &program).doing("replacing the program")?;
    Ok(program)
}

/// The number behind the end of an executable; 0 if there is none.
pub(crate) fn build_of(executable: impl AsRef<Path>) -> std::io::Result<u32> {
    let mut file = File::open(executable)?;
    let mut tail = [0; MARK.len() + 4];
    file.seek(SeekFrom::End(-(tail.len() as i64)))?;
    file.read_exact(&mut tail)?;
    let [mark @ .., a, b, c, d] = tail;
    Ok(if mark == *MARK { u32::from_le_bytes([a, b, c, d]) } else { 0 })
}
